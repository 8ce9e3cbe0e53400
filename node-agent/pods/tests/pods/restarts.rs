//! What becomes of containers that end, or never start.

use std::fs;

use serde_json::{Value, json};

use crate::node::{Node, eventually, is_ready, sh, state};

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_end_are_restarted_as_their_policy_says() {
    let Some(node) = Node::start().await else {
        return;
    };
    node.create(
        "job",
        json!({"restartPolicy": "Never", "containers": [
            {"name": "ok", "command": sh("echo done > /dev/termination-log")},
            {"name": "bad", "command": sh("echo oops; exit 3"),
             "terminationMessagePolicy": "FallbackToLogsOnError"},
        ]}),
    );
    node.create(
        "loop",
        json!({"restartPolicy": "Always", "containers": [
            {"name": "c", "command": sh("exit 1")},
        ]}),
    );
    node.create(
        "absent",
        json!({"containers": [
            {"name": "c", "image": "localhost:1/none:1", "command": ["x"]},
        ]}),
    );
    node.create(
        "unset",
        json!({"containers": [{"name": "c", "command": sh("sleep 1000"), "env": [
            {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "k"}}},
        ]}]}),
    );
    node.create(
        "sick",
        json!({"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "c", "command": sh("sleep 1000"), "livenessProbe": {
                "exec": {"command": ["/bin/false"]}, "periodSeconds": 1, "failureThreshold": 2}},
        ]}),
    );

    node.create(
        "chatty",
        json!({"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "c", "command": sh("i=0; while true; do i=$((i+1)); echo line $i; done")},
        ]}),
    );

    let job = node
        .wait("job", "fails", |pod| pod["status"]["phase"] == "Failed")
        .await;
    assert_eq!(
        state(&job, "ok")["state"]["terminated"]["message"],
        "done\n"
    );
    assert_eq!(state(&job, "bad")["state"]["terminated"]["exitCode"], 3);
    assert_eq!(
        state(&job, "bad")["state"]["terminated"]["message"],
        "oops\n"
    );

    let looping = |pod: &Value| state(pod, "c")["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = node.wait("loop", "backs off", looping).await;
    assert_eq!(
        state(&pod, "c")["restartCount"],
        1,
        "the first restart is immediate"
    );
    assert_eq!(state(&pod, "c")["lastState"]["terminated"]["exitCode"], 1);
    let pod = node
        .wait("loop", "restarts after 10 s", |pod| {
            state(pod, "c")["restartCount"] == 2
        })
        .await;
    let ended = state(&pod, "c")["lastState"]["terminated"]["finishedAt"].clone();
    assert!(ended.is_string());

    let backs_off =
        |pod: &Value| state(pod, "c")["state"]["waiting"]["reason"] == "ImagePullBackOff";
    node.wait("absent", "backs off", backs_off).await;
    for event in [
        "Pulling",
        "Failed Failed to pull image",
        "Failed Error: ErrImagePull",
        "BackOff Back-off pulling image",
        "Failed Error: ImagePullBackOff",
    ] {
        let told = async || {
            let events = node.events("absent");
            events.iter().any(|it| it.starts_with(event))
        };
        assert!(
            eventually(told).await,
            "{event}: {:#?}",
            node.events("absent")
        );
    }

    let refused =
        |pod: &Value| state(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerConfigError";
    let pod = node.wait("unset", "is refused", refused).await;
    assert_eq!(
        state(&pod, "c")["state"]["waiting"]["message"],
        "configmap \"late\" not found"
    );
    node.api.put(
        "configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "late", "namespace": "default"}, "data": {"k": "v"}}),
    );
    node.wait("unset", "starts when the object is there", is_ready)
        .await;

    let pod = node
        .wait("sick", "is restarted", |pod| {
            state(pod, "c")["restartCount"].as_i64() >= Some(1)
        })
        .await;
    assert_eq!(state(&pod, "c")["lastState"]["terminated"]["exitCode"], 137);
    let told = node.events("sick");
    assert!(
        told.iter()
            .any(|it| it.starts_with("Unhealthy Liveness probe failed")),
        "{told:#?}"
    );
    assert!(
        told.iter()
            .any(|it| it.contains("failed liveness probe, will be restarted")),
        "{told:#?}"
    );

    // --- a log that grows is put aside, and the oldest parts go ---
    let pod = node.api.get("pods", "chatty").unwrap();
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let logs = node
        .config()
        .state_dir
        .join(format!("log/pods/default_chatty_{uid}/c"));
    let count = || fs::read_dir(&logs).map_or(0, Iterator::count);
    let rotated =
        eventually(async || count() == 3).await || eventually(async || count() == 3).await;
    assert!(rotated, "{} files in {}", count(), logs.display());
    node.end().await;
}
