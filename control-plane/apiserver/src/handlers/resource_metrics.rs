//! The resource metrics API (`metrics.k8s.io/v1beta1`), by which `kubectl top` and HorizontalPodAutoscalers see what pods
//! and nodes use.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt as _;
use serde_json::{Value, json};
use windlass_machinery::quantity::{Format, Quantity};
use windlass_machinery::status::ApiError;
use windlass_machinery::{meta, time};

use super::list;
use crate::catalog::Endpoint;
use crate::context::{Context, now};
use crate::options::ListOptions;
use crate::server::ApiServer;
use crate::usage::{NodeUsage, Usage};

/// How many nodes are asked at a time.
const AT_A_TIME: usize = 32;

/// The metrics that were asked for. Of whom nothing is known, as of a pod that does not run, there are none.
pub(super) async fn items(context: &Context, endpoint: &Endpoint) -> Result<Vec<Value>, ApiError> {
    let measured = subjects(context, endpoint)?;
    let nodes = measured.iter().filter_map(node_of).map(str::to_owned);
    let usages = usages(&context.server, nodes.collect()).await;
    let metrics = |object: &Value| {
        let usage = usages.get(node_of(object)?)?;
        let (shown, used) = if endpoint.resource.namespaced {
            of_pod(object, usage)?
        } else {
            let used = usage.node?;
            (json!({"usage": amounts(&used)}), used)
        };
        Some(described(endpoint, object, shown, used))
    };
    Ok(measured.iter().filter_map(metrics).collect())
}

/// The Nodes or Pods whose metrics are asked for.
fn subjects(context: &Context, endpoint: &Endpoint) -> Result<Vec<Value>, ApiError> {
    let info = &context.info;
    let Some(measured) = context
        .server
        .catalog
        .load()
        .preferred("", endpoint.plural())
    else {
        return Ok(Vec::new());
    };
    let found = if info.name.is_empty() {
        let options = ListOptions::parse(&context.query, false)?;
        let filter = list::filter(context, &measured, &options)?;
        measured.cacher()?.entries(&filter)
    } else {
        let found = measured.cacher()?.get(&info.namespace, &info.name);
        found.into_iter().collect()
    };
    found.iter().map(|entry| entry.decode()).collect()
}

/// Where an object's numbers come from: a Node's own agent, and that of a running pod's node.
fn node_of(object: &Value) -> Option<&str> {
    if object["kind"] == "Node" {
        return Some(meta::name(object));
    }
    let runs = object["status"]["phase"] == "Running";
    object["spec"]["nodeName"].as_str().filter(|_| runs)
}

async fn usages(server: &ApiServer, nodes: HashSet<String>) -> HashMap<String, Arc<NodeUsage>> {
    let asked = nodes.into_iter().map(|name| async move {
        match server.usages.of(server, &name).await {
            Ok(usage) => Some((name, usage)),
            Err(error) => {
                tracing::warn!(node = name, %error, "a node does not say what is used there");
                None
            }
        }
    });
    futures::stream::iter(asked)
        .buffer_unordered(AT_A_TIME)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// A pod's containers, and the earliest of their measurements, which stands for the pod's.
fn of_pod(pod: &Value, usage: &NodeUsage) -> Option<(Value, Usage)> {
    let key = (meta::namespace(pod).to_owned(), meta::name(pod).to_owned());
    let containers = usage.pods.get(&key)?;
    let earliest = containers.values().min_by_key(|used| used.at)?;
    let shown = containers
        .iter()
        .map(|(name, used)| json!({"name": name, "usage": amounts(used)}));
    let shown: Vec<Value> = shown.collect();
    Some((json!({"containers": shown}), *earliest))
}

fn amounts(used: &Usage) -> Value {
    json!({
        "cpu": Quantity::from_nanos(used.cpu).to_string(),
        "memory": Quantity::new(used.memory, Format::BinarySi).to_string(),
    })
}

fn described(endpoint: &Endpoint, of: &Value, shown: Value, used: Usage) -> Value {
    let mut metadata = json!({"name": meta::name(of), "creationTimestamp": time::format(now())});
    for field in ["namespace", "labels"] {
        if let Some(value) = of["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let mut object = json!({
        "kind": endpoint.kind(), "apiVersion": endpoint.api_version(), "metadata": metadata,
        "timestamp": time::format(used.at / 1000), "window": time::format_duration(used.window * 1_000_000),
    });
    if let (Some(object), Value::Object(shown)) = (object.as_object_mut(), shown) {
        object.extend(shown);
    }
    object
}
