//! ResourceQuotas.

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::immutable;
use crate::validate::quantities::{
    COUNTED, is_integer_resource, non_negative, parse, resource_name, show,
};

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
        "BestEffort" => resource == "pods",
        "NotBestEffort" | "NotTerminating" | "PriorityClass" | "Terminating" => {
            resource == "pods" || COMPUTE.contains(&resource) || !COUNTED.contains(&resource)
        }
        "CrossNamespacePodAffinity" => resource == "pods" || COMPUTE.contains(&resource),
        _ => true,
    }
}

impl Strategy for ResourceQuota {
    fn default(&self, object: &mut Value) {
        tree::object_at(object, "spec");
        tree::object_at(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", serde_json::json!({}));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        for (name, value) in object.entries("spec.hard") {
            let path = path.child("hard").key(name);
            resource_name(name, &path, errors);
            let known =
                name.contains('/') || COUNTED.contains(&name) || name.contains("hugepages-");
            if !known {
                errors.invalid(&path, name, "must be a standard resource for quota");
            }
            non_negative(value, &path, errors);
            if is_counted(name) && parse(value).is_some_and(|q| q.milli_value() % 1000 != 0) {
                errors.invalid(&path, show(value), "must be an integer");
            }
        }
        for (i, scope) in object.list("spec.scopes").iter().enumerate() {
            let scope = scope.as_str().unwrap_or_default();
            if !SCOPES.contains(&scope) {
                errors.invalid(&path.child("scopes").index(i), scope, "unsupported scope");
            }
        }
        let expressions = path.child("scopeSelector").child("matchExpressions");
        for (i, expression) in object
            .list("spec.scopeSelector.matchExpressions")
            .iter()
            .enumerate()
        {
            scope_requirement(expression, &expressions.index(i), errors);
        }
        let scopes: Vec<_> = object
            .list("spec.scopes")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        for scope in &scopes {
            let mut hard = object.entries("spec.hard");
            if hard.any(|(name, _)| !counts_in(scope, name)) {
                let detail = "unsupported scope applied to resource";
                let value = object.at("spec.scopes").clone();
                errors.invalid(&path.child("scopes"), value, detail);
            }
        }
        let both = |a, b| scopes.contains(&a) && scopes.contains(&b);
        if both("BestEffort", "NotBestEffort") || both("Terminating", "NotTerminating") {
            let value = object.at("spec.scopes").clone();
            errors.invalid(&path.child("scopes"), value, "conflicting scopes");
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec.scopes", errors);
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

/// Resources of which there is no half.
fn is_counted(name: &str) -> bool {
    const OBJECTS: [&str; 5] = [
        "persistentvolumeclaims",
        "replicationcontrollers",
        "resourcequotas",
        "services.loadbalancers",
        "services.nodeports",
    ];
    is_integer_resource(name) || OBJECTS.contains(&name)
}

fn scope_requirement(expression: &Value, path: &Path, errors: &mut Errors) {
    let (scope, operator) = (expression.text("scopeName"), expression.text("operator"));
    if !SCOPES.contains(&scope) {
        errors.invalid(&path.child("scopeName"), scope, "unsupported scope");
    }
    let values = expression.list("values");
    if !["PriorityClass", "VolumeAttributesClass"].contains(&scope) && operator != "Exists" {
        errors.invalid(
            &path.child("operator"),
            operator,
            "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
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
            expression.at("values").clone(),
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
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn a_scope_restricts_what_is_counted() {
        let faults = |scope: &str, resource: &str| {
            let object = json!({"spec": {"hard": {resource: "1"}, "scopes": [scope]}});
            lines(|e| ResourceQuota.validate(&object, e)).len()
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
            lines(|e| ResourceQuota.validate(&object, e)),
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
