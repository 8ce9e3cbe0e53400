//! ComponentStatuses. The store is asked itself. Controllers and scheduler are well when one of them holds their
//! Lease: they may run in another process, or on another machine.

use serde_json::{Value, json};
use windlass_machinery::time;

use crate::context::{Context, now};
use crate::server::ApiServer;

/// Components, and the Lease of each one that has one.
const COMPONENTS: [(&str, Option<&str>); 3] = [
    ("controller-manager", Some("kube-controller-manager")),
    ("etcd-0", None),
    ("scheduler", Some("kube-scheduler")),
];

/// The component that was asked for, or all.
pub(super) async fn items(context: &Context) -> Vec<Value> {
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
    items
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
