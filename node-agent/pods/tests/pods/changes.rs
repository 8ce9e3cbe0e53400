//! A pod that is changed while it runs.

use std::fs;

use serde_json::{Value, json};

use crate::node::{Node, eventually, is_ready, sh, state};

fn condition(pod: &Value, type_: &str) -> Option<Value> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == type_);
    found.cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn other_resources_and_labels_reach_a_running_pod() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    let resources = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}});
    node.create(
        "web",
        json!({
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "info", "downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "cpu", "resourceFieldRef": {
                    "containerName": "c", "resource": "limits.cpu", "divisor": "1m"}},
            ]}}],
            "containers": [{
                "name": "c", "command": sh("sleep 100000"), "resources": resources("100m", "64Mi"),
                "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"},
                                 {"resourceName": "cpu", "restartPolicy": "NotRequired"}],
                "volumeMounts": [{"name": "info", "mountPath": "/info"}],
            }],
        }),
    );
    let pod = node.wait("web", "becomes ready", is_ready).await;
    let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    assert_eq!(state(&pod, "c")["resources"], resources("100m", "64Mi"));
    assert_eq!(state(&pod, "c")["allocatedResources"]["cpu"], "100m");
    let volume = node.config().state_dir.join("pods").join(&uid);
    let volume = volume.join("volumes/kubernetes.io~downward-api/info");
    let told = |file: &str| fs::read_to_string(volume.join(file)).unwrap_or_default();
    assert_eq!((told("labels").as_str(), told("cpu").as_str()), ("", "100"));

    // --- more CPU, without a restart; and a label ---
    let change = |resources: Value, generation: i64| {
        let mut pod = node.api.get("pods", "web").unwrap();
        pod["spec"]["containers"][0]["resources"] = resources;
        pod["metadata"]["labels"] = json!({"stage": "two"});
        pod["metadata"]["generation"] = json!(generation);
        node.api.put("pods", pod);
    };
    change(resources("300m", "64Mi"), 2);
    let settled = |wanted: Value| {
        move |pod: &Value| {
            state(pod, "c")["resources"] == wanted
                && condition(pod, "PodResizeInProgress").is_none()
        }
    };
    let pod = node
        .wait("web", "has more CPU", settled(resources("300m", "64Mi")))
        .await;
    assert_eq!(state(&pod, "c")["restartCount"], 0);
    assert!(eventually(async || told("labels") == "stage=\"two\"").await);
    assert!(
        eventually(async || told("cpu") == "300").await,
        "{}",
        told("cpu")
    );
    let quota = |file: &str| {
        let root = format!(
            "/sys/fs/cgroup/cpu{}/pod{uid}/{file}",
            node.config().cgroup_root
        );
        fs::read_to_string(root).unwrap_or_default()
    };
    if fs::exists("/sys/fs/cgroup/cpu").unwrap() {
        assert_eq!(quota("cpu.cfs_quota_us").trim(), "30000");
    }

    // --- more memory, with a restart, as its policy says ---
    change(resources("300m", "96Mi"), 3);
    let pod = node
        .wait("web", "has more memory", |pod| {
            settled(resources("300m", "96Mi"))(pod) && is_ready(pod)
        })
        .await;
    assert_eq!(state(&pod, "c")["restartCount"], 1);

    // --- more than the node has is never given, and said so ---
    change(resources("64", "96Mi"), 4);
    let pod = node
        .wait("web", "is refused", |pod| {
            condition(pod, "PodResizePending").is_some()
        })
        .await;
    let pending = condition(&pod, "PodResizePending").unwrap();
    assert_eq!(pending["reason"], "Infeasible");
    assert_eq!(pending["observedGeneration"], 4);
    assert_eq!(state(&pod, "c")["allocatedResources"]["cpu"], "300m");

    // --- what was agreed to outlives the agent ---
    node.stop_agent().await;
    node.start_agent();
    let pod = node
        .wait("web", "is still refused", |pod| {
            condition(pod, "PodResizePending").is_some()
        })
        .await;
    assert_eq!(state(&pod, "c")["allocatedResources"]["cpu"], "300m");
    assert_eq!(state(&pod, "c")["restartCount"], 1);
    node.end().await;
}
