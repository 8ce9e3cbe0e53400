//! Expressions are compiled when the object that holds them is written, so that a typing error is its author's
//! and not that of everybody whose request it then refuses: policies, match conditions of webhooks, rules in
//! the schemas of custom resources.

use std::collections::BTreeMap;

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};

use super::schema_rules;
use crate::admission::{Attributes, matching};
use crate::cel;

/// Lists of a policy's spec, the fields of their items that hold expressions, and what types these may have.
const EXPRESSIONS: [(&str, &str, &[&str]); 5] = [
    ("matchConditions", "expression", &["bool"]),
    ("variables", "expression", &[]),
    ("validations", "expression", &["bool"]),
    ("validations", "messageExpression", &["string"]),
    ("auditAnnotations", "valueExpression", &["string", "null"]),
];

/// What conditions about a request may name.
const OF_REQUEST: [&str; 5] = [
    "object",
    "oldObject",
    "request",
    "namespaceObject",
    "authorizer",
];

/// # Errors
/// 422 for an expression that is none, unless it was there before.
pub(super) fn check(attributes: &Attributes<'_>, object: &Value) -> Result<(), ApiError> {
    let endpoint = attributes.endpoint;
    let (part, faults): (_, fn(&Value) -> Errors) = match (endpoint.group(), endpoint.plural()) {
        (matching::GROUP, super::POLICIES) => ("spec", faults),
        (matching::GROUP, _) => ("webhooks", webhook_faults),
        ("apiextensions.k8s.io", _) => ("spec", schema_rules::faults),
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

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// An expression over what is admitted, whose type is one of these where it is known; none: any.
fn compiled(value: &Value, known: &[&str], wanted: &[&str], path: &Path, errors: &mut Errors) {
    let Some(text) = value.as_str().filter(|text| !text.is_empty()) else {
        return;
    };
    if let Err(why) = cel::compile_over(text, known) {
        errors.invalid(path, text, why);
        return;
    }
    let found = cel::check(text, &BTreeMap::new()).0;
    if wanted.is_empty() || found.is_dyn() || wanted.contains(&found.to_string().as_str()) {
        return;
    }
    let what = match wanted {
        [one] => format!("must evaluate to {one}"),
        _ => format!("must evaluate to one of [{}]", wanted.join(" ")),
    };
    errors.invalid(path, text, what);
}

fn webhook_faults(configuration: &Value) -> Errors {
    let mut errors = Errors::new();
    for (i, webhook) in list(&configuration["webhooks"]).iter().enumerate() {
        let path = Path::new("webhooks").index(i).child("matchConditions");
        for (i, condition) in list(&webhook["matchConditions"]).iter().enumerate() {
            let path = path.index(i).child("expression");
            compiled(
                &condition["expression"],
                &OF_REQUEST,
                &["bool"],
                &path,
                &mut errors,
            );
        }
    }
    errors
}

fn faults(policy: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut known = OF_REQUEST.to_vec();
    if policy["spec"]["paramKind"].is_object() {
        known.push("params");
    }
    let of_request = known.clone();
    known.push("variables");
    for (key, field, wanted) in EXPRESSIONS {
        // Conditions are asked before variables are composed.
        let known = match key {
            "matchConditions" => &of_request,
            _ => &known,
        };
        for (i, item) in list(&policy["spec"][key]).iter().enumerate() {
            let path = Path::new("spec").child(key).index(i).child(field);
            compiled(&item[field], known, wanted, &path, &mut errors);
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_expression_is_compiled() {
        let policy = json!({"spec": {
            "matchConditions": [{"name": "a", "expression": "1 +"}],
            "variables": [{"name": "b", "expression": "object.x"}],
            "validations": [
                {"expression": "true", "messageExpression": "'"},
                {"expression": "'no answer'"},
                {"expression": "isGood(object)"},
            ],
        }});
        let fields: Vec<_> = faults(&policy).iter().map(|e| e.field.clone()).collect();
        assert_eq!(
            fields,
            [
                "spec.matchConditions[0].expression",
                "spec.validations[1].expression",
                "spec.validations[2].expression",
                "spec.validations[0].messageExpression",
            ]
        );
    }
}
