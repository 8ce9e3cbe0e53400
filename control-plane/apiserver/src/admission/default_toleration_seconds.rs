//! DefaultTolerationSeconds: a pod stays five minutes on a node that is not ready or cannot be reached.

use async_trait::async_trait;
use serde_json::{Value, json};
use windlass_machinery::status::ApiError;

use super::{Attributes, Operation, Plugin};

const TAINTS: [&str; 2] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];
const SECONDS: i64 = 300;

pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    async fn admit(&self, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), ApiError> {
        let concerned = attributes.is("", "pods")
            && attributes.subresource.is_empty()
            && attributes.operation != Operation::Delete;
        if concerned {
            tolerate(&mut pod["spec"]);
        }
        Ok(())
    }
}

fn tolerate(spec: &mut Value) {
    let mut tolerations = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let before = tolerations.len();
    for taint in TAINTS {
        let covers = |toleration: &Value| {
            let key = toleration["key"].as_str().unwrap_or_default();
            let effect = toleration["effect"].as_str().unwrap_or_default();
            let every_key = key.is_empty() && toleration["operator"] == "Exists";
            (key == taint || every_key) && (effect.is_empty() || effect == "NoExecute")
        };
        if !tolerations.iter().any(covers) {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
            }));
        }
    }
    if tolerations.len() > before {
        spec["tolerations"] = tolerations.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tolerated_already_is_left_alone() {
        let mut spec = json!({"tolerations": [{"key": TAINTS[0], "operator": "Exists"}]});
        tolerate(&mut spec);
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
        let mut all = json!({"tolerations": [{"operator": "Exists"}]});
        tolerate(&mut all);
        assert_eq!(all["tolerations"].as_array().unwrap().len(), 1);
    }
}
