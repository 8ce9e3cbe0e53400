//! What becomes of dependents and of a namespace's content.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        batch::v1::Job,
        core::v1::{ConfigMap, Namespace, Pod, ServiceAccount},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::json;

use crate::world::{World, eventually, from, template, until};

async fn deployed(world: &World) -> ReplicaSet {
    let web = json!({"metadata": {"name": "web"}, "spec": {"replicas": 3,
        "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "ok:1")}});
    world.create::<Deployment>(web).await;
    world
        .until::<Deployment>("web", |web| {
            web.status
                .as_ref()
                .is_some_and(|status| status.available_replicas == Some(3))
        })
        .await;
    world
        .api::<ReplicaSet>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .remove(0)
}

#[tokio::test]
async fn background_deletion_takes_the_whole_tree() {
    let world = World::start(1).await;
    let set = deployed(&world).await;
    world
        .delete::<Deployment>("web", DeleteParams::background())
        .await;
    world.gone::<ReplicaSet>(&set.name_any()).await;
    eventually("no pods", async || world.pods("web").await.is_empty()).await;
}

#[tokio::test]
async fn foreground_deletion_ends_with_the_owner() {
    let world = World::start(1).await;
    let set = deployed(&world).await;
    world
        .delete::<Deployment>("web", DeleteParams::foreground())
        .await;
    world.gone::<Deployment>("web").await;
    assert!(
        world
            .api::<ReplicaSet>()
            .get_opt(&set.name_any())
            .await
            .unwrap()
            .is_none()
    );
    let pods = world
        .api::<Pod>()
        .list(&ListParams::default().labels("app=web"))
        .await
        .unwrap();
    assert!(pods.items.is_empty(), "the owner goes last");
}

#[tokio::test]
async fn orphaned_dependents_live_on_without_an_owner() {
    let world = World::start(1).await;
    let set = deployed(&world).await;
    world
        .delete::<Deployment>("web", DeleteParams::orphan())
        .await;
    world.gone::<Deployment>("web").await;
    let set = world
        .until::<ReplicaSet>(&set.name_any(), |set| set.owner_references().is_empty())
        .await;
    assert!(set.metadata.deletion_timestamp.is_none());
    assert_eq!(world.pods("web").await.len(), 3);
}

#[tokio::test]
async fn a_deleted_job_holds_none_of_its_pods() {
    let world = World::start(1).await;
    // No node takes them, so that no kubelet ends them either.
    let job = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"parallelism": 2, "completions": 2, "template":
            {"metadata": {"labels": {"app": name}}, "spec": {"restartPolicy": "Never",
            "nodeSelector": {"no": "such"}, "containers": [{"name": "c", "image": "ok:1"}]}}}})
    };
    for name in ["dropped", "orphaning"] {
        world.create::<Job>(job(name)).await;
        eventually("two pods", async || world.pods(name).await.len() == 2).await;
    }
    world
        .delete::<Job>("dropped", DeleteParams::background())
        .await;
    world
        .delete::<Job>("orphaning", DeleteParams::orphan())
        .await;
    eventually("no pods", async || world.pods("dropped").await.is_empty()).await;
    eventually("pods that nobody owns or holds", async || {
        let pods = world.pods("orphaning").await;
        let free = |pod: &Pod| pod.owner_references().is_empty() && pod.finalizers().is_empty();
        pods.len() == 2 && pods.iter().all(free)
    })
    .await;
}

#[tokio::test]
async fn an_object_whose_owner_never_was_is_collected() {
    let world = World::start(0).await;
    let stray = json!({"metadata": {"name": "stray", "ownerReferences": [{"apiVersion": "v1",
        "kind": "ConfigMap", "name": "none", "uid": "00000000-0000-0000-0000-000000000000"}]}});
    world.create::<ConfigMap>(stray).await;
    world.gone::<ConfigMap>("stray").await;
}

#[tokio::test]
async fn a_namespace_is_furnished_and_emptied_and_says_what_holds_it() {
    let world = World::start(1).await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let team = from(json!({"metadata": {"name": "team"}}));
    namespaces
        .create(&PostParams::default(), &team)
        .await
        .unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), "team");
    until(&accounts, "default", |_| true).await;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "team");
    let ca = until(&maps, "kube-root-ca.crt", |_| true).await;
    assert_eq!(ca.data.unwrap()["ca.crt"], "the CA");

    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    maps.create(&PostParams::default(), &from(held))
        .await
        .unwrap();
    namespaces
        .delete("team", &DeleteParams::default())
        .await
        .unwrap();
    let holds = |namespace: &Namespace| {
        let status = namespace.status.clone().unwrap_or_default();
        status.conditions.iter().flatten().any(|condition| {
            condition.type_ == "NamespaceFinalizersRemaining" && condition.status == "True"
        })
    };
    until(&namespaces, "team", holds).await;
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("held", &PatchParams::default(), &release)
        .await
        .unwrap();
    eventually("the namespace is gone", async || {
        namespaces.get_opt("team").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn a_namespace_goes_although_a_kind_in_it_went_first() {
    let world = World::start(1).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    let definition = json!({"metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": {"type": "object"}}}]}});
    definitions
        .create(&PostParams::default(), &from(definition))
        .await
        .unwrap();
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let kind = GroupVersionKind::gvk("example.com", "v1", "Widget");
    let resource = ApiResource::from_gvk_with_plural(&kind, "widgets");
    let widgets: Api<DynamicObject> = Api::all_with(world.client.clone(), &resource);
    eventually("widgets are served", async || {
        widgets.list(&ListParams::default()).await.is_ok()
    })
    .await;
    // The first one makes the controller read which kinds there are.
    for (name, with_definition) in [("first", true), ("second", false)] {
        namespaces
            .create(
                &PostParams::default(),
                &from(json!({"metadata": {"name": name}})),
            )
            .await
            .unwrap();
        if !with_definition {
            definitions
                .delete("widgets.example.com", &DeleteParams::default())
                .await
                .unwrap();
            eventually("widgets are not served", async || {
                widgets.list(&ListParams::default()).await.is_err()
            })
            .await;
        }
        namespaces
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
        eventually("the namespace is gone", async || {
            namespaces.get_opt(name).await.unwrap().is_none()
        })
        .await;
    }
}
