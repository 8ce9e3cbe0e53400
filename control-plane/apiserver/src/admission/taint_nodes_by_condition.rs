//! TaintNodesByCondition: a new Node takes no pods until the node lifecycle controller has seen it ready.

use async_trait::async_trait;
use serde_json::{Value, json};
use windlass_machinery::status::ApiError;

use super::{Attributes, Operation, Plugin};

pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    async fn admit(&self, attributes: &Attributes<'_>, node: &mut Value) -> Result<(), ApiError> {
        let concerned = attributes.operation == Operation::Create
            && attributes.subresource.is_empty()
            && attributes.is("", "nodes");
        if concerned {
            taint(&mut node["spec"]);
        }
        Ok(())
    }
}

fn taint(spec: &mut Value) {
    let not_ready = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    let mut taints = spec["taints"].as_array().cloned().unwrap_or_default();
    let known = taints
        .iter()
        .any(|taint| taint["key"] == not_ready["key"] && taint["effect"] == not_ready["effect"]);
    if !known {
        taints.push(not_ready);
        spec["taints"] = taints.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_is_tainted_once() {
        let mut spec = json!({"taints": [{"key": "own", "effect": "NoExecute"}]});
        taint(&mut spec);
        taint(&mut spec);
        let keys: Vec<_> = spec["taints"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| &t["key"])
            .collect();
        assert_eq!(keys, ["own", "node.kubernetes.io/not-ready"]);
        let mut bare = json!(null);
        taint(&mut bare);
        assert_eq!(bare["taints"][0]["effect"], "NoSchedule");
    }
}
