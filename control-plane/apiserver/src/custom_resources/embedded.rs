//! Resources inside of custom resources (`x-kubernetes-embedded-resource`) are such only if they say of what kind they are, and
//! their metadata is judged as any object's.

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

const MARK: &str = "x-kubernetes-embedded-resource";

/// Whether objects that keep to the schema may hold others.
pub(super) fn may_hold(schema: &Value) -> bool {
    schema[MARK] == true
        || match schema {
            Value::Object(map) => map.values().any(may_hold),
            Value::Array(items) => items.iter().any(may_hold),
            _ => false,
        }
}

/// Adds the faults of all resources in a value that keeps to the schema.
pub(super) fn validate(schema: &Value, value: &Value, path: &Path, errors: &mut Errors) {
    match value {
        Value::Object(map) => {
            if schema[MARK] == true {
                resource(value, path, errors);
            }
            for (name, part) in map {
                match schema["properties"].get(name) {
                    Some(property) => validate(property, part, &path.child(name), errors),
                    None => {
                        let schema = &schema["additionalProperties"];
                        validate(schema, part, &path.key(name), errors);
                    }
                }
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                validate(&schema["items"], item, &path.index(at), errors);
            }
        }
        _ => {}
    }
}

fn resource(object: &Value, path: &Path, errors: &mut Errors) {
    for field in ["apiVersion", "kind"] {
        let path = path.child(field);
        match &object[field] {
            Value::Null => errors.required(&path, "must not be empty"),
            Value::String(text) if text.is_empty() => {
                errors.invalid(&path, text.as_str(), "must not be empty");
            }
            Value::String(text) if field == "kind" => {
                for fault in names::is_dns1035_label(&text.to_lowercase()) {
                    let detail =
                        format!("may have mixed case, but should otherwise match: {fault}");
                    errors.invalid(&path, text.as_str(), detail);
                }
            }
            Value::String(_) => {}
            other => errors.invalid(&path, other.clone(), "must be a string"),
        }
    }
    let path = path.child("metadata");
    let name = meta::name(object);
    if !name.is_empty() {
        for fault in names::is_dns1123_subdomain(name) {
            errors.invalid(&path.child("name"), name, fault);
        }
    }
    meta::validate_labels(meta::labels(object), &path.child("labels"), errors);
    meta::validate_annotations(
        meta::annotations(object),
        &path.child("annotations"),
        errors,
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resource_says_what_it_is() {
        let embedded =
            json!({"type": "object", MARK: true, "x-kubernetes-preserve-unknown-fields": true});
        let schema = json!({"type": "object", "properties": {
            "templates": {"type": "array", "items": embedded}, "other": {"type": "object"}}});
        assert!(may_hold(&schema) && !may_hold(&schema["properties"]["other"]));
        let object = json!({"other": {}, "templates": [
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {}},
            {"apiVersion": "", "kind": "P_d", "metadata": {"name": "A"}},
            {"metadata": {"labels": {"x y": "z"}}},
        ]});
        let mut errors = Errors::new();
        validate(&schema, &object, &Path::root(), &mut errors);
        let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "templates[1].apiVersion",
                "templates[1].kind",
                "templates[1].metadata.name",
                "templates[2].apiVersion",
                "templates[2].kind",
                "templates[2].metadata.labels",
            ]
        );
    }
}
