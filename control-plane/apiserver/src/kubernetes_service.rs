//! The `kubernetes` Service in `default`: how pods reach the API server.
//!
//! It has no selector; its endpoints are the advertised addresses of the servers that are alive. Each says so by a
//! key that expires unless it is written again (upstream's "lease" reconciler), so that none takes another's away.
//! The endpoints are compared on every tick and written only when they differ.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use windlass_machinery::status::ApiError;
use windlass_store::{Expect, RangeRequest};

use crate::server::ApiServer;
use crate::storage::store_error;

const INTERVAL: Duration = Duration::from_secs(10);
const NAME: &str = "kubernetes";
/// Where servers that share a store say that they are alive.
const ALIVE: &str = "/registry/masterleases/";
/// After which a server that has died is an endpoint no more, but for a tick.
const ALIVE_FOR: Duration = Duration::from_secs(15);

/// Makes the Service and its endpoints, and keeps them.
pub(crate) async fn start(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    reconcile(server).await?;
    let server = server.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = server.shutdown.cancelled() => return,
            }
            if let Err(error) = reconcile(&server).await {
                tracing::warn!(%error, "the kubernetes Service could not be reconciled");
            }
        }
    });
    Ok(())
}

async fn reconcile(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let alive = alive(server).await?;
    let addresses: Vec<Value> = alive.iter().map(|ip| json!({"ip": ip})).collect();
    let ready: Vec<Value> = alive
        .iter()
        // A slice is of one family.
        .filter(|ip| ip.contains(':') == server.advertise_address.is_ipv6())
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
        .collect();
    let port = json!([{"name": "https", "port": server.secure_port, "protocol": "TCP"}]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": NAME, "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP", "sessionAffinity": "None",
            "clusterIP": server.addresses.first().to_string(),
            "ports": [{
                "name": "https", "port": 443, "protocol": "TCP", "targetPort": server.secure_port,
            }],
        },
    });
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": NAME, "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{"addresses": addresses, "ports": port}],
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": NAME, "namespace": "default",
            "labels": {"kubernetes.io/service-name": NAME},
        },
        "addressType": if server.advertise_address.is_ipv6() { "IPv6" } else { "IPv4" },
        "ports": port,
        "endpoints": ready,
    });
    ensure(
        server,
        ("", "services"),
        "/api/v1/namespaces/default/services",
        &service,
        &["spec/ports"],
    )
    .await?;
    ensure(
        server,
        ("", "endpoints"),
        "/api/v1/namespaces/default/endpoints",
        &endpoints,
        &["subsets"],
    )
    .await?;
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    let group = ("discovery.k8s.io", "endpointslices");
    remove_unless_same(server, group, path, &slice, "addressType").await?;
    ensure(server, group, path, &slice, &["endpoints", "ports"]).await?;
    service_cidr(server).await
}

/// The ServiceCIDR of the ranges that the server was started with.
async fn service_cidr(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let path = "/apis/networking.k8s.io/v1/servicecidrs";
    let Some(cacher) = server.cacher("networking.k8s.io", "servicecidrs") else {
        return Ok(());
    };
    let mut present = match cacher.get("", NAME) {
        Some(entry) => entry.decode()?,
        None => {
            let wanted = json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": NAME}, "spec": {"cidrs": server.addresses.cidrs()},
            });
            match server.create_missing(path, &wanted).await? {
                Some(made) => made,
                None => return Ok(()),
            }
        }
    };
    if present["status"]["conditions"][0]["type"] == "Ready" {
        return Ok(());
    }
    present["status"] = json!({"conditions": [{
        "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready",
        "lastTransitionTime": crate::context::now_text(),
    }]});
    let own = format!("{path}/{NAME}/status");
    server.replace_seen(&own, &present).await
}

/// The addresses of the servers that are alive, this one among them, in order.
async fn alive(server: &Arc<ApiServer>) -> Result<Vec<String>, ApiError> {
    let own = server.advertise_address.to_string();
    let store = server.caches.store();
    if !store.is_shared() {
        return Ok(vec![own]);
    }
    let key = format!("{ALIVE}{own}");
    store
        .put(&key, own.into(), Expect::Any, Some(ALIVE_FOR))
        .await
        .map_err(store_error)?;
    let request = RangeRequest {
        prefix: ALIVE,
        ..RangeRequest::default()
    };
    let range = store.range(request).await.map_err(store_error)?;
    let addresses = range
        .items
        .iter()
        .filter_map(|kv| kv.key.strip_prefix(ALIVE));
    Ok(addresses.map(str::to_owned).collect())
}

/// Creates `wanted`, or repairs the fields at `owned` of what is there.
async fn ensure(
    server: &Arc<ApiServer>,
    (group, plural): (&str, &str),
    path: &str,
    wanted: &Value,
    owned: &[&str],
) -> Result<(), ApiError> {
    let Some(cacher) = server.cacher(group, plural) else {
        return Ok(());
    };
    server.caches.wait_current().await?;
    let Some(entry) = cacher.get("default", NAME) else {
        return server.create_missing(path, wanted).await.map(drop);
    };
    let mut present = entry.decode()?;
    let mut differs = false;
    for field in owned {
        let pointer = format!("/{field}");
        let wanted = wanted.pointer(&pointer).cloned().unwrap_or_default();
        let here = present.pointer(&pointer).cloned().unwrap_or_default();
        if !contains(&here, &wanted) {
            differs = true;
            let (parent, last) = field.rsplit_once('/').unwrap_or(("", field));
            let parent = if parent.is_empty() {
                String::new()
            } else {
                format!("/{parent}")
            };
            if let Some(parent) = present.pointer_mut(&parent) {
                parent[last] = wanted;
            }
        }
    }
    if !differs {
        return Ok(());
    }
    // Another server, which starts at the same moment, may be faster; the next tick looks again.
    server
        .replace_seen(&format!("{path}/{NAME}"), &present)
        .await
}

/// Removes what differs from `wanted` in a field that never changes: the slice of a server that was advertised by an
/// address of the other family.
async fn remove_unless_same(
    server: &Arc<ApiServer>,
    (group, plural): (&str, &str),
    path: &str,
    wanted: &Value,
    field: &str,
) -> Result<(), ApiError> {
    server.caches.wait_current().await?;
    let present = server
        .cacher(group, plural)
        .and_then(|cacher| cacher.get("default", NAME));
    let Some(present) = present else {
        return Ok(());
    };
    if present.decode()?[field] != wanted[field] {
        let own = format!("{path}/{NAME}");
        server.call_self(Method::DELETE, &own, None).await?;
    }
    Ok(())
}

/// Whether `here` says all that `wanted` says; defaults may have added more.
fn contains(here: &Value, wanted: &Value) -> bool {
    match (here, wanted) {
        (Value::Object(here), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| here.get(key).is_some_and(|here| contains(here, value))),
        (Value::Array(here), Value::Array(wanted)) => {
            here.len() == wanted.len() && here.iter().zip(wanted).all(|(h, w)| contains(h, w))
        }
        (here, wanted) => here == wanted,
    }
}
