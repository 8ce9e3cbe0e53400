//! PodTopologyLabels: a pod that has a node says in its labels in which zone and region that is (KEP-4742), so that its
//! containers can be told by the downward API.

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::{Attributes, Operation, Plugin};

const LABELS: [&str; 2] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

pub(super) struct PodTopologyLabels;

#[async_trait]
impl Plugin for PodTopologyLabels {
    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), ApiError> {
        let Some(node) = pod["spec"]["nodeName"].as_str() else {
            return Ok(());
        };
        let binds = attributes.is_of_pod(Operation::Update, "binding");
        if node.is_empty() || !(binds || attributes.creates_pod()) {
            return Ok(());
        }
        // A node that is not known has no labels: nobody is kept from running for that.
        let nodes = attributes.context.server.cacher("", "nodes");
        if let Some(entry) = nodes.and_then(|nodes| nodes.get("", node)) {
            copy(&entry.decode()?, pod);
        }
        Ok(())
    }
}

fn copy(node: &Value, pod: &mut Value) {
    for key in LABELS {
        if let Some(value) = meta::label(node, key) {
            meta::set_label(pod, key, Some(value));
        }
    }
}
