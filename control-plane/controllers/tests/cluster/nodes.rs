//! Nodes get networks, and lose their pods when they fall silent.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt, api::PostParams};
use serde_json::json;
use windlass_controllers::ControllersConfig;

use crate::world::{World, from, template, until};

#[tokio::test]
async fn every_node_gets_a_network_of_its_own() {
    let world = World::start(3).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let mut given = Vec::new();
    for name in ["n0", "n1", "n2"] {
        let node = until(&nodes, name, |node| {
            node.spec
                .as_ref()
                .is_some_and(|spec| spec.pod_cidr.is_some())
        })
        .await;
        given.push(node.spec.unwrap().pod_cidr.unwrap());
    }
    given.sort();
    assert_eq!(given, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]);
}

#[tokio::test]
async fn a_silent_node_is_tainted_and_its_pods_leave_when_they_tolerate_it_no_longer() {
    let config = ControllersConfig {
        node_monitor_grace_period: Duration::from_secs(2),
        node_monitor_period: Duration::from_millis(200),
        ..ControllersConfig::default()
    };
    let world = World::start_with(2, config).await;
    let unreachable = |seconds: i64| {
        json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": seconds}])
    };
    let nodes: Api<Node> = Api::all(world.client.clone());
    // n0 lives on, n1 falls silent once its pods run there.
    let silent = AtomicBool::new(false);
    let alive = async {
        loop {
            world.heartbeat("n0").await;
            if !silent.load(Ordering::Relaxed) {
                world.heartbeat("n1").await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let silenced = async {
        for (name, seconds) in [("stays", 3600), ("leaves", 1)] {
            let mut pod = template("web", "ok");
            pod["metadata"]["name"] = json!(name);
            pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n1"});
            pod["spec"]["tolerations"] = unreachable(seconds);
            world.create::<Pod>(pod).await;
            world.until::<Pod>(name, is_ready).await;
        }
        silent.store(true, Ordering::Relaxed);
        until(&nodes, "n1", |node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone());
            taints.iter().flatten().any(|taint| {
                taint.key == "node.kubernetes.io/unreachable" && taint.effect == "NoExecute"
            })
        })
        .await;
        world.gone::<Pod>("leaves").await;
        let stays = world.until::<Pod>("stays", |pod| !is_ready(pod)).await;
        assert!(stays.metadata.deletion_timestamp.is_none());
        silent.store(false, Ordering::Relaxed);
        until(&nodes, "n1", |node| {
            node.spec
                .as_ref()
                .is_some_and(|spec| spec.taints.iter().flatten().count() == 0)
        })
        .await;
    };
    tokio::select! {
        () = alive => unreachable!("a node lives for ever"),
        () = silenced => {}
    }
}

fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

#[tokio::test]
async fn a_cordoned_node_is_tainted_at_once() {
    let world = World::start(0).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let node = json!({"metadata": {"name": "n"}, "spec": {"unschedulable": true}});
    nodes
        .create(&PostParams::default(), &from(node))
        .await
        .unwrap();
    let node = until(&nodes, "n", |node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone());
        taints
            .iter()
            .flatten()
            .any(|t| t.key == "node.kubernetes.io/unschedulable")
    })
    .await;
    assert_eq!(node.name_any(), "n");
}
