//! Services know their pods.

use k8s_openapi::api::{
    core::v1::{Endpoints, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;

use windlass_controllers::ControllersConfig;

use crate::world::{World, eventually, template, until};

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

fn given(service: &Service) -> Vec<String> {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    ingress
        .into_iter()
        .flatten()
        .filter_map(|ingress| ingress.ip.clone())
        .collect()
}

#[tokio::test]
async fn load_balancers_take_addresses_from_the_pool_and_give_them_back() {
    let config = ControllersConfig {
        load_balancer_pools: vec!["192.0.2.10/31".parse().unwrap()],
        ..ControllersConfig::default()
    };
    let world = World::start_with(0, config).await;
    let balancer = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"type": "LoadBalancer",
            "selector": {"app": name}, "ports": [{"port": 80}]}})
    };
    for name in ["a", "b"] {
        world.create::<Service>(balancer(name)).await;
        world
            .until::<Service>(name, |service| given(service).len() == 1)
            .await;
    }
    world.create::<Service>(balancer("c")).await;
    let a = world
        .until::<Service>("a", |service| !given(service).is_empty())
        .await;
    // No cloud and no class of ours: left to whoever it is for.
    let mut other = balancer("other");
    other["spec"]["loadBalancerClass"] = json!("example.com/cloud");
    world.create::<Service>(other).await;

    world
        .patch::<Service>("a", json!({"spec": {"type": "ClusterIP"}}))
        .await;
    world
        .until::<Service>("a", |service| given(service).is_empty())
        .await;
    let c = world
        .until::<Service>("c", |service| !given(service).is_empty())
        .await;
    assert_eq!(given(&c), given(&a));
    let other = world.until::<Service>("other", |_| true).await;
    assert!(given(&other).is_empty());
}

#[tokio::test]
async fn a_range_of_cluster_ips_stays_while_services_have_addresses_from_it() {
    let world = World::start(0).await;
    let ranges: Api<ServiceCIDR> = Api::all(world.client.clone());
    let ready = |range: &ServiceCIDR| {
        let conditions = range
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref());
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    eventually("the default range", async || {
        ranges.get_opt("kubernetes").await.unwrap().is_some()
    })
    .await;
    until(&ranges, "kubernetes", |range| {
        ready(range) && !range.finalizers().is_empty()
    })
    .await;
    // The `kubernetes` Service has its address from there.
    ranges
        .delete("kubernetes", &Default::default())
        .await
        .unwrap();
    until(&ranges, "kubernetes", |range| {
        range.metadata.deletion_timestamp.is_some() && !ready(range)
    })
    .await;
}
