//! The parts of a Service and an EndpointSlice that decide where packets go, in a compact
//! form: it is kept for every object, while the objects themselves are dropped.

use std::{collections::BTreeMap, fmt, sync::Arc};

mod service;
mod slice;
mod text;

pub(super) use service::Balancing;
pub use service::{PortSpec, ServiceSpec};
pub use slice::{EndpointSpec, NodeHint, SliceSpec, ZoneHints};

/// Label by which a Service asks for another proxy (the upstream name of the label).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Label of what has no virtual address, whatever else it says.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The same two as a selector: what the watches need not even be sent.
pub(super) const SELECTOR: &str =
    "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    // Shared: a name stands in many places.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ServiceName {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What another proxy serves, or none.
fn is_excluded(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.is_some_and(|labels| {
        labels.contains_key(PROXY_NAME_LABEL) || labels.contains_key(HEADLESS_LABEL)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    #[test]
    fn what_another_proxy_serves_is_left_to_it() {
        for label in [PROXY_NAME_LABEL, HEADLESS_LABEL] {
            let mut labelled: Service = serde_json::from_value(json!({
                "metadata": {"name": "web"},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
            }))
            .unwrap();
            assert!(ServiceSpec::parse(&labelled).is_some());
            labelled.metadata.labels = Some([(label.to_owned(), String::new())].into());
            assert_eq!(ServiceSpec::parse(&labelled), None, "{label}");
        }
        assert_eq!(SELECTOR, format!("!{HEADLESS_LABEL},!{PROXY_NAME_LABEL}"));
    }
}
