//! Resource lists: names and quantities of requests, limits and capacities.

use std::cmp::Ordering;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::quantity::Quantity;
use windlass_machinery::validation::{Errors, Path};

use super::sentences;
use crate::table::plain;

/// A quantity in JSON is a string or a bare number.
pub fn parse(value: &Value) -> Option<Quantity> {
    plain(value).parse().ok()
}

/// A quantity as it is printed: canonical, or as written where it cannot be parsed.
pub fn show(value: &Value) -> String {
    parse(value).map_or_else(|| plain(value), |quantity| quantity.to_string())
}

pub fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    parse(a)?.partial_cmp(&parse(b)?)
}

fn zero() -> Quantity {
    "0".parse().expect("zero is a quantity")
}

pub fn is_negative(value: &Value) -> bool {
    parse(value).is_some_and(|quantity| quantity < zero())
}

pub fn is_positive(value: &Value) -> bool {
    parse(value).is_some_and(|quantity| quantity > zero())
}

/// A quantity that may not be negative.
pub fn non_negative(value: &Value, path: &Path, errors: &mut Errors) {
    if is_negative(value) {
        errors.invalid(path, show(value), "must be greater than or equal to 0");
    }
}

/// Resources of which there is no half.
pub fn is_integer_resource(name: &str) -> bool {
    is_extended(name)
        || matches!(
            name,
            "configmaps"
                | "persistentvolumeclaims"
                | "pods"
                | "replicationcontrollers"
                | "resourcequotas"
                | "secrets"
                | "services"
                | "services.loadbalancers"
                | "services.nodeports"
        )
}

/// Kubernetes' own resources.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Resources outside of Kubernetes' own names, such as `vendor.example/gpu`, if a quota can count them too.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::is_qualified_name(&format!("requests.{name}")).is_empty()
}

pub fn is_hugepages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Whether scheduling may promise more of this resource than there is: only Kubernetes' own ones.
pub fn is_overcommittable(name: &str) -> bool {
    is_native(name) && !is_hugepages(name)
}

/// One amount of a resource that a container or pod asks for.
pub fn amount(name: &str, value: &Value, path: &Path, errors: &mut Errors) {
    non_negative(value, path, errors);
    if is_integer_resource(name)
        && parse(value).is_some_and(|quantity| quantity.milli_value() % 1000 != 0)
    {
        errors.invalid(path, show(value), "must be an integer");
    }
}

/// Resources whose names have no domain and that a quota may count.
pub const COUNTED: [&str; 19] = [
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
/// The one that only claims and volumes speak of.
const STORAGE: &str = "storage";

/// The name of any resource.
pub fn resource_name(name: &str, path: &Path, errors: &mut Errors) {
    let faults = names::is_qualified_name(name);
    let standard = name == STORAGE
        || COUNTED.contains(&name)
        || is_hugepages(name.strip_prefix("requests.").unwrap_or(name));
    if faults.is_empty() && !name.contains('/') && !standard {
        let detail = "must be a standard resource type or fully qualified";
        errors.invalid(path, name, detail);
    }
    sentences(faults, path, name, errors);
}

/// The name of a resource of a container.
pub fn container_resource_name(name: &str, path: &Path, errors: &mut Errors) {
    resource_name(name, path, errors);
    if !name.contains('/') {
        let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_hugepages(name);
        if !standard {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path, name, "doesn't follow extended resource name standard");
    }
}
