//! What every cluster holds from its first start on: the default RBAC policy and the kube-dns Service.

use std::net::IpAddr;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Service;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use windlass_apiserver::authz::default_policy;

/// Creates the default roles and bindings that are missing and adds the rules and subjects that existing ones
/// lack, unless their `autoupdate` annotation is `false`. Never takes anything away, as upstream.
pub(crate) async fn default_rbac(client: &Client) -> anyhow::Result<()> {
    for (resource, wanted) in default_policy::objects() {
        let kind = wanted["kind"].as_str().unwrap_or_default().to_owned();
        let gvk = GroupVersionKind::gvk("rbac.authorization.k8s.io", "v1", &kind);
        let api: Api<DynamicObject> = Api::all_with(
            client.clone(),
            &ApiResource::from_gvk_with_plural(&gvk, resource),
        );
        let name = wanted["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        reconcile(&api, &name, wanted)
            .await
            .with_context(|| format!("default {kind} {name}"))?;
    }
    Ok(())
}

/// Creates the Service at whose address pods ask for names, unless the cluster has one already.
///
/// It selects no pods: the node agents answer, and each publishes itself in an EndpointSlice of its own.
pub(crate) async fn cluster_dns(client: &Client, address: IpAddr) -> anyhow::Result<()> {
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
