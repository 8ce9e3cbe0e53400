//! A Deployment grows and shrinks with what its pods use.

use k8s_openapi::{
    api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, PostParams},
    core::GroupVersionKind,
};
use serde_json::json;

use crate::world::{World, eventually, from, template};

async fn start(world: &World, replicas: i32) {
    let mut template = template("web", "ok");
    template["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}});
    world
        .create::<Deployment>(
            json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}}, "template": template}}),
        )
        .await;
    eventually("all pods", async || {
        world.pods("web").await.len() == usize::try_from(replicas).unwrap()
    })
    .await;
    world
        .create::<HorizontalPodAutoscaler>(json!({"metadata": {"name": "web"}, "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 1, "maxReplicas": 4, "metrics": [{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}}))
        .await;
}

fn condition<'a>(
    autoscaler: &'a HorizontalPodAutoscaler,
    kind: &str,
) -> Option<(&'a str, &'a str)> {
    let conditions = autoscaler.status.as_ref()?.conditions.as_ref()?;
    let found = conditions
        .iter()
        .find(|condition| condition.type_ == kind)?;
    Some((&found.status, found.reason.as_deref().unwrap_or_default()))
}

#[tokio::test]
async fn without_metrics_the_conditions_say_so_and_bounds_still_hold() {
    let world = World::start(2).await;
    start(&world, 2).await;
    let unmeasured = world
        .until::<HorizontalPodAutoscaler>("web", |web| {
            condition(web, "AbleToScale") == Some(("True", "SucceededGetScale"))
                && condition(web, "ScalingActive") == Some(("False", "FailedGetResourceMetric"))
                && web
                    .status
                    .as_ref()
                    .and_then(|status| status.current_replicas)
                    == Some(2)
        })
        .await;
    let mut conditions = unmeasured.status.unwrap().conditions.unwrap().into_iter();
    let inactive = conditions.find(|condition| condition.type_ == "ScalingActive");
    assert_eq!(
        inactive.unwrap().message.unwrap(),
        "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource \
         cpu: unable to fetch metrics from resource metrics API: the server could not find the requested resource (get \
         pods.metrics.k8s.io)"
    );
    world
        .patch::<HorizontalPodAutoscaler>("web", json!({"spec": {"maxReplicas": 1}}))
        .await;
    world
        .until::<Deployment>("web", |web| web.spec.as_ref().unwrap().replicas == Some(1))
        .await;
    world
        .until::<HorizontalPodAutoscaler>("web", |web| {
            condition(web, "AbleToScale") == Some(("True", "SucceededRescale"))
        })
        .await;
}

/// Serves the resource metrics API as a custom resource, so that the test is the metrics server.
async fn offer_metrics(world: &World) -> Api<DynamicObject> {
    let definitions: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    let definition = json!({"metadata": {"name": "pods.metrics.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
        "spec": {"group": "metrics.k8s.io", "scope": "Namespaced",
            "names": {"plural": "pods", "singular": "podmetrics", "kind": "PodMetrics"},
            "versions": [{"name": "v1beta1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    definitions
        .create(&PostParams::default(), &from(definition))
        .await
        .unwrap();
    let kind = GroupVersionKind::gvk("metrics.k8s.io", "v1beta1", "PodMetrics");
    let resource = ApiResource::from_gvk_with_plural(&kind, "pods");
    let api = Api::namespaced_with(world.client.clone(), "default", &resource);
    eventually("metrics are served", async || {
        api.list(&Default::default()).await.is_ok()
    })
    .await;
    api
}

#[tokio::test]
async fn a_deployment_grows_with_its_load() {
    let world = World::start(2).await;
    let metrics = offer_metrics(&world).await;
    // Pods of the first minutes do not count by their CPU: so measure what has no such rule.
    start(&world, 2).await;
    for pod in world.pods("web").await {
        let sample = json!({"apiVersion": "metrics.k8s.io/v1beta1", "kind": "PodMetrics",
            "metadata": {"name": pod.name_any(), "labels": {"app": "web"}},
            "timestamp": jiff::Timestamp::now().to_string(), "window": "30s",
            "containers": [{"name": "c", "usage": {"cpu": "100m", "memory": "200Mi"}}]});
        metrics
            .create(&PostParams::default(), &from(sample))
            .await
            .unwrap();
    }
    let by_memory = json!([{"type": "Resource", "resource": {"name": "memory",
        "target": {"type": "AverageValue", "averageValue": "100Mi"}}}]);
    world
        .patch::<HorizontalPodAutoscaler>("web", json!({"spec": {"metrics": by_memory}}))
        .await;
    world
        .until::<Deployment>("web", |web| web.spec.as_ref().unwrap().replicas == Some(4))
        .await;
    let web = world
        .until::<HorizontalPodAutoscaler>("web", |web| {
            condition(web, "ScalingActive") == Some(("True", "ValidMetricFound"))
        })
        .await;
    let status = web.status.unwrap();
    let shown = status.current_metrics.unwrap().remove(0).resource.unwrap();
    assert_eq!(shown.current.average_value.unwrap().0, "209715200");
    assert_eq!(status.desired_replicas, 4);
}
