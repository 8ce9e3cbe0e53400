//! Ephemeral containers: what `kubectl debug` does to a pod.

use serde_json::{Value, json};

use crate::node::{Node, eventually, is_ready, sh};
use crate::support::containerd::BUSYBOX;

#[tokio::test(flavor = "multi_thread")]
async fn a_debugger_joins_the_processes_of_a_running_container() {
    let Some(node) = Node::start().await else {
        return;
    };
    node.create(
        "web",
        json!({"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "c", "command": sh("exec sleep 123456")},
        ]}),
    );
    let pod = node.wait("web", "becomes ready", is_ready).await;
    let mut debugged = pod.clone();
    debugged["spec"]["ephemeralContainers"] = json!([{
        "name": "debugger", "image": BUSYBOX, "targetContainerName": "c",
        "command": sh("cat /proc/1/cmdline; echo; exit 3"),
    }]);
    debugged["metadata"]["generation"] = json!(2);
    node.api.put("pods", debugged);
    let status = |pod: &Value| pod["status"]["ephemeralContainerStatuses"][0].clone();
    let pod = node
        .wait("web", "shows the debugger's end", |pod| {
            status(pod)["state"]["terminated"]["exitCode"] == 3
        })
        .await;
    assert!(
        eventually(async || node.log(&pod, "debugger", 0).contains("sleep\x00123456")).await,
        "{}",
        node.log(&pod, "debugger", 0)
    );
    assert!(is_ready(&pod), "the pod does not depend on it");
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["observedGeneration"], 2);

    // --- it is started once, and another one may follow ---
    let mut debugged = pod.clone();
    debugged["spec"]["ephemeralContainers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "second", "image": BUSYBOX, "command": sh("sleep 100000")}));
    node.api.put("pods", debugged);
    let pod = node
        .wait("web", "runs the second", |pod| {
            let second = &pod["status"]["ephemeralContainerStatuses"][1];
            second["state"]["running"].is_object()
        })
        .await;
    assert_eq!(status(&pod)["restartCount"], 0);
    assert_eq!(status(&pod)["state"]["terminated"]["exitCode"], 3);
    node.end().await;
}
