//! ResourceQuotas.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::quantities::{COUNTED, amount, is_hugepages, resource_name, show};

pub struct ResourceQuota;

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

/// Whether a quota of this scope may count the resource: only pods can be best effort, or terminate.
fn counts_in(scope: &str, resource: &str) -> bool {
    const COMPUTE: &[&str] = &[
        "cpu",
        "limits.cpu",
        "limits.memory",
        "memory",
        "requests.cpu",
        "requests.memory",
    ];
    match scope {
        _ if !is_standard(resource) => true,
        "BestEffort" => resource == "pods",
        "CrossNamespacePodAffinity"
        | "NotBestEffort"
        | "NotTerminating"
        | "PriorityClass"
        | "Terminating" => resource == "pods" || COMPUTE.contains(&resource),
        "VolumeAttributesClass" => {
            ["persistentvolumeclaims", "requests.storage"].contains(&resource)
        }
        _ => true,
    }
}

fn is_standard(resource: &str) -> bool {
    COUNTED.contains(&resource)
        || is_hugepages(resource.strip_prefix("requests.").unwrap_or(resource))
}

impl Strategy for ResourceQuota {
    fn default(&self, object: &mut Value) {
        tree::object_at(object, "spec");
        tree::object_at(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({}));
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        amounts(object, "spec.hard", &path.child("hard"), errors);
        validate_scopes(object, &path.child("scopes"), errors);
        let path = path.child("scopeSelector").child("matchExpressions");
        validate_selector(object, &path, errors);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        for field in ["hard", "used"] {
            let path = Path::new("status").child(field);
            amounts(new.at("status"), field, &path, errors);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let scopes = |quota: &Value| -> BTreeSet<String> {
            let scopes = quota.list("spec.scopes").iter();
            scopes
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        };
        if scopes(new) != scopes(old) {
            let path = Path::new("spec").child("scopes");
            errors.invalid(&path, new.at("spec.scopes").clone(), "field is immutable");
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (name, hard) in object.entries("status.hard") {
            let used = object
                .at("status.used")
                .get(name)
                .map_or_else(|| "0".to_owned(), show);
            let text = format!("{name}: {used}/{}", show(hard));
            if name.starts_with("limits.") {
                limits.push(text)
            } else {
                requests.push(text)
            }
        }
        cells![requests.join(", "), limits.join(", "), age(object, now)]
    }
}

fn amounts(object: &Value, field: &str, path: &Path, errors: &mut Errors) {
    for (name, value) in object.entries(field) {
        let path = path.key(name);
        resource_name(name, &path, errors);
        if !name.contains('/') && !is_standard(name) {
            errors.invalid(&path, name, "must be a standard resource for quota");
        }
        amount(name, value, &path, errors);
    }
}

/// The scopes that a quota names, against its resources and each other.
fn validate_scopes(object: &Value, path: &Path, errors: &mut Errors) {
    let value = object.at("spec.scopes");
    let scopes: Vec<_> = object
        .list("spec.scopes")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            errors.invalid(path, value.clone(), "unsupported scope");
        }
        uncounted(object, scope, value, path, errors);
    }
    conflicts(&scopes, value, path, errors);
}

fn validate_selector(object: &Value, path: &Path, errors: &mut Errors) {
    let selector = object.at("spec.scopeSelector");
    let requirements = selector.list("matchExpressions");
    // Upstream shows its internal type.
    let internal = |r: &Value| json!({"ScopeName": r.at("scopeName"), "Operator": r.at("operator"), "Values": r.at("values")});
    let shown: Vec<_> = requirements.iter().map(internal).collect();
    let shown = json!({"MatchExpressions": shown});
    for requirement in requirements {
        let scope = requirement.text("scopeName");
        if !SCOPES.contains(&scope) {
            errors.invalid(&path.child("scopeName"), scope, "unsupported scope");
        }
        uncounted(object, scope, &shown, path, errors);
        operator(requirement, path, errors);
    }
    let scopes: Vec<_> = requirements.iter().map(|r| r.text("scopeName")).collect();
    conflicts(&scopes, object.at("spec.scopes"), path, errors);
}

fn uncounted(object: &Value, scope: &str, value: &Value, path: &Path, errors: &mut Errors) {
    for (name, _) in object.entries("spec.hard") {
        if !counts_in(scope, name) {
            let detail = "unsupported scope applied to resource";
            errors.invalid(path, value.clone(), detail);
        }
    }
}

fn conflicts(scopes: &[&str], value: &Value, path: &Path, errors: &mut Errors) {
    for pair in [
        ["BestEffort", "NotBestEffort"],
        ["Terminating", "NotTerminating"],
    ] {
        if pair.iter().all(|scope| scopes.contains(scope)) {
            errors.invalid(path, value.clone(), "conflicting scopes");
        }
    }
}

fn operator(requirement: &Value, path: &Path, errors: &mut Errors) {
    let (scope, operator) = (requirement.text("scopeName"), requirement.text("operator"));
    let values = requirement.list("values");
    let by_value = ["PriorityClass", "VolumeAttributesClass"].contains(&scope);
    if SCOPES.contains(&scope) && !by_value && operator != "Exists" {
        errors.invalid(
            &path.child("operator"),
            operator,
            "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
             ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
             ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
        );
    }
    match operator {
        "In" | "NotIn" if values.is_empty() => errors.required(
            &path.child("values"),
            "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
        ),
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.invalid(
            &path.child("values"),
            requirement.at("values").clone(),
            "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn a_scope_restricts_what_is_counted() {
        let faults = |scope: &str, resource: &str| {
            let object = json!({"spec": {"hard": {resource: "1"}, "scopes": [scope]}});
            lines(|e| ResourceQuota.validate(&object, None, e)).len()
        };
        let table = [
            ("BestEffort", "pods", 0),
            ("BestEffort", "cpu", 1),
            ("Terminating", "limits.cpu", 0),
            ("NotTerminating", "requests.example.com/dongle", 0),
            ("Terminating", "secrets", 1),
        ];
        for (scope, resource, expected) in table {
            assert_eq!(faults(scope, resource), expected, "{scope} {resource}");
        }
    }

    #[test]
    fn only_known_resources_are_counted() {
        let object = json!({"spec": {"hard": {
            "pods": "10", "count/widgets.example": "1", "x": "1", "cpu": "-1", "services.nodeports": "1500m",
        }}});
        assert_eq!(
            lines(|e| ResourceQuota.validate(&object, None, e)),
            [
                "spec.hard[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.hard[services.nodeports]: Invalid value: \"1500m\": must be an integer",
                "spec.hard[x]: Invalid value: \"x\": must be a standard resource type or fully qualified",
                "spec.hard[x]: Invalid value: \"x\": must be a standard resource for quota",
            ]
        );
    }

    #[test]
    fn rows_part_requests_from_limits() {
        let object = json!({"status": {
            "hard": {"limits.cpu": "2", "pods": "10", "requests.cpu": "1"},
            "used": {"limits.cpu": "500m", "pods": "3"},
        }});
        assert_eq!(
            ResourceQuota.row(&object, 0)[..2],
            [
                json!("pods: 3/10, requests.cpu: 0/1"),
                json!("limits.cpu: 500m/2")
            ]
        );
    }
}
