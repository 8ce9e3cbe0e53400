//! What every cluster holds from its first start on: the default RBAC policy, the
//! system's priority classes and the kube-dns Service.

use std::net::IpAddr;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use windlass_apiserver::authz::default_policy;

const AT_ONCE: usize = 32;

const PRIORITY_CLASSES: [(&str, i32, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// Makes what is missing; the Service of cluster DNS gets `dns`.
pub(crate) async fn defaults(client: &Client, dns: Option<IpAddr>) -> anyhow::Result<()> {
    default_rbac(client)
        .await
        .context("create the default RBAC policy")?;
    priority_classes(client).await?;
    match dns {
        Some(address) => cluster_dns(client, address).await,
        None => Ok(()),
    }
}

/// Creates the default roles and bindings that are missing and adds the rules and subjects that existing ones
/// lack, unless their `autoupdate` annotation is `false`. Never takes anything away, as upstream.
async fn default_rbac(client: &Client) -> anyhow::Result<()> {
    let objects = futures::stream::iter(default_policy::objects());
    // At once: what is written together waits for the disk together.
    let made = objects
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, async |(resource, wanted)| {
            let kind = wanted["kind"].as_str().unwrap_or_default().to_owned();
            let gvk = GroupVersionKind::gvk("rbac.authorization.k8s.io", "v1", &kind);
            let resource = ApiResource::from_gvk_with_plural(&gvk, resource);
            let api: Api<DynamicObject> = match wanted["metadata"]["namespace"].as_str() {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                None => Api::all_with(client.clone(), &resource),
            };
            let name = wanted["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            reconcile(&api, &name, wanted)
                .await
                .with_context(|| format!("default {kind} {name}"))
        });
    made.await
}

/// Creates the PriorityClasses that every cluster has.
async fn priority_classes(client: &Client) -> anyhow::Result<()> {
    let api: Api<PriorityClass> = Api::all(client.clone());
    for (name, value, description) in PRIORITY_CLASSES {
        let mut class = PriorityClass {
            value,
            description: Some(description.to_owned()),
            ..Default::default()
        };
        class.metadata.name = Some(name.to_owned());
        match api.create(&PostParams::default(), &class).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error).with_context(|| format!("priority class {name}")),
        }
    }
    Ok(())
}

/// Creates the Service at whose address pods ask for names, unless the cluster has one already.
///
/// It selects no pods: the node agents answer, and each publishes itself in an EndpointSlice of its own.
async fn cluster_dns(client: &Client, address: IpAddr) -> anyhow::Result<()> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "WindlassDNS",
            },
        },
        "spec": {
            "clusterIP": address.to_string(),
            "trafficDistribution": "PreferSameNode",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                {"name": "metrics", "port": 9153, "protocol": "TCP"},
            ],
        },
    });
    let services: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    // Looked up first: a second creation would fail on the taken address, not on the name.
    if services
        .get_opt("kube-dns")
        .await
        .context("look up the kube-dns Service")?
        .is_some()
    {
        return Ok(());
    }
    match services
        .create(&PostParams::default(), &serde_json::from_value(service)?)
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        // Somebody else has the address; that is no reason not to start.
        Err(kube::Error::Api(status)) if status.code == 422 => {
            tracing::warn!(%address, why = status.message, "the kube-dns Service cannot be made");
            Ok(())
        }
        Err(error) => Err(error).context("create the kube-dns Service"),
    }
}

async fn reconcile(api: &Api<DynamicObject>, name: &str, wanted: Value) -> anyhow::Result<()> {
    let Some(mut live) = api.get_opt(name).await? else {
        let object = serde_json::from_value(wanted)?;
        return match api.create(&PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            // Another server of the same cluster was faster.
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(error) => Err(error.into()),
        };
    };
    let annotations = live.metadata.annotations.as_ref();
    let updates = annotations.and_then(|a| a.get("rbac.authorization.kubernetes.io/autoupdate"));
    if updates.is_some_and(|value| value == "false") {
        return Ok(());
    }
    let mut changed = false;
    for list in ["rules", "subjects"] {
        let Some(wanted) = wanted[list].as_array().filter(|items| !items.is_empty()) else {
            continue;
        };
        if !live.data[list].is_array() {
            live.data[list] = Value::Array(Vec::new());
        }
        let Some(present) = live.data[list].as_array_mut() else {
            continue;
        };
        for item in wanted
            .iter()
            .filter(|item| !present.contains(item))
            .cloned()
            .collect::<Vec<_>>()
        {
            present.push(item);
            changed = true;
        }
    }
    if changed {
        api.replace(name, &PostParams::default(), &live).await?;
    }
    Ok(())
}
