//! Pods that the node does not take.

use serde_json::{Value, json};

use crate::node::{Node, eventually, is_ready, sh};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_does_not_fit_fails_at_once_and_leaves_nothing() {
    let Some(node) = Node::start().await else {
        return;
    };
    let spec = |cpu: &str| {
        json!({"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "c", "command": sh("sleep 100000"),
            "resources": {"requests": {"cpu": cpu}},
        }]})
    };
    node.create("first", spec("1500m"));
    node.wait("first", "becomes ready", is_ready).await;
    node.create("second", spec("1"));
    let refused = node
        .wait("second", "is refused", |pod| {
            pod["status"]["phase"] == "Failed"
        })
        .await;
    assert_eq!(refused["status"]["reason"], "OutOfcpu");
    assert_eq!(
        refused["status"]["message"],
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000, used: 1500, \
         capacity: 2000"
    );
    assert_eq!(refused["status"]["observedGeneration"], 1);
    assert!(
        node.events("second")
            .iter()
            .any(|event| event.starts_with("OutOfcpu"))
    );

    let mut sysctl = spec("0");
    sysctl["securityContext"] = json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]});
    node.create("third", sysctl);
    let refused = node
        .wait("third", "is refused", |pod| {
            pod["status"]["phase"] == "Failed"
        })
        .await;
    assert_eq!(refused["status"]["reason"], "SysctlForbidden");

    // --- who wants users of its own does not run as the host's where the runtime cannot give them ---
    let told = node.containerd.runtime.status().await.unwrap();
    let mut handlers = told.runtime_handlers.into_iter();
    if !handlers.any(|handler| handler.features.is_some_and(|can| can.user_namespaces)) {
        let mut own_users = spec("0");
        own_users["hostUsers"] = json!(false);
        node.create("own-users", own_users);
        let told = async || {
            let events = node.events("own-users");
            events
                .iter()
                .any(|event| event.contains("does not support user namespaces"))
        };
        assert!(eventually(told).await, "{:#?}", node.events("own-users"));
        let waiting = node.api.get("pods", "own-users").unwrap();
        assert_eq!(waiting["status"]["phase"], "Pending");
    }

    // --- what the first one held goes to whoever comes after it ---
    node.delete("first").await;
    node.create("fourth", spec("2"));
    node.wait("fourth", "becomes ready", is_ready).await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_held_against_the_node_that_the_scheduler_saw() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    let spec = |disk: &str| {
        json!({"terminationGracePeriodSeconds": 1, "nodeSelector": {"disk": disk},
            "containers": [{"name": "c", "command": sh("sleep 100000")}]})
    };
    let object = |labels: Value| json!({"metadata": {"name": "n1", "labels": labels}});
    node.stop_agent().await;
    node.api.put("nodes", object(json!({"disk": "none"})));
    node.start_agent();
    node.create("early", spec("ssd"));
    let refused = node
        .wait("early", "is refused", |pod| {
            pod["status"]["phase"] == "Failed"
        })
        .await;
    assert_eq!(refused["status"]["reason"], "NodeAffinity");

    // The label is there, and the pod comes before the news of it.
    node.api.put_unseen("nodes", object(json!({"disk": "ssd"})));
    node.create("late", spec("ssd"));
    node.wait("late", "becomes ready", is_ready).await;
    node.end().await;
}
