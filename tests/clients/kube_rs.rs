//! kube-rs, as operators are written with it: a derived custom resource, applied and waited for, its status and scale,
//! watches in both ways to begin, pages, discovery.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use futures::{TryStreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::{Discovery, Scope};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, CustomResource, CustomResourceExt, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::control_plane::ControlPlane;

const CRD: &str = "ships.example.test";

#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "example.test",
    version = "v1",
    kind = "Ship",
    namespaced,
    status = "ShipStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas"
    )
)]
#[serde(rename_all = "camelCase")]
struct ShipSpec {
    #[schemars(length(min = 3))]
    name: String,
    replicas: i32,
    /// Null is kept, and not the same as nothing.
    home_port: Option<String>,
    #[serde(default = "full")]
    speed: String,
}

fn full() -> String {
    "full".to_owned()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct ShipStatus {
    replicas: i32,
}

#[tokio::test]
async fn kube_rs_does_its_work() -> Result<()> {
    let control_plane = ControlPlane::start("kube-rs");
    let kubeconfig = Kubeconfig::read_from(control_plane.kubeconfig())?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    a_derived_resource(&client).await?;
    for how in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        a_watch(&client, how).await?;
    }
    entries_and_pages(&client).await
}

async fn a_derived_resource(client: &Client) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let apply = PatchParams::apply("ships").force();
    let definition = Patch::Apply(Ship::crd());
    definitions.patch(CRD, &apply, &definition).await?;
    await_condition(definitions.clone(), CRD, conditions::is_crd_established()).await?;

    let discovered = Discovery::new(client.clone()).run().await?;
    let group = discovered.get("example.test").context("its group")?;
    let (resource, known) = group.recommended_kind("Ship").context("its kind")?;
    ensure!(resource.plural == "ships" && known.scope == Scope::Namespaced);
    ensure!(known.subresources.len() == 2, "{:?}", known.subresources);

    let ships: Api<Ship> = Api::default_namespaced(client.clone());
    let spec = ShipSpec {
        name: "Kestrel".to_owned(),
        replicas: 1,
        home_port: None,
        speed: full(),
    };
    let ship = Ship::new("kestrel", spec.clone());
    let made = ships.patch("kestrel", &apply, &Patch::Apply(&ship)).await?;
    ensure!(made.spec == spec && made.status.is_none());
    let more = json!({"apiVersion": "example.test/v1", "kind": "Ship", "spec": {"name": "Kestrel", "replicas": 2}});
    let made = ships.patch("kestrel", &apply, &Patch::Apply(more)).await?;
    // What was applied before and is not any more is gone, and has its default back.
    ensure!(
        made.spec.replicas == 2 && made.spec.speed == "full",
        "{made:?}"
    );

    let status = Patch::Merge(json!({"status": {"replicas": 1}}));
    let merge = PatchParams::default();
    let told = ships.patch_status("kestrel", &merge, &status).await?;
    ensure!(told.status == Some(ShipStatus { replicas: 1 }));
    let scale = Patch::Merge(json!({"spec": {"replicas": 3}}));
    let scaled = ships.patch_scale("kestrel", &merge, &scale).await?;
    let wanted = scaled.spec.and_then(|spec| spec.replicas);
    let present = scaled.status.map(|status| status.replicas);
    ensure!((wanted, present) == (Some(3), Some(1)));

    let short = Ship::new(
        "short",
        ShipSpec {
            name: "K".to_owned(),
            ..spec
        },
    );
    let Err(kube::Error::Api(refused)) = ships.create(&PostParams::default(), &short).await else {
        anyhow::bail!("a ship with a short name is made");
    };
    ensure!(
        refused.code == 422 && refused.reason == "Invalid",
        "{refused:?}"
    );
    ensure!(
        refused
            .message
            .contains("spec.name in body should be at least 3 chars long")
    );

    // Gone at once, and so answered with a Status.
    ensure!(
        ships
            .delete("kestrel", &DeleteParams::default())
            .await?
            .is_right()
    );
    definitions.delete(CRD, &DeleteParams::default()).await?;
    Ok(())
}

fn config_map(name: &str, watched: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([("watched".to_owned(), watched.to_owned())])),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

/// What there is comes first, then its end, then what happens.
async fn a_watch(client: &Client, how: watcher::Config) -> Result<()> {
    let label = format!("{:?}", how.initial_list_strategy).to_lowercase();
    let label = label
        .split(|c: char| !c.is_alphanumeric())
        .next()
        .unwrap_or_default();
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let new = PostParams::default();
    let [first, second] = ["first", "second"].map(|which| format!("{label}-{which}"));
    maps.create(&new, &config_map(&first, label)).await?;
    // kube-rs streams from version 0, which may be older than a write; after a consistent list it is not.
    maps.list_metadata(&ListParams::default()).await?;
    let events = watcher(maps.clone(), how.labels(&format!("watched={label}")));
    pin_mut!(events);
    let mut seen = Vec::new();
    while let Some(event) = events.try_next().await? {
        let what = match &event {
            Event::Init => "init".to_owned(),
            Event::InitApply(map) => format!("has {}", map.name_any()),
            Event::InitDone => "done".to_owned(),
            Event::Apply(map) => format!("applied {}", map.name_any()),
            Event::Delete(map) => format!("deleted {}", map.name_any()),
        };
        seen.push(what);
        match event {
            Event::InitDone => {
                maps.create(&new, &config_map(&second, label)).await?;
            }
            Event::Apply(map) => {
                maps.delete(&map.name_any(), &DeleteParams::default())
                    .await?;
            }
            Event::Delete(_) => break,
            _ => {}
        }
    }
    let expected = [
        "init".to_owned(),
        format!("has {first}"),
        "done".to_owned(),
        format!("applied {second}"),
        format!("deleted {second}"),
    ];
    ensure!(seen == expected, "{seen:?}");
    Ok(())
}

async fn entries_and_pages(client: &Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let new = PostParams::default();
    for number in 0..5 {
        let name = format!("page-{number}");
        let entry = maps.entry(&name).await?;
        let mut entry = entry.or_insert(|| config_map(&name, "page"));
        entry.commit(&new).await?;
        // Written again it is changed, and no conflict.
        entry.get_mut().data = Some(BTreeMap::from([("k".to_owned(), "v".to_owned())]));
        entry.commit(&new).await?;
    }
    let mut pages = ListParams::default().labels("watched=page").limit(2);
    let (mut names, mut asked) = (Vec::new(), 0);
    loop {
        let page = maps.list(&pages).await?;
        asked += 1;
        names.extend(page.iter().map(ResourceExt::name_any));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => pages = pages.continue_token(&token),
            None => break,
        }
    }
    ensure!(asked == 3 && names.len() == 5, "{asked} pages: {names:?}");
    let selected = ListParams::default().labels("watched=page");
    ensure!(maps.list_metadata(&selected).await?.items.len() == 5);
    let gone = maps
        .delete_collection(&DeleteParams::default(), &selected)
        .await?;
    ensure!(gone.left().is_some_and(|list| list.items.len() == 5));
    Ok(())
}
