//! Defaults in schemas must keep to them.

use serde_json::Value;
use windlass_machinery::openapi::Rules;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;

/// Checks the defaults of a schema and of those inside it; `pruned`: they may say no more than the schema knows.
pub(super) fn validate(schema: &Value, pruned: bool, path: &Path, errors: &mut Errors) {
    if schema.has("default") {
        let (default, path) = (schema.at("default"), path.child("default"));
        if pruned && is_unpruned(schema) {
            errors.invalid(&path, default.clone(), "must not have unknown fields");
        }
        if let Ok(rules) = Rules::compile(schema) {
            // The sentences name what is inside of the default only.
            let mut found = Errors::new();
            rules.validate(default, &Path::root(), &mut found);
            errors.append_below(&path, found);
        }
    }
    if schema.at("items").is_object() {
        validate(schema.at("items"), pruned, &path.child("items"), errors);
    }
    for (name, property) in schema.entries("properties") {
        let path = path.child("properties").key(name);
        validate(property, pruned, &path, errors);
    }
}

/// Whether a schema's own default says what the schema does not know.
pub(super) fn is_unpruned(schema: &Value) -> bool {
    has_unknown(schema.at("default"), schema)
}

fn has_unknown(value: &Value, schema: &Value) -> bool {
    match value {
        Value::Array(items) => items
            .iter()
            .any(|item| has_unknown(item, schema.at("items"))),
        Value::Object(fields) => fields.iter().any(|(name, part)| {
            let of_every_resource = ["apiVersion", "kind", "metadata"].contains(&name.as_str());
            if of_every_resource && schema.flag("x-kubernetes-embedded-resource") {
                return false;
            }
            match (
                schema.at("properties").get(name),
                schema.at("additionalProperties"),
            ) {
                (Some(property), _) => has_unknown(part, property),
                (None, Value::Null) => !schema.flag("x-kubernetes-preserve-unknown-fields"),
                (None, values @ Value::Object(_)) => has_unknown(part, values),
                (None, _) => false,
            }
        }),
        _ => false,
    }
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
            "more": {"type": "object", "default": {"b": 1}, "properties": {"a": {"type": "string"}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {
                "e": {"type": "string", "enum": ["a"], "default": "b"}}}},
        }});
        let found = lines(|e| validate(&schema, true, &Path::new("s"), e));
        let unknown =
            "s.properties[more].default: Invalid value: {\"b\":1}: must not have unknown fields";
        assert_eq!(
            found,
            [
                "s.properties[list].items.properties[e].default: Unsupported value: \"b\": supported values: \"a\"",
                unknown,
                "s.properties[n].default: Invalid value: \"string\":  in body must be of type integer: \
                 \"string\"",
            ]
        );
        assert!(
            !lines(|e| validate(&schema, false, &Path::new("s"), e)).contains(&unknown.to_owned())
        );
    }
}
