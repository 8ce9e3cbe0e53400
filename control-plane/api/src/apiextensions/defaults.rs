//! Defaults in schemas must keep to them.

use serde_json::Value;
use windlass_machinery::openapi::Rules;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;

/// Checks the defaults of a schema and of those inside it, but those that were there before.
pub(super) fn validate(schema: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    if let Some(default) = schema.get("default")
        && (default, without_default(schema)) != (old.at("default"), without_default(old))
        && let Ok(rules) = Rules::compile(schema)
    {
        rules.validate(default, &path.child("default"), errors);
    }
    for (name, property) in schema.entries("properties") {
        let before = old.at("properties").get(name).unwrap_or(&Value::Null);
        validate(
            property,
            before,
            &path.child("properties").key(name),
            errors,
        );
    }
    for nested in ["items", "additionalProperties"] {
        if schema.at(nested).is_object() {
            validate(
                schema.at(nested),
                old.at(nested),
                &path.child(nested),
                errors,
            );
        }
    }
}

fn without_default(schema: &Value) -> Option<Value> {
    let mut schema = schema.as_object()?.clone();
    schema.remove("default");
    Some(schema.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn a_default_keeps_to_its_schema() {
        let schema = json!({"type": "object", "properties": {
            "n": {"type": "integer", "default": "x"},
            "ok": {"type": "object", "default": {}, "properties": {"a": {"type": "string", "default": "b"}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {
                "e": {"type": "string", "enum": ["a"], "default": "b"}}}},
        }});
        let found = lines(|e| validate(&schema, &Value::Null, &Path::new("s"), e));
        assert_eq!(
            found,
            [
                "s.properties[list].items.properties[e].default: Unsupported value: \"b\": supported values: \"a\"",
                "s.properties[n].default: Invalid value: \"string\": s.properties[n].default in body must be of type integer: \
                 \"string\"",
            ]
        );
        assert_eq!(
            lines(|e| validate(&schema, &schema, &Path::new("s"), e)),
            [""; 0]
        );
    }
}
