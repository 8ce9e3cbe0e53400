//! Claims, volumes and the pods that use them.

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use crate::world::{World, eventually, from, until};

fn cluster<K>(world: &World) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope, DynamicType = ()>,
{
    Api::all(world.client.clone())
}

async fn volume(world: &World, name: &str, more: Value) {
    let mut object = json!({"metadata": {"name": name}, "spec": {
        "capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": "/srv/data"}, "persistentVolumeReclaimPolicy": "Retain"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    cluster::<PersistentVolume>(world)
        .create(&PostParams::default(), &from(object))
        .await
        .unwrap();
}

fn claim(name: &str, class: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}}})
}

fn user(name: &str, volume: Value) -> Value {
    let mut volume = volume;
    volume["name"] = json!("data");
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"volumes": [volume],
        "containers": [{"name": "c", "image": "ok",
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}})
}

fn volume_phase(volume: &PersistentVolume) -> Option<&str> {
    volume.status.as_ref()?.phase.as_deref()
}

fn claim_phase(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.status.as_ref()?.phase.as_deref()
}

fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

#[tokio::test]
async fn a_claim_gets_a_volume_that_outlives_it_and_neither_goes_while_used() {
    let world = World::start(1).await;
    volume(&world, "disk", json!({})).await;
    world
        .create::<PersistentVolumeClaim>(claim("data", ""))
        .await;
    let bound = world
        .until::<PersistentVolumeClaim>("data", |claim| claim_phase(claim) == Some("Bound"))
        .await;
    assert_eq!(bound.spec.unwrap().volume_name.as_deref(), Some("disk"));
    assert_eq!(bound.status.unwrap().capacity.unwrap()["storage"].0, "5Gi");
    let volumes = cluster::<PersistentVolume>(&world);
    until(&volumes, "disk", |disk| volume_phase(disk) == Some("Bound")).await;

    let by_name = json!({"persistentVolumeClaim": {"claimName": "data"}});
    world.create::<Pod>(user("user", by_name)).await;
    world.until::<Pod>("user", |pod| node(pod).is_some()).await;
    world
        .delete::<PersistentVolumeClaim>("data", DeleteParams::default())
        .await;
    volumes
        .delete("disk", &DeleteParams::default())
        .await
        .unwrap();
    let claims = world.api::<PersistentVolumeClaim>();
    let held = claims.get("data").await.unwrap();
    assert_eq!(held.finalizers(), ["kubernetes.io/pvc-protection"]);
    assert!(held.metadata.deletion_timestamp.is_some());

    world.delete::<Pod>("user", DeleteParams::default()).await;
    world.gone::<PersistentVolumeClaim>("data").await;
    eventually("released volume gone", async || {
        volumes.get_opt("disk").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn a_volume_that_is_kept_is_released_and_a_lost_one_is_told() {
    let world = World::start(0).await;
    volume(&world, "kept", json!({})).await;
    let volumes = cluster::<PersistentVolume>(&world);
    world
        .create::<PersistentVolumeClaim>(claim("first", ""))
        .await;
    until(&volumes, "kept", |kept| volume_phase(kept) == Some("Bound")).await;
    world
        .delete::<PersistentVolumeClaim>("first", DeleteParams::default())
        .await;
    until(&volumes, "kept", |kept| {
        volume_phase(kept) == Some("Released")
    })
    .await;

    volume(
        &world,
        "torn",
        json!({"claimRef": {"name": "second", "namespace": "default"}}),
    )
    .await;
    world
        .create::<PersistentVolumeClaim>(claim("second", ""))
        .await;
    world
        .until::<PersistentVolumeClaim>("second", |claim| claim_phase(claim) == Some("Bound"))
        .await;
    let torn = until(&volumes, "torn", |torn| volume_phase(torn) == Some("Bound")).await;
    // Somebody tears it away by force.
    let patch = json!({"metadata": {"finalizers": null}});
    volumes
        .delete("torn", &DeleteParams::default())
        .await
        .unwrap();
    let patch = kube::api::Patch::Merge(patch);
    volumes
        .patch(&torn.name_any(), &Default::default(), &patch)
        .await
        .unwrap();
    world
        .until::<PersistentVolumeClaim>("second", |claim| claim_phase(claim) == Some("Lost"))
        .await;
}

#[tokio::test]
async fn a_pod_goes_where_a_local_volume_waits_for_it() {
    let world = World::start(3).await;
    let class = json!({"metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer"});
    cluster::<StorageClass>(&world)
        .create(&PostParams::default(), &from(class))
        .await
        .unwrap();
    let on_n1 = json!({"storageClassName": "local", "nodeAffinity": {"required": {
        "nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}}});
    volume(&world, "disk", on_n1).await;
    world
        .create::<PersistentVolumeClaim>(claim("data", "local"))
        .await;
    let volumes = cluster::<PersistentVolume>(&world);
    until(&volumes, "disk", |disk| {
        volume_phase(disk) == Some("Available")
    })
    .await;
    world
        .until::<PersistentVolumeClaim>("data", |claim| claim_phase(claim) == Some("Pending"))
        .await;

    let by_name = json!({"persistentVolumeClaim": {"claimName": "data"}});
    world.create::<Pod>(user("user", by_name)).await;
    let placed = world.until::<Pod>("user", |pod| node(pod).is_some()).await;
    assert_eq!(node(&placed), Some("n1"));
    world
        .until::<PersistentVolumeClaim>("data", |claim| claim_phase(claim) == Some("Bound"))
        .await;
}

#[tokio::test]
async fn an_ephemeral_volume_has_a_claim_of_its_pods_own() {
    let world = World::start(1).await;
    volume(&world, "disk", json!({})).await;
    let template = json!({"ephemeral": {"volumeClaimTemplate": {"spec": claim("x", "")["spec"]}}});
    let pod = world.create::<Pod>(user("user", template)).await;
    let claim = world
        .until::<PersistentVolumeClaim>("user-data", |claim| claim_phase(claim) == Some("Bound"))
        .await;
    assert_eq!(claim.owner_references()[0].uid, pod.uid().unwrap());
    world.until::<Pod>("user", |pod| node(pod).is_some()).await;
    world.delete::<Pod>("user", DeleteParams::default()).await;
    world.gone::<PersistentVolumeClaim>("user-data").await;
}
