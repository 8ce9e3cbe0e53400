//! What a policy finds wrong with a request.

use serde_json::Value;

use crate::admission::expression::Variables;
use crate::admission::matching;

/// Longer messages, in bytes, are not taken from expressions.
const MAX_MESSAGE: usize = 5 * 1024;
const INVALID: (u16, &str) = (422, "Invalid");

/// Something that a policy objects to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) message: String,
    /// The refusal's code and reason.
    pub(super) status: (u16, &'static str),
}

impl Verdict {
    /// The policy could not be evaluated, and fails closed.
    pub(super) fn failure(message: String) -> Self {
        Self {
            message,
            status: INVALID,
        }
    }
}

pub(super) fn ignores_failure(policy: &Value) -> bool {
    policy["spec"]["failurePolicy"] == "Ignore"
}

/// Evaluates a policy; `variables` hold the request and the parameters.
pub(super) fn of(policy: &Value, variables: &mut Variables) -> Vec<Verdict> {
    let spec = &policy["spec"];
    let list = |key: &str| spec[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let failed = |message: String| {
        let ignored = ignores_failure(policy);
        (!ignored).then(|| Verdict::failure(message))
    };
    match matching::all_hold(list("matchConditions"), variables) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(why) => return failed(why).into_iter().collect(),
    }
    variables.compose(list("variables").iter().filter_map(|variable| {
        Some((variable["name"].as_str()?, variable["expression"].as_str()?))
    }));
    let verdicts = list("validations").iter().filter_map(|validation| {
        let expression = validation["expression"].as_str().unwrap_or_default();
        match variables.holds(expression) {
            Ok(true) => None,
            Ok(false) => Some(Verdict {
                message: message(validation, expression, variables),
                status: status(validation),
            }),
            Err(why) => failed(format!(
                "expression '{expression}' resulted in error: {why}"
            )),
        }
    });
    verdicts.collect()
}

/// The expression's text, else the fixed one, else the expression that failed.
fn message(validation: &Value, expression: &str, variables: &Variables) -> String {
    let made = validation["messageExpression"]
        .as_str()
        .filter(|e| !e.is_empty());
    if let Some(made) = made.and_then(|made| variables.text(made).ok()) {
        let made = made.trim();
        if !made.is_empty() && made.len() <= MAX_MESSAGE && !made.contains('\n') {
            return made.to_owned();
        }
    }
    match validation["message"].as_str().map(str::trim) {
        Some(fixed) if !fixed.is_empty() => fixed.to_owned(),
        _ => format!("failed expression: {}", expression.trim()),
    }
}

fn status(validation: &Value) -> (u16, &'static str) {
    match validation["reason"].as_str() {
        Some("Forbidden") => (403, "Forbidden"),
        Some("Unauthorized") => (401, "Unauthorized"),
        Some("RequestEntityTooLarge") => (413, "RequestEntityTooLarge"),
        _ => INVALID,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(spec: Value) -> Vec<String> {
        let mut variables = Variables::new();
        variables.set("object", &json!({"spec": {"replicas": 7}}));
        variables.set("params", &json!({"max": 5}));
        of(&json!({"spec": spec}), &mut variables)
            .into_iter()
            .map(|verdict| format!("{} {}", verdict.status.0, verdict.message))
            .collect()
    }

    #[test]
    fn a_policy_says_what_is_wrong() {
        let small = "object.spec.replicas <= params.max";
        let table = [
            (
                json!({"validations": [{"expression": "object.spec.replicas > 1"}]}),
                vec![],
            ),
            (
                json!({"validations": [{"expression": small}]}),
                vec!["422 failed expression: object.spec.replicas <= params.max"],
            ),
            (
                json!({"validations": [{"expression": small, "message": "too many", "reason": "Forbidden"}]}),
                vec!["403 too many"],
            ),
            (
                json!({"validations": [{
                    "expression": small, "message": "fixed",
                    "messageExpression": "'at most ' + string(params.max)",
                }]}),
                vec!["422 at most 5"],
            ),
            (
                json!({"validations": [{"expression": small, "message": "fixed", "messageExpression": "nothing.here"}]}),
                vec!["422 fixed"],
            ),
            (
                json!({
                    "variables": [{"name": "n", "expression": "object.spec.replicas"}],
                    "validations": [
                        {"expression": "variables.n < 3", "message": "a"},
                        {"expression": "variables.n < 4", "message": "b"},
                    ],
                }),
                vec!["422 a", "422 b"],
            ),
            (
                json!({
                    "matchConditions": [{"name": "m", "expression": "object.spec.replicas > 100"}],
                    "validations": [{"expression": "false"}],
                }),
                vec![],
            ),
            (
                json!({"failurePolicy": "Ignore", "validations": [{"expression": "object.spec.no > 1"}]}),
                vec![],
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(found(spec.clone()), expected, "{spec}");
        }
    }

    #[test]
    fn a_policy_that_cannot_be_evaluated_fails_closed() {
        for spec in [
            json!({"failurePolicy": "Fail", "validations": [{"expression": "object.spec.no > 1"}]}),
            json!({"matchConditions": [{"name": "m", "expression": "object.no"}], "validations": []}),
        ] {
            assert_eq!(found(spec.clone()).len(), 1, "{spec}");
        }
    }
}
