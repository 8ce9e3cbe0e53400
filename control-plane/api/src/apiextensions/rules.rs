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
    } else if breaks(rule.text("rule").trim()) && message.is_empty() {
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
    if let Some(fault) = fault_of_path(field, schema) {
        errors.invalid(
            &path,
            field,
            format!("fieldPath must be a valid path: {fault}"),
        );
    }
}

/// What is wrong with a path from what the schema is of: fields and keys of maps, no elements of lists.
fn fault_of_path(path: &str, schema: &Value) -> Option<String> {
    let (mut rest, mut schema) = (path, schema);
    while let Some(first) = rest.chars().next() {
        let name;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            (name, rest) = after.split_at(end);
            if name.is_empty() {
                return Some("unexpected end of JSON path".to_owned());
            }
        } else if let Some(after) = rest.strip_prefix('[') {
            let end = after.find(']').unwrap_or(after.len());
            let inside = &after[..end];
            let quoted = inside
                .strip_prefix('\'')
                .and_then(|text| text.strip_suffix('\''));
            let Some(quoted) = quoted else {
                return Some(format!("expected single quoted string but got {inside}"));
            };
            name = quoted;
            rest = after.get(end + 1..).unwrap_or_default();
        } else {
            return Some(format!("expected [ or . but got: {first}"));
        }
        let values = schema.at("additionalProperties");
        schema = match schema.at("properties").get(name) {
            Some(property) => property,
            None if values.is_object() => values,
            None => return Some("does not refer to a valid field".to_owned()),
        };
    }
    None
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
                vec![
                    "fieldPath: Invalid value: \".a.c\": fieldPath must be a valid path: does not refer to a valid field",
                ],
            ),
            (
                json!({"rule": "true", "fieldPath": ".list[0]"}),
                vec![
                    "fieldPath: Invalid value: \".list[0]\": fieldPath must be a valid path: expected single quoted string but \
                     got 0",
                ],
            ),
            (
                json!({"rule": "true", "fieldPath": "a"}),
                vec![
                    "fieldPath: Invalid value: \"a\": fieldPath must be a valid path: expected [ or . but got: a",
                ],
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
