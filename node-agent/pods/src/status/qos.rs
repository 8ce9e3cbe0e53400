//! The quality-of-service class: who goes first when the node runs out.

use k8s_openapi::api::core::v1::Pod;
use windlass_machinery::quantity::Quantity;

use crate::model::{slots, spec};

/// The three classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has limits for CPU and memory, and requests them in full.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl QosClass {
    /// As it stands in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The class of a pod, from its containers' CPU and memory.
pub fn qos_class(pod: &Pod) -> QosClass {
    let mut anything = false;
    let mut guaranteed = true;
    let own: Vec<_> = match &spec(pod).resources {
        // What the pod says for itself as a whole decides alone (KEP-2837).
        Some(resources) => vec![Some(resources.clone())],
        None => slots(pod)
            .map(|slot| slot.container.resources.clone())
            .collect(),
    };
    for resources in &own {
        let resources = resources.as_ref();
        for name in ["cpu", "memory"] {
            let amount = |map: Option<&std::collections::BTreeMap<String, _>>| {
                let quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity =
                    map?.get(name)?;
                Quantity::parse(&quantity.0)
                    .ok()
                    .filter(|amount| !amount.is_zero())
            };
            let limit = amount(resources.and_then(|resources| resources.limits.as_ref()));
            let request = amount(resources.and_then(|resources| resources.requests.as_ref()));
            anything |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (anything, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes_follow_requests_and_limits_of_all_containers() {
        let class = |containers: serde_json::Value| {
            let pod = json!({"metadata": {}, "spec": {"containers": containers}});
            qos_class(&serde_json::from_value(pod).unwrap()).name()
        };
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        for (containers, expected) in [
            (json!([{"name": "a"}]), "BestEffort"),
            (
                json!([{"name": "a", "resources": {"requests": {"cpu": "0"}}}]),
                "BestEffort",
            ),
            (json!([{"name": "a", "resources": full}]), "Guaranteed"),
            (
                json!([{"name": "a", "resources": full}, {"name": "b"}]),
                "Burstable",
            ),
            (
                json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]),
                "Burstable",
            ),
            (
                json!([{"name": "a", "resources": {
                    "limits": {"cpu": "1", "memory": "1Gi"},
                    "requests": {"cpu": "1000m", "memory": "1024Mi"},
                }}]),
                "Guaranteed",
            ),
            (
                json!([{"name": "a", "resources": {
                    "limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"},
                }}]),
                "Burstable",
            ),
        ] {
            assert_eq!(class(containers.clone()), expected, "{containers}");
        }
    }
}
