//! Static pods: files of the node, shown by the API.

use std::fs;

use serde_json::Value;

use crate::node::{Node, eventually, is_ready};
use crate::support::containerd::BUSYBOX;

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_runs_without_the_api_and_is_shown_when_it_is_there() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    node.api.put(
        "nodes",
        serde_json::json!({"apiVersion": "v1", "kind": "Node",
                           "metadata": {"name": "n1", "uid": "node-uid"}}),
    );
    let manifest = |seconds: u32| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  hostNetwork: true\n  \
             terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: {BUSYBOX}\n    \
             command: [sleep, \"{seconds}\"]\n"
        )
    };
    node.api.set_down(true);
    let folder = node.config().manifests.unwrap();
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("web.yaml"), manifest(100_001)).unwrap();
    let runtime = node.containerd.runtime.clone();
    let running = async || {
        let of_pod = [("io.kubernetes.pod.name", "web-n1")];
        let all = runtime.list_containers(&of_pod).await.unwrap();
        // 1 is CONTAINER_RUNNING.
        all.iter().filter(|it| it.state == 1).count()
    };
    assert!(
        eventually(async || running().await == 1).await,
        "not started"
    );

    node.api.set_down(false);
    let pod = node.wait("web-n1", "is shown and ready", is_ready).await;
    assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "node-uid");
    let hash = |pod: &Value| pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].clone();
    let (first, uid) = (hash(&pod), pod["metadata"]["uid"].clone());

    // --- whoever deletes the mirror does not touch the pod ---
    node.api.remove("pods", "web-n1");
    let pod = node
        .wait("web-n1", "is shown again", |pod| {
            is_ready(pod) && pod["metadata"]["uid"] != uid
        })
        .await;
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    let container = pod["status"]["containerStatuses"][0]["containerID"].clone();

    // --- a restarted agent takes it over; a changed manifest is another pod ---
    node.stop_agent().await;
    node.start_agent();
    fs::write(folder.join("web.yaml"), manifest(100_002)).unwrap();
    let pod = node
        .wait("web-n1", "is the changed one", |pod| {
            is_ready(pod) && hash(pod) != first
        })
        .await;
    assert_ne!(
        pod["status"]["containerStatuses"][0]["containerID"],
        container
    );
    assert!(eventually(async || running().await == 1).await);

    fs::remove_file(folder.join("web.yaml")).unwrap();
    node.gone("web-n1").await;
    assert!(eventually(async || running().await == 0).await);
    node.end().await;
}
