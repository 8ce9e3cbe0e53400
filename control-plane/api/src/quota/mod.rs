//! What objects use of a ResourceQuota, by the names that `spec.hard` may carry. Pure.
//!
//! Admission charges by it and the quota controller recounts by it: two evaluations that differ would refuse
//! what fits, or let the count drift at every write. It follows upstream's evaluators
//! (`pkg/quota/v1/evaluator/core`). Objects come as `k8s-openapi` types here, because that is how
//! controllers hold them.

mod pod;
mod scope;
mod volume;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuotaSpec, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde_json::Value;
use windlass_machinery::quantity::{Format, Quantity};

pub use self::pod::{missing_requests, of_pod};
pub use self::scope::{covers, covers_claim, is_scoped};
pub use self::volume::of_claim;

/// Amounts by resource name.
pub type Usage = BTreeMap<String, Quantity>;

type Amounts = BTreeMap<String, ApiQuantity>;

/// Adds `more` to `total`.
pub fn add(total: &mut Usage, more: &Usage) {
    for (name, amount) in more {
        let sum = total.get(name).map_or(*amount, |have| have.add(amount));
        total.insert(name.clone(), sum);
    }
}

/// What `usage` has more than `before`; less is negative, no difference is left out.
pub fn difference(usage: &Usage, before: &Usage) -> Usage {
    let names = usage.keys().chain(before.keys());
    let amount = |of: &Usage, name: &String| of.get(name).copied().unwrap_or(Quantity::ZERO);
    names
        .map(|name| (name.clone(), amount(usage, name).sub(&amount(before, name))))
        .filter(|(_, difference)| !difference.is_zero())
        .collect()
}

/// An object as quotas see it.
pub enum Subject {
    Pod(Box<Pod>),
    Service(Box<Service>),
    Claim(Box<PersistentVolumeClaim>),
    /// Counted, not measured.
    Other {
        group: String,
        resource: String,
    },
}

impl Subject {
    /// # Errors
    /// When a pod, Service or claim does not have its kind's shape.
    pub fn read(group: &str, resource: &str, object: &Value) -> Result<Self, serde_json::Error> {
        use serde::Deserialize as _;
        Ok(match (group, resource) {
            ("", "pods") => Self::Pod(Box::new(Pod::deserialize(object)?)),
            ("", "services") => Self::Service(Box::new(Service::deserialize(object)?)),
            ("", "persistentvolumeclaims") => {
                Self::Claim(Box::new(PersistentVolumeClaim::deserialize(object)?))
            }
            _ => Self::Other {
                group: group.to_owned(),
                resource: resource.to_owned(),
            },
        })
    }

    /// What it uses at the time `now`.
    pub fn usage(&self, now: Timestamp) -> Usage {
        match self {
            Self::Pod(pod) => of_pod(pod, now),
            Self::Service(service) => of_service(service),
            Self::Claim(claim) => of_claim(claim),
            Self::Other { group, resource } => of_count(group, resource),
        }
    }

    /// Whether objects of its kind can use the quota resource `name` at all.
    pub fn tracks(&self, name: &str) -> bool {
        match self {
            Self::Pod(_) => pod::tracks(name),
            Self::Service(_) => matches!(
                name,
                "count/services" | "services" | "services.nodeports" | "services.loadbalancers"
            ),
            Self::Claim(_) => volume::tracks(name),
            Self::Other { group, resource } => of_count(group, resource).contains_key(name),
        }
    }

    /// Whether a quota's scopes include it; only pods (and claims, by their attributes class) have scopes.
    pub fn in_scope(&self, spec: &ResourceQuotaSpec) -> bool {
        match self {
            Self::Pod(pod) => covers(spec, pod),
            Self::Claim(claim) => covers_claim(spec, claim),
            _ => !is_scoped(spec),
        }
    }
}

/// What a Service uses. Node ports are counted by intent: they may not be allocated yet.
pub fn of_service(service: &Service) -> Usage {
    let mut usage = Usage::from([
        ("count/services".to_owned(), one()),
        ("services".to_owned(), one()),
    ]);
    let Some(spec) = &service.spec else {
        return usage;
    };
    let ports = spec.ports.iter().flatten();
    let taken = match spec.type_.as_deref() {
        Some("NodePort") => ports.count(),
        Some("LoadBalancer") => {
            usage.insert("services.loadbalancers".to_owned(), one());
            let explicit = spec.allocate_load_balancer_node_ports == Some(false);
            ports
                .filter(|port| !explicit || port.node_port.is_some_and(|number| number != 0))
                .count()
        }
        _ => 0,
    };
    if taken > 0 {
        usage.insert("services.nodeports".to_owned(), many(taken));
    }
    usage
}

/// What an object uses that is only counted: under its full name and, for some, an older one.
pub fn of_count(group: &str, resource: &str) -> Usage {
    let full = if group.is_empty() {
        format!("count/{resource}")
    } else {
        format!("count/{resource}.{group}")
    };
    let mut usage = Usage::from([(full, one())]);
    if group.is_empty() && COUNTED_BY_NAME.contains(&resource) {
        usage.insert(resource.to_owned(), one());
    }
    usage
}

const COUNTED_BY_NAME: [&str; 4] = [
    "configmaps",
    "secrets",
    "replicationcontrollers",
    "resourcequotas",
];

/// `count/<resource>.<group>`, or one of the older names for the same: group and resource.
pub fn counted_kind(name: &str) -> Option<(String, String)> {
    if let Some(counted) = name.strip_prefix("count/") {
        let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
        return Some((group.to_owned(), resource.to_owned()));
    }
    COUNTED_BY_NAME
        .contains(&name)
        .then(|| (String::new(), name.to_owned()))
}

/// Pods, services and claims are measured, not only counted.
pub fn is_measured(group: &str, resource: &str) -> bool {
    group.is_empty() && matches!(resource, "pods" | "services" | "persistentvolumeclaims")
}

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

fn many(count: usize) -> Quantity {
    Quantity::new(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi)
}

fn parsed(quantity: &ApiQuantity) -> Quantity {
    // Validation read it before; what still does not parse uses nothing.
    Quantity::parse(&quantity.0).unwrap_or(Quantity::ZERO)
}

#[cfg(test)]
fn shown(usage: &Usage) -> Vec<String> {
    usage
        .iter()
        .map(|(name, amount)| format!("{name}={amount}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_use_node_ports_by_intent() {
        let table = [
            (json!({"type": "ClusterIP"}), None, false),
            (json!({"type": "NodePort"}), Some("2"), false),
            (json!({"type": "LoadBalancer"}), Some("2"), true),
            (
                json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false}),
                Some("1"),
                true,
            ),
        ];
        for (mut spec, ports, balanced) in table {
            spec["ports"] = json!([{"port": 1}, {"port": 2, "nodePort": 30000}]);
            let service = Subject::read("", "services", &json!({"spec": spec})).unwrap();
            let usage = service.usage(Timestamp::UNIX_EPOCH);
            let taken = usage.get("services.nodeports").map(ToString::to_string);
            assert_eq!(taken.as_deref(), ports, "{spec}");
            assert_eq!(
                usage.contains_key("services.loadbalancers"),
                balanced,
                "{spec}"
            );
            assert!(usage.keys().all(|name| service.tracks(name)));
        }
    }

    #[test]
    fn others_count_under_their_names() {
        let table = [
            ("apps", "deployments", vec!["count/deployments.apps=1"]),
            ("", "secrets", vec!["count/secrets=1", "secrets=1"]),
            ("", "endpoints", vec!["count/endpoints=1"]),
        ];
        for (group, resource, expected) in table {
            assert_eq!(shown(&of_count(group, resource)), expected);
        }
        let kind = |name| counted_kind(name).map(|(group, resource)| format!("{group}/{resource}"));
        assert_eq!(
            kind("count/deployments.apps").as_deref(),
            Some("apps/deployments")
        );
        assert_eq!(kind("count/secrets").as_deref(), Some("/secrets"));
        assert_eq!(kind("configmaps").as_deref(), Some("/configmaps"));
        assert_eq!(kind("requests.cpu"), None);
    }

    #[test]
    fn differences_keep_their_sign() {
        let usage = |pairs: &[(&str, i64)]| -> Usage {
            let amount = |n| Quantity::new(n, Format::DecimalSi);
            pairs
                .iter()
                .map(|(k, n)| ((*k).to_owned(), amount(*n)))
                .collect()
        };
        let found = difference(
            &usage(&[("a", 3), ("b", 1), ("c", 2)]),
            &usage(&[("a", 1), ("b", 1), ("d", 4)]),
        );
        assert_eq!(shown(&found), ["a=2", "c=2", "d=-4"]);
    }
}
