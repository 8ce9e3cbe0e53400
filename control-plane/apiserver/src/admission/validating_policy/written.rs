//! Expressions are compiled when the object that holds them is written, so that a typing error is its author's
//! and not that of everybody whose request it then refuses: policies, match conditions of webhooks, rules in
//! the schemas of custom resources.

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};

use crate::admission::expression::compile;
use crate::admission::{Attributes, matching};

/// Lists of a policy's spec, and the fields of their items that hold expressions.
const EXPRESSIONS: [(&str, &[&str]); 4] = [
    ("matchConditions", &["expression"]),
    ("variables", &["expression"]),
    ("validations", &["expression", "messageExpression"]),
    ("auditAnnotations", &["valueExpression"]),
];

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

fn expression(value: &Value, path: &Path, errors: &mut Errors) {
    let Some(expression) = value.as_str().filter(|text| !text.is_empty()) else {
        return;
    };
    if let Err(why) = compile(expression) {
        errors.invalid(path, expression, why);
    }
}

fn webhook_faults(configuration: &Value) -> Errors {
    let mut errors = Errors::new();
    for (i, webhook) in list(&configuration["webhooks"]).iter().enumerate() {
        let path = Path::new("webhooks").index(i).child("matchConditions");
        for (i, condition) in list(&webhook["matchConditions"]).iter().enumerate() {
            let path = path.index(i).child("expression");
            expression(&condition["expression"], &path, &mut errors);
        }
    }
    errors
}

fn definition_faults(definition: &Value) -> Errors {
    let mut errors = Errors::new();
    for (i, version) in list(&definition["spec"]["versions"]).iter().enumerate() {
        let path = Path::new("spec").child("versions").index(i);
        let path = path.child("schema").child("openAPIV3Schema");
        rules(&version["schema"]["openAPIV3Schema"], &path, &mut errors);
    }
    errors
}

/// The rules of a schema and of those inside it, whose depth the structural check has limited.
fn rules(schema: &Value, path: &Path, errors: &mut Errors) {
    let here = path.child("x-kubernetes-validations");
    for (i, rule) in list(&schema["x-kubernetes-validations"]).iter().enumerate() {
        for field in ["rule", "messageExpression"] {
            expression(&rule[field], &here.index(i).child(field), errors);
        }
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        rules(property, &path.child("properties").key(name), errors);
    }
    for nested in ["items", "additionalProperties"] {
        if schema[nested].is_object() {
            rules(&schema[nested], &path.child(nested), errors);
        }
    }
}

fn faults(policy: &Value) -> Errors {
    let mut errors = Errors::new();
    for (key, fields) in EXPRESSIONS {
        for (i, item) in list(&policy["spec"][key]).iter().enumerate() {
            for field in fields {
                let path = Path::new("spec").child(key).index(i).child(field);
                expression(&item[field], &path, &mut errors);
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
