//! Containers beside and before the main ones, and pods that nobody knows.

use serde_json::json;

use crate::node::{Node, eventually, is_ready, sh};
use crate::support::containerd::BUSYBOX;

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_hooks_and_unknown_pods_are_handled() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    node.create("side", json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 3,
        "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}],
        "initContainers": [{
            "name": "proxy", "image": BUSYBOX, "restartPolicy": "Always",
            "command": sh("touch /v/proxy; trap 'exit 0' TERM; while true; do sleep 0.1; done"),
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "startupProbe": {"exec": {"command": ["/bin/test", "-e", "/v/proxy"]}, "periodSeconds": 1},
        }],
        "containers": [{
            "name": "main", "command": sh("test -e /v/proxy && while ! test -e /v/hook; do sleep 0.1; done"),
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "lifecycle": {"postStart": {"exec": {"command": ["/bin/touch", "/v/hook"]}}},
        }],
    }));
    let pod = node
        .wait("side", "succeeds", |pod| {
            pod["status"]["phase"] == "Succeeded"
        })
        .await;
    assert!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"].is_object());

    // --- a pod that was removed while the agent was away is stopped and removed ---
    node.create(
        "lost",
        json!({"terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "command": sh("sleep 100000")}]}),
    );
    node.wait("lost", "becomes ready", is_ready).await;
    node.stop_agent().await;
    node.api.remove("pods", "lost");
    // Of another one an agent has removed all but the logs when it was killed.
    let logs = node.config().logs_folder().join("shop_half_0-1");
    std::fs::create_dir_all(logs.join("c")).unwrap();
    node.start_agent();
    let runtime = node.containerd.runtime.clone();
    let gone = eventually(async || {
        let sandboxes = runtime
            .list_pod_sandboxes(&[("io.kubernetes.pod.name", "lost")])
            .await;
        sandboxes.unwrap().is_empty()
    });
    assert!(gone.await, "the unknown pod still runs");
    let gone = eventually(async || !logs.exists());
    assert!(gone.await, "logs that nobody can ask for are still there");
    node.end().await;
}
