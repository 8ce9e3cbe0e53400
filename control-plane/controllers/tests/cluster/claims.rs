//! ResourceClaims that pods describe by a template.

use k8s_openapi::api::{
    core::v1::Pod,
    resource::v1::{ResourceClaim, ResourceClaimTemplate},
};
use kube::{ResourceExt, api::DeleteParams};
use serde_json::json;

use crate::world::{World, template};

#[tokio::test]
async fn a_pod_gets_a_claim_from_its_template_and_waits_for_devices() {
    let world = World::start(1).await;
    let devices = json!({"devices": {"requests": [
        {"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com"}}]}});
    world
        .create::<ResourceClaimTemplate>(
            json!({"metadata": {"name": "gpu"}, "spec": {"spec": devices}}),
        )
        .await;
    let mut pod = template("train", "ok");
    pod["metadata"]["name"] = json!("train");
    pod["spec"]["resourceClaims"] = json!([{"name": "card", "resourceClaimTemplateName": "gpu"}]);
    pod["spec"]["containers"][0]["resources"] = json!({"claims": [{"name": "card"}]});
    let pod = world.create::<Pod>(pod).await;
    let noted = world
        .until::<Pod>("train", |pod| {
            let status = pod.status.as_ref();
            status.is_some_and(|status| status.resource_claim_statuses.is_some())
        })
        .await;
    let names = noted.status.unwrap().resource_claim_statuses.unwrap();
    let name = names[0].resource_claim_name.clone().unwrap();
    let claim = world.until::<ResourceClaim>(&name, |_| true).await;
    assert_eq!(claim.owner_references()[0].uid, pod.uid().unwrap());
    // Nobody offers such a device.
    let waiting = world
        .until::<Pod>("train", |pod| {
            let status = pod.status.as_ref();
            let mut conditions = status
                .iter()
                .flat_map(|status| status.conditions.iter().flatten());
            conditions
                .any(|c| c.type_ == "PodScheduled" && c.reason.as_deref() == Some("Unschedulable"))
        })
        .await;
    assert_eq!(waiting.spec.unwrap().node_name, None);

    world.delete::<Pod>("train", DeleteParams::default()).await;
    world.gone::<ResourceClaim>(&name).await;
}
