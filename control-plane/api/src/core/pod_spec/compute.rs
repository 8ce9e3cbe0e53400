//! Requests and limits of containers and pods.

use std::cmp::Ordering;

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;
use crate::validate::quantities::{
    amount, compare, container_resource_name, is_hugepages, is_overcommittable, show,
};

/// A container's `resources`; `path` is theirs.
pub fn requirements(resources: &Value, path: &Path, errors: &mut Errors) {
    for (name, value) in resources.entries("limits") {
        let path = path.child("limits").key(name);
        container_resource_name(name, &path, errors);
        amount(name, value, &path, errors);
    }
    let requests_path = path.child("requests");
    for (name, value) in resources.entries("requests") {
        let path_of_name = requests_path.key(name);
        container_resource_name(name, &path_of_name, errors);
        amount(name, value, &path_of_name, errors);
        let limit = resources.at("limits").get(name);
        request_within_limit(name, value, limit, path, errors);
    }
    let named =
        |list: &str, test: fn(&str) -> bool| resources.entries(list).any(|(name, _)| test(name));
    let has_hugepages = named("limits", is_hugepages) || named("requests", is_hugepages);
    let is_cpu_or_memory = |name: &str| matches!(name, "cpu" | "memory");
    if has_hugepages && !named("limits", is_cpu_or_memory) && !named("requests", is_cpu_or_memory) {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
}

fn request_within_limit(
    name: &str,
    request: &Value,
    limit: Option<&Value>,
    path: &Path,
    errors: &mut Errors,
) {
    let requests_path = path.child("requests");
    match limit {
        Some(limit) => {
            let order = compare(request, limit);
            if !is_overcommittable(name) {
                if order.is_some_and(|o| o != Ordering::Equal) {
                    let detail = format!("must be equal to {name} limit of {}", show(limit));
                    errors.invalid(&requests_path, show(request), detail);
                }
            } else if order == Some(Ordering::Greater) {
                let detail = format!(
                    "must be less than or equal to {name} limit of {}",
                    show(limit)
                );
                errors.invalid(&requests_path, show(request), detail);
            }
        }
        None if !is_overcommittable(name) => errors.required(
            &path.child("limits"),
            "Limit must be set for non overcommitable resources",
        ),
        None => {}
    }
}

/// Pod-level `resources` (KEP-2837): cpu, memory and hugepages only.
pub fn pod_level(spec: &Value, path: &Path, errors: &mut Errors) {
    let resources = spec.at("resources");
    if resources.is_null() {
        return;
    }
    let path = path.child("resources");
    if !resources.list("claims").is_empty() {
        errors.forbidden(
            &path.child("claims"),
            "claims may not be set for Resources at pod-level",
        );
    }
    for list in ["limits", "requests"] {
        for (name, value) in resources.entries(list) {
            let path_of_name = path.child(list).key(name);
            if !matches!(name, "cpu" | "memory") && !is_hugepages(name) {
                errors.not_supported(&path_of_name, name, &["cpu", "hugepages-", "memory"]);
            }
            amount(name, value, &path_of_name, errors);
            if list == "requests" {
                let limit = resources
                    .at("limits")
                    .get(name)
                    .filter(|_| !is_hugepages(name));
                if let Some(limit) = limit {
                    request_within_limit(name, value, Some(limit), &path, errors);
                }
            }
        }
    }
}

/// Sets of resources that decide a pod's quality of service.
const QOS_RESOURCES: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed`, `Burstable` or `BestEffort`: status.qosClass.
pub fn qos_class(spec: &Value) -> &'static str {
    let set = |resources: &Value, list: &str, name: &str| {
        resources
            .at(list)
            .get(name)
            .is_some_and(crate::validate::quantities::is_positive)
    };
    let guaranteed = |resources: &Value| {
        QOS_RESOURCES.iter().all(|name| {
            set(resources, "limits", name)
                && resources.at("requests").get(name).is_none_or(|request| {
                    compare(request, &resources.at("limits")[*name]) == Some(Ordering::Equal)
                })
        })
    };
    let asks = |resources: &Value| {
        QOS_RESOURCES
            .iter()
            .any(|name| set(resources, "limits", name) || set(resources, "requests", name))
    };
    let pod = spec.at("resources");
    if asks(pod) {
        return if guaranteed(pod) {
            "Guaranteed"
        } else {
            "Burstable"
        };
    }
    let mut all_guaranteed = true;
    let mut any_asks = false;
    for container in spec
        .list("initContainers")
        .iter()
        .chain(spec.list("containers"))
    {
        let resources = container.at("resources");
        all_guaranteed &= guaranteed(resources);
        any_asks |= asks(resources);
    }
    match (any_asks, all_guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn requests_stay_within_limits() {
        let resources = json!({
            "limits": {"cpu": "1", "x": "1", "memory": "-1"},
            "requests": {"cpu": "2", "vendor.example/gpu": "1"},
        });
        let path = Path::new("spec")
            .child("containers")
            .index(0)
            .child("resources");
        assert_eq!(
            lines(|e| requirements(&resources, &path, e)),
            [
                "spec.containers[0].resources.limits[memory]: Invalid value: \"-1\": must be greater \
                 than or equal to 0",
                "spec.containers[0].resources.limits[x]: Invalid value: \"x\": must be a standard \
                 resource type or fully qualified",
                "spec.containers[0].resources.limits[x]: Invalid value: \"x\": must be a standard \
                 resource for containers",
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or \
                 equal to cpu limit of 1",
                "spec.containers[0].resources.limits: Required value: Limit must be set for non \
                 overcommitable resources",
            ]
        );
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let spec = |resources: Value| json!({"containers": [{"resources": resources}]});
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1"}}), "Burstable"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}}),
                "Guaranteed",
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1m"}}),
                "Burstable",
            ),
        ] {
            assert_eq!(qos_class(&spec(resources.clone())), class, "{resources}");
        }
    }
}
