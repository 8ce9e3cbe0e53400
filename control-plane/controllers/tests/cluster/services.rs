//! Services know their pods.

use k8s_openapi::api::{
    core::v1::{Endpoints, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{ResourceExt, api::ListParams};
use serde_json::json;

use crate::world::{World, eventually, template};

async fn slices(world: &World) -> Vec<EndpointSlice> {
    let of_web = ListParams::default().labels("kubernetes.io/service-name=web");
    world
        .api::<EndpointSlice>()
        .list(&of_web)
        .await
        .unwrap()
        .items
}

/// Ready and not ready addresses over all slices.
async fn counts(world: &World) -> (usize, usize) {
    let slices = slices(world).await;
    let ready = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        endpoint
            .conditions
            .as_ref()
            .is_some_and(|conditions| conditions.ready == Some(true))
    };
    let all: Vec<_> = slices.iter().flat_map(|slice| &slice.endpoints).collect();
    let ready = all.iter().filter(|endpoint| ready(endpoint)).count();
    (ready, all.len() - ready)
}

#[tokio::test]
async fn endpoints_follow_pods_as_they_come_change_and_go() {
    let world = World::start(1).await;
    let service = json!({"metadata": {"name": "web", "labels": {"team": "a"}},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    world.create::<Service>(service).await;
    eventually("an empty slice", async || slices(&world).await.len() == 1).await;
    for (name, image) in [("a", "ok"), ("b", "ok"), ("c", "unready")] {
        let mut pod = template("web", image);
        pod["metadata"]["name"] = json!(name);
        world.create::<Pod>(pod).await;
    }
    eventually("two ready, one not", async || {
        counts(&world).await == (2, 1)
    })
    .await;
    let slice = slices(&world).await.remove(0);
    assert_eq!(slice.labels()["team"], "a");
    assert_eq!(slice.ports.unwrap()[0].port, Some(8080));
    let legacy = world
        .until::<Endpoints>("web", |endpoints| {
            endpoints.subsets.iter().flatten().any(|subset| {
                subset.addresses.as_ref().map(Vec::len) == Some(2)
                    && subset.not_ready_addresses.as_ref().map(Vec::len) == Some(1)
            })
        })
        .await;
    assert_eq!(legacy.labels()["team"], "a");

    world.delete::<Pod>("a", Default::default()).await;
    eventually("one ready, one not", async || {
        counts(&world).await == (1, 1)
    })
    .await;
    world.delete::<Service>("web", Default::default()).await;
    eventually("no slices", async || slices(&world).await.is_empty()).await;
    world.gone::<Endpoints>("web").await;
}

#[tokio::test]
async fn endpoints_of_a_service_without_selector_are_mirrored() {
    let world = World::start(0).await;
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
    world.create::<Service>(service).await;
    let endpoints = json!({"metadata": {"name": "web"}, "subsets": [
        {"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 8080}]}]});
    world.create::<Endpoints>(endpoints).await;
    eventually("mirrored", async || counts(&world).await == (1, 0)).await;
    world.delete::<Endpoints>("web", Default::default()).await;
    eventually("mirror gone", async || slices(&world).await.is_empty()).await;
}
