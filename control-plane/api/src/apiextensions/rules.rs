//! CEL rules in schemas, all but their expressions, which are compiled where they are run.

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;

const REASONS: &[&str] = &[
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];

pub(super) fn validate(schema: &Value, path: &Path, errors: &mut Errors) {
    for (i, rule) in schema.list("x-kubernetes-validations").iter().enumerate() {
        let path = path.child("x-kubernetes-validations").index(i);
        validate_one(rule, schema, &path, errors);
    }
}

fn validate_one(rule: &Value, schema: &Value, path: &Path, errors: &mut Errors) {
    let breaks = |text: &str| text.contains(['\n', '\r']);
    let is_blank = |text: &str| !text.is_empty() && text.trim().is_empty();
    let message = rule.text("message");
    let message_path = path.child("message");
    if rule.text("rule").trim().is_empty() {
        errors.required(&path.child("rule"), "rule is not specified");
    } else if is_blank(message) {
        let detail = "message must be non-empty if specified";
        errors.invalid(&message_path, message, detail);
    } else if breaks(message.trim()) {
        errors.invalid(
            &message_path,
            message,
            "message must not contain line breaks",
        );
    } else if breaks(rule.text("rule").trim()) && message.trim().is_empty() {
        let detail = "message must be specified if rule contains line breaks";
        errors.required(&message_path, detail);
    }
    if is_blank(rule.text("messageExpression")) {
        let detail = "messageExpression must be non-empty if specified";
        errors.required(&path.child("messageExpression"), detail);
    }
    if let Some(reason) = rule
        .at("reason")
        .as_str()
        .filter(|reason| !REASONS.contains(reason))
    {
        errors.not_supported(&path.child("reason"), reason, REASONS);
    }
    let field = rule.text("fieldPath");
    let path = path.child("fieldPath");
    if is_blank(field) {
        errors.invalid(&path, field, "fieldPath must be non-empty if specified");
    }
    if breaks(field) {
        errors.invalid(&path, field, "fieldPath must not contain line breaks");
    }
    if !is_path(field, schema) {
        errors.invalid(&path, field, "fieldPath must be a valid path");
    }
}

/// Whether a path leads to something from what the schema is of: by fields and keys of maps, not by elements of lists.
fn is_path(path: &str, schema: &Value) -> bool {
    let (mut rest, mut schema) = (path, schema);
    while !rest.is_empty() {
        let name;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            (name, rest) = after.split_at(end);
        } else if let Some((quoted, after)) = rest
            .strip_prefix("['")
            .and_then(|after| after.split_once("']"))
        {
            (name, rest) = (quoted, after);
        } else {
            return false;
        }
        let values = schema.at("additionalProperties");
        schema = match schema.at("properties").get(name) {
            Some(property) => property,
            None if values.is_object() && !name.is_empty() => values,
            None => return false,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn what_a_rule_says_is_checked() {
        let schema = |rule: Value| {
            json!({"type": "object", "x-kubernetes-validations": [rule], "properties": {
                "a": {"type": "object", "properties": {"b.c": {"type": "string"}}},
                "list": {"type": "array", "items": {"type": "string"}},
                "map": {"type": "object", "additionalProperties": {"type": "string"}}}})
        };
        for (rule, expected) in [
            (
                json!({"rule": "true", "fieldPath": ".a['b.c']", "reason": "FieldValueInvalid"}),
                vec![],
            ),
            (
                json!({"rule": "true", "fieldPath": ".map['x/y']", "message": "m", "messageExpression": "'a'"}),
                vec![],
            ),
            (
                json!({"rule": " "}),
                vec!["rule: Required value: rule is not specified"],
            ),
            (
                json!({"rule": "true", "message": "a\nb"}),
                vec!["message: Invalid value: \"a\\nb\": message must not contain line breaks"],
            ),
            (
                json!({"rule": "true\n&& true"}),
                vec![
                    "message: Required value: message must be specified if rule contains line breaks",
                ],
            ),
            (
                json!({"rule": "true", "messageExpression": " "}),
                vec![
                    "messageExpression: Required value: messageExpression must be non-empty if specified",
                ],
            ),
            (
                json!({"rule": "true", "reason": "Because"}),
                vec![
                    "reason: Unsupported value: \"Because\": supported values: \"FieldValueDuplicate\", \
                     \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\"",
                ],
            ),
            (
                json!({"rule": "true", "fieldPath": ".a.c"}),
                vec!["fieldPath: Invalid value: \".a.c\": fieldPath must be a valid path"],
            ),
            (
                json!({"rule": "true", "fieldPath": ".list[0]"}),
                vec!["fieldPath: Invalid value: \".list[0]\": fieldPath must be a valid path"],
            ),
            (
                json!({"rule": "true", "fieldPath": "a"}),
                vec!["fieldPath: Invalid value: \"a\": fieldPath must be a valid path"],
            ),
        ] {
            let expected: Vec<_> = expected
                .iter()
                .map(|line| format!("s.x-kubernetes-validations[0].{line}"))
                .collect();
            let schema = schema(rule);
            assert_eq!(
                lines(|e| validate(&schema, &Path::new("s"), e)),
                expected,
                "{schema}"
            );
        }
    }
}
