//! Pods find nodes, say why they cannot, and make room for more important ones.

use k8s_openapi::api::{
    core::v1::{Event, Node, Pod},
    resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice},
    scheduling::v1::PriorityClass,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::world::{World, eventually, from, template};

fn pod(name: &str, more: Value) -> Value {
    let mut pod = template("web", "ok");
    pod["metadata"]["name"] = json!(name);
    for (key, value) in more.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn asking(cpu: &str) -> Value {
    json!([{"name": "c", "image": "ok", "resources": {"requests": {"cpu": cpu}}}])
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .is_some_and(|spec| spec.node_name.is_some())
}

fn why_not(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    found.message.clone()
}

#[tokio::test]
async fn an_unschedulable_pod_says_why_and_goes_when_there_is_room() {
    let world = World::start(1).await;
    world
        .create::<Pod>(pod("big", json!({"containers": asking("3")})))
        .await;
    world.until::<Pod>("big", is_bound).await;
    world
        .create::<Pod>(pod("late", json!({"containers": asking("2")})))
        .await;
    let late = world
        .until::<Pod>("late", |pod| why_not(pod).is_some())
        .await;
    assert_eq!(
        why_not(&late).unwrap(),
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: \
         0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    for (reason, action) in [("FailedScheduling", "Scheduling"), ("Scheduled", "Binding")] {
        eventually("an event", async || {
            let of_reason = ListParams::default().fields(&format!("reason={reason}"));
            let found = world.api::<Event>().list(&of_reason).await.unwrap();
            let mut actions = found.iter().map(|event| event.action.as_deref());
            actions.any(|found| found == Some(action))
        })
        .await;
    }
    world.delete::<Pod>("big", Default::default()).await;
    world.until::<Pod>("late", is_bound).await;
}

#[tokio::test]
async fn an_important_pod_drives_out_a_lesser_one() {
    let world = World::start(1).await;
    let classes: Api<PriorityClass> = Api::all(world.client.clone());
    let class = json!({"metadata": {"name": "high"}, "value": 1000});
    classes
        .create(&PostParams::default(), &from(class))
        .await
        .unwrap();
    world
        .create::<Pod>(pod("lesser", json!({"containers": asking("3")})))
        .await;
    world.until::<Pod>("lesser", is_bound).await;
    let important = json!({"containers": asking("3"), "priorityClassName": "high"});
    world.create::<Pod>(pod("important", important)).await;
    let promised = |pod: &Pod| pod.status.clone()?.nominated_node_name;
    world.gone::<Pod>("lesser").await;
    let important = world.until::<Pod>("important", is_bound).await;
    assert_eq!(promised(&important), None, "what was kept is history");
}

#[tokio::test]
async fn gates_cordons_and_other_schedulers_are_respected() {
    let world = World::start(1).await;
    let gated = json!({"schedulingGates": [{"name": "example.com/wait"}]});
    world.create::<Pod>(pod("gated", gated)).await;
    world
        .create::<Pod>(pod("foreign", json!({"schedulerName": "other"})))
        .await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    world.create::<Pod>(pod("plain", json!({}))).await;
    world.until::<Pod>("plain", is_bound).await;
    for name in ["gated", "foreign"] {
        assert!(
            !is_bound(&world.api::<Pod>().get(name).await.unwrap()),
            "{name}"
        );
    }
    world
        .patch::<Pod>("gated", json!({"spec": {"schedulingGates": null}}))
        .await;
    world.until::<Pod>("gated", is_bound).await;

    let cordon = |on: bool| Patch::Merge(json!({"spec": {"unschedulable": on}}));
    nodes
        .patch("n0", &PatchParams::default(), &cordon(true))
        .await
        .unwrap();
    eventually("the cordon shows as a taint", async || {
        let node = nodes.get("n0").await.unwrap();
        node.spec
            .unwrap_or_default()
            .taints
            .is_some_and(|taints| !taints.is_empty())
    })
    .await;
    world.create::<Pod>(pod("waiting", json!({}))).await;
    world
        .until::<Pod>("waiting", |pod| why_not(pod).is_some())
        .await;
    nodes
        .patch("n0", &PatchParams::default(), &cordon(false))
        .await
        .unwrap();
    let waiting = world.until::<Pod>("waiting", is_bound).await;
    assert_eq!(waiting.name_any(), "waiting");
}

#[tokio::test]
async fn a_pod_gets_the_devices_that_its_claim_asks_for() {
    let world = World::start(2).await;
    let params = PostParams::default();
    let slices: Api<ResourceSlice> = Api::all(world.client.clone());
    let classes: Api<DeviceClass> = Api::all(world.client.clone());
    for (node, model) in [("n0", "small"), ("n1", "large")] {
        let slice = json!({"metadata": {"name": node}, "spec": {"driver": "gpu.example", "nodeName": node,
                "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
                "devices": [{"name": "gpu-0", "attributes": {"model": {"string": model}}}]}});
        slices.create(&params, &from(slice)).await.unwrap();
    }
    let driver = r#"device.driver == "gpu.example""#;
    let class = json!({"metadata": {"name": "gpu"}, "spec": {"selectors": [{"cel": {"expression": driver}}]}});
    classes.create(&params, &from(class)).await.unwrap();
    let large = r#"device.attributes["gpu.example"].model == "large""#;
    let selector = json!([{"cel": {"expression": large}}]);
    let template = json!({"metadata": {"name": "large"}, "spec": {"spec": {"devices": {"requests": [
            {"name": "gpu", "exactly": {"deviceClassName": "gpu", "selectors": selector}}]}}}});
    world.create::<ResourceClaimTemplate>(template).await;
    let asking = |name: &str| {
        pod(
            name,
            json!({
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "large"}],
            "containers": [{"name": "c", "image": "ok", "resources": {"claims": [{"name": "gpu"}]}}]}),
        )
    };
    world.create::<Pod>(asking("first")).await;
    let first = world.until::<Pod>("first", is_bound).await;
    assert_eq!(first.spec.unwrap().node_name.as_deref(), Some("n1"));
    let claim = first
        .status
        .unwrap()
        .resource_claim_statuses
        .unwrap()
        .remove(0);
    let claim = claim.resource_claim_name.unwrap();
    let claim = world.api::<ResourceClaim>().get(&claim).await.unwrap();
    let status = claim.status.unwrap();
    assert_eq!(status.reserved_for.unwrap()[0].name, "first");
    let given = status
        .allocation
        .unwrap()
        .devices
        .unwrap()
        .results
        .unwrap()
        .remove(0);
    assert_eq!(
        (given.pool.as_str(), given.device.as_str()),
        ("n1", "gpu-0")
    );

    // --- the device is given once, and again when its pod is gone ---
    world.create::<Pod>(asking("second")).await;
    let second = world.until::<Pod>("second", |pod| {
        why_not(pod).is_some_and(|why| why.contains("cannot allocate all claims"))
    });
    second.await;
    world.delete::<Pod>("first", Default::default()).await;
    world.until::<Pod>("second", is_bound).await;
}
