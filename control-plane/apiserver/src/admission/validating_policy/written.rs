//! Expressions are compiled when the object that holds them is written, so that a typing error is its author's
//! and not that of everybody whose request it then refuses: policies, match conditions of webhooks, rules in
//! the schemas of custom resources.

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};

use crate::admission::{Attributes, cost, expression, matching};

/// Lists of a policy's spec, and the fields of their items that hold expressions.
const EXPRESSIONS: [(&str, &[&str]); 4] = [
    ("matchConditions", &["expression"]),
    ("variables", &["expression"]),
    ("validations", &["expression", "messageExpression"]),
    ("auditAnnotations", &["valueExpression"]),
];

/// What conditions about a request may name.
const OF_REQUEST: [&str; 5] = [
    "object",
    "oldObject",
    "request",
    "namespaceObject",
    "authorizer",
];
/// What rules in schemas may name.
const OF_RULES: [&str; 2] = ["self", "oldSelf"];

/// # Errors
/// 422 for an expression that is none, unless it was there before.
pub(super) fn check(attributes: &Attributes<'_>, object: &Value) -> Result<(), ApiError> {
    let endpoint = attributes.endpoint;
    let (part, faults): (_, fn(&Value) -> Errors) = match (endpoint.group(), endpoint.plural()) {
        (matching::GROUP, super::POLICIES) => ("spec", faults),
        (matching::GROUP, _) => ("webhooks", webhook_faults),
        ("apiextensions.k8s.io", _) => ("spec", definition_faults),
        _ => return Ok(()),
    };
    let unchanged = attributes.old.is_some_and(|old| old[part] == object[part]);
    let errors = faults(object);
    if unchanged || errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(
        endpoint.group(),
        endpoint.kind(),
        meta::name(object),
        &errors,
    ))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn compiled(value: &Value, known: &[&str], path: &Path, errors: &mut Errors) {
    let Some(text) = value.as_str().filter(|text| !text.is_empty()) else {
        return;
    };
    if let Err(why) = expression::compile(text, known) {
        errors.invalid(path, text, why);
    }
}

fn webhook_faults(configuration: &Value) -> Errors {
    let mut errors = Errors::new();
    for (i, webhook) in list(&configuration["webhooks"]).iter().enumerate() {
        let path = Path::new("webhooks").index(i).child("matchConditions");
        for (i, condition) in list(&webhook["matchConditions"]).iter().enumerate() {
            let path = path.index(i).child("expression");
            compiled(&condition["expression"], &OF_REQUEST, &path, &mut errors);
        }
    }
    errors
}

fn definition_faults(definition: &Value) -> Errors {
    let mut errors = Errors::new();
    for (i, version) in list(&definition["spec"]["versions"]).iter().enumerate() {
        let path = Path::new("spec").child("versions").index(i);
        let path = path.child("schema").child("openAPIV3Schema");
        rules(&version["schema"]["openAPIV3Schema"], 1, &path, &mut errors);
    }
    errors
}

/// The rules of a schema and of those inside it, whose depth the structural check has limited. `times` says how often one
/// object may have what the schema is of.
fn rules(schema: &Value, times: u64, path: &Path, errors: &mut Errors) {
    let here = path.child("x-kubernetes-validations");
    for (i, rule) in list(&schema["x-kubernetes-validations"]).iter().enumerate() {
        for field in ["rule", "messageExpression"] {
            compiled(&rule[field], &OF_RULES, &here.index(i).child(field), errors);
        }
        let text = rule["rule"].as_str().unwrap_or_default();
        if let Ok(cost) = expression::rule_cost(text, schema) {
            too_dear(
                cost.saturating_mul(times),
                &here.index(i).child("rule"),
                errors,
            );
        }
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        rules(property, times, &path.child("properties").key(name), errors);
    }
    for nested in ["items", "additionalProperties"] {
        if schema[nested].is_object() {
            let times = times.saturating_mul(cost::repeats(schema));
            rules(&schema[nested], times, &path.child(nested), errors);
        }
    }
}

/// In upstream's words.
fn too_dear(cost: u64, path: &Path, errors: &mut Errors) {
    if cost <= cost::LIMIT {
        return;
    }
    let tenths = cost / (cost::LIMIT / 10);
    let factor = match tenths {
        0..=1000 => format!("{}.{}x", tenths / 10, tenths % 10),
        _ => "more than 100x".to_owned(),
    };
    let detail = format!(
        "estimated rule cost exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, \
         maxProperties, and maxLength where arrays, maps, and strings are declared)"
    );
    errors.forbidden(path, detail);
}

fn faults(policy: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut known = OF_REQUEST.to_vec();
    if policy["spec"]["paramKind"].is_object() {
        known.push("params");
    }
    let of_request = known.clone();
    known.push("variables");
    for (key, fields) in EXPRESSIONS {
        for (i, item) in list(&policy["spec"][key]).iter().enumerate() {
            for field in fields {
                let path = Path::new("spec").child(key).index(i).child(field);
                // Conditions are asked before variables are composed.
                let known = if key == "matchConditions" {
                    &of_request
                } else {
                    &known
                };
                compiled(&item[field], known, &path, &mut errors);
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_that_could_cost_too_much_is_refused() {
        let definition = |limit: Option<u64>| {
            let mut texts = json!({
                "type": "array", "items": {"type": "string"},
                "x-kubernetes-validations": [{"rule": "self.all(t, t.contains('x'))"}],
            });
            if let Some(limit) = limit {
                texts["maxItems"] = limit.into();
                texts["items"]["maxLength"] = limit.into();
            }
            let schema = json!({"type": "object", "properties": {"texts": texts}});
            json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}})
        };
        assert!(definition_faults(&definition(Some(50))).is_empty());
        let found = definition_faults(&definition(None));
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 1);
        let words = "exceeds budget by factor of more than 100x";
        assert!(found[0].contains(words), "{found:?}");
    }

    #[test]
    fn every_expression_is_compiled() {
        let policy = json!({"spec": {
            "matchConditions": [{"name": "a", "expression": "1 +"}],
            "variables": [{"name": "b", "expression": "object.x"}],
            "validations": [{"expression": "true", "messageExpression": "'"}],
        }});
        let fields: Vec<_> = faults(&policy).iter().map(|e| e.field.clone()).collect();
        assert_eq!(
            fields,
            [
                "spec.matchConditions[0].expression",
                "spec.validations[0].messageExpression"
            ]
        );
    }
}
