//! ComponentStatuses: nothing is stored of them, each is asked for when somebody wants to see it.
//!
//! The store is asked itself. Controllers and scheduler are well when one of them holds their Lease: they may run in another
//! process, or on another machine.

use http::{Response, StatusCode};
use serde_json::{Value, json};
use windlass_machinery::status::ApiError;
use windlass_machinery::time;

use crate::Body;
use crate::catalog::Endpoint;
use crate::context::{Context, now};
use crate::negotiation::Transform;
use crate::server::ApiServer;
use crate::table;

/// Components, and the Lease of each one that has one.
const COMPONENTS: [(&str, Option<&str>); 3] = [
    ("controller-manager", Some("kube-controller-manager")),
    ("etcd-0", None),
    ("scheduler", Some("kube-scheduler")),
];

pub(super) async fn get_or_list(
    context: &Context,
    endpoint: &Endpoint,
) -> Result<Response<Body>, ApiError> {
    let wanted = context.info.name.as_str();
    let mut items = Vec::new();
    for (name, lease) in COMPONENTS {
        if wanted.is_empty() || wanted == name {
            let fault = match lease {
                Some(lease) => fault_of_leader(&context.server, lease, now()),
                None => fault_of_store(&context.server).await,
            };
            items.push(component(name, fault));
        }
    }
    if items.is_empty() {
        return Err(endpoint.not_found(wanted));
    }
    let shown = match context.accepted.transform {
        Transform::Table { beta } => {
            let include = table::Include::parse(&context.query)?;
            let rows = items.into_iter();
            let rows = rows.map(|item| table::row(endpoint, item, include, beta, now()));
            let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
            let mut table = table::empty(endpoint, beta, json!({}), true);
            table["rows"] = rows.into();
            table
        }
        _ if !wanted.is_empty() => items.remove(0),
        _ => {
            for item in &mut items {
                // As in every list, the list says of what.
                if let Some(item) = item.as_object_mut() {
                    item.remove("kind");
                    item.remove("apiVersion");
                }
            }
            json!({
                "kind": endpoint.resource.list_kind, "apiVersion": endpoint.api_version(),
                "metadata": {}, "items": items,
            })
        }
    };
    Ok(context.respond_plain(StatusCode::OK, &shown))
}

fn component(name: &str, fault: Option<String>) -> Value {
    let condition = match fault {
        None => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Some(fault) => json!({"type": "Healthy", "status": "False", "message": fault}),
    };
    json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition]})
}

async fn fault_of_store(server: &ApiServer) -> Option<String> {
    let asked = server.caches.store().current_revision().await;
    asked.err().map(|error| error.to_string())
}

fn fault_of_leader(server: &ApiServer, lease: &str, now: i64) -> Option<String> {
    let leases = server.cacher("coordination.k8s.io", "leases");
    let entry = leases.and_then(|leases| leases.get("kube-system", lease));
    let spec = entry.and_then(|entry| entry.decode().ok());
    let spec = spec.map(|lease| lease["spec"].clone()).unwrap_or_default();
    let renewed = spec["renewTime"].as_str().and_then(time::parse_seconds);
    let lasts = spec["leaseDurationSeconds"].as_i64().unwrap_or(0);
    let is_held = spec["holderIdentity"]
        .as_str()
        .is_some_and(|holder| !holder.is_empty())
        && renewed.is_some_and(|at| now <= at + lasts);
    (!is_held).then(|| format!("nobody holds the lease kube-system/{lease}"))
}
