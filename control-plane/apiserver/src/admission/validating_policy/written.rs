//! A policy's expressions are compiled when it is written, so that a typing error is its author's and not that
//! of everybody whose request the policy then refuses.

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};

use crate::admission::Attributes;
use crate::admission::expression::compile;

/// Lists of a policy's spec, and the fields of their items that hold expressions.
const EXPRESSIONS: [(&str, &[&str]); 4] = [
    ("matchConditions", &["expression"]),
    ("variables", &["expression"]),
    ("validations", &["expression", "messageExpression"]),
    ("auditAnnotations", &["valueExpression"]),
];

pub(super) fn check(attributes: &Attributes<'_>, policy: &Value) -> Result<(), ApiError> {
    let unchanged = attributes
        .old
        .is_some_and(|old| old["spec"] == policy["spec"]);
    let errors = faults(policy);
    if unchanged || errors.is_empty() {
        return Ok(());
    }
    let endpoint = attributes.endpoint;
    Err(ApiError::invalid(
        endpoint.group(),
        endpoint.kind(),
        meta::name(policy),
        &errors,
    ))
}

fn faults(policy: &Value) -> Errors {
    let mut errors = Errors::new();
    for (list, fields) in EXPRESSIONS {
        let items = policy["spec"][list]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        for (i, item) in items.iter().enumerate() {
            for field in fields {
                let Some(expression) = item[field].as_str().filter(|text| !text.is_empty()) else {
                    continue;
                };
                if let Err(why) = compile(expression) {
                    let path = Path::new("spec").child(list).index(i).child(field);
                    errors.invalid(&path, expression, why);
                }
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
