//! Structural schemas: each level says its type, so that pruning, defaulting and server-side apply know every field
//! (KEP-1164, `k8s.io/apiextensions-apiserver/pkg/apiserver/schema`).

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use super::rules;
use crate::tree::Tree;

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

/// Where a schema stands, which changes its words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

pub fn validate(schema: &Value, path: &Path, errors: &mut Errors) {
    level(schema, Level::Root, path, errors);
    let metadata = schema.at("properties.metadata");
    if let Some(properties) = metadata.map("properties") {
        let path = path.child("properties").key("metadata");
        if properties
            .keys()
            .any(|name| !matches!(name.as_str(), "name" | "generateName"))
        {
            let detail = "must not specify anything other than name and generateName, but metadata is \
                          implicitly specified";
            errors.forbidden(&path, detail);
        }
    }
}

fn level(schema: &Value, at: Level, path: &Path, errors: &mut Errors) {
    let kind = schema.text("type");
    let kind_path = path.child("type");
    let (int_or_string, preserve) = (
        schema.flag("x-kubernetes-int-or-string"),
        schema.flag("x-kubernetes-preserve-unknown-fields"),
    );
    if kind.is_empty() && !int_or_string && !preserve {
        let detail = match at {
            Level::Root => "must not be empty at the root",
            Level::Field => "must not be empty for specified object fields",
            Level::Item => "must not be empty for specified array items",
        };
        errors.required(&kind_path, detail);
    }
    if !kind.is_empty() && !TYPES.contains(&kind) {
        errors.not_supported(&kind_path, kind, TYPES);
    }
    if at == Level::Root && !kind.is_empty() && kind != "object" {
        errors.invalid(&kind_path, kind, "must be object at the root");
    }
    if int_or_string && !kind.is_empty() {
        errors.invalid(
            &kind_path,
            kind,
            "must be empty if x-kubernetes-int-or-string is true",
        );
    }
    if schema.flag("x-kubernetes-embedded-resource") {
        if kind != "object" {
            errors.invalid(
                &kind_path,
                kind,
                "must be object if x-kubernetes-embedded-resource is true",
            );
        }
        if !preserve && schema.entries("properties").next().is_none() {
            let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                          x-kubernetes-preserve-unknown-fields";
            errors.required(&path.child("properties"), detail);
        }
    }
    if schema.at("x-kubernetes-preserve-unknown-fields").as_bool() == Some(false) {
        let path = path.child("x-kubernetes-preserve-unknown-fields");
        errors.invalid(&path, false, "must be true or undefined");
    }
    unsupported(schema, path, errors);
    list_kind(schema, path, errors);
    map_kind(schema, path, errors);
    rules::validate(schema, path, errors);
    children(schema, path, errors);
    for field in ["allOf", "anyOf", "oneOf"] {
        for (i, inner) in schema.list(field).iter().enumerate() {
            value_validation(inner, &path.child(field).index(i), errors);
        }
    }
    if schema.has("not") {
        value_validation(schema.at("not"), &path.child("not"), errors);
    }
}

fn children(schema: &Value, path: &Path, errors: &mut Errors) {
    let additional = schema.at("additionalProperties");
    if schema.entries("properties").next().is_some() && !matches!(additional, Value::Null) {
        let detail = "must not be used if properties is set";
        errors.forbidden(&path.child("additionalProperties"), detail);
    }
    for (name, property) in schema.entries("properties") {
        level(
            property,
            Level::Field,
            &path.child("properties").key(name),
            errors,
        );
    }
    match additional {
        Value::Object(_) => level(
            additional,
            Level::Field,
            &path.child("additionalProperties"),
            errors,
        ),
        Value::Bool(false) => {
            errors.forbidden(&path.child("additionalProperties"), "must not be false");
        }
        _ => {}
    }
    match schema.at("items") {
        Value::Object(_) => level(
            schema.at("items"),
            Level::Item,
            &path.child("items"),
            errors,
        ),
        Value::Array(_) => {
            let detail = "items must be a schema object and not an array";
            errors.forbidden(&path.child("items"), detail);
        }
        _ => {
            if schema.text("type") == "array" {
                errors.required(&path.child("items"), "must be specified");
            }
        }
    }
}

/// Keywords of JSON schema that structural schemas leave out.
fn unsupported(schema: &Value, path: &Path, errors: &mut Errors) {
    for (field, detail) in [
        ("$ref", "$ref is not supported"),
        ("definitions", "definitions is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("patternProperties", "patternProperties is not supported"),
        ("additionalItems", "additionalItems is not supported"),
        ("id", "id is not supported"),
    ] {
        if schema.get(field).is_some_and(|value| !value.is_null()) {
            errors.forbidden(&path.child(field), detail);
        }
    }
    if schema.flag("uniqueItems") {
        let detail =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.forbidden(&path.child("uniqueItems"), detail);
    }
}

fn list_kind(schema: &Value, path: &Path, errors: &mut Errors) {
    const KEYS: &str = "x-kubernetes-list-map-keys";
    let kind = schema.text("x-kubernetes-list-type");
    let keys = schema.list(KEYS);
    let kind_path = path.child("x-kubernetes-list-type");
    if !kind.is_empty() && schema.text("type") != "array" {
        let detail = "must be array if x-kubernetes-list-type is specified";
        errors.invalid(&path.child("type"), schema.text("type"), detail);
    }
    match kind {
        "" | "atomic" | "set" => {
            if !keys.is_empty() {
                let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
                errors.invalid(&kind_path, kind, detail);
            }
        }
        "map" => {
            if keys.is_empty() {
                let detail = "must not be empty if x-kubernetes-list-type is map";
                errors.required(&path.child(KEYS), detail);
            }
            let items = schema.at("items");
            if items.text("type") != "object" {
                let detail = "must be object if parent array's x-kubernetes-list-type is map";
                errors.invalid(
                    &path.child("items").child("type"),
                    items.text("type"),
                    detail,
                );
            }
            let mut seen = HashSet::new();
            for (i, key) in keys.iter().enumerate() {
                let key = key.as_str().unwrap_or_default();
                let key_path = path.child(KEYS).index(i);
                if !seen.insert(key) {
                    errors.duplicate(&key_path, key);
                }
                let property = items.at("properties").get(key);
                match property {
                    None => {
                        let detail = "entries must all be names of item properties";
                        errors.invalid(&key_path, key, detail);
                    }
                    Some(property) => {
                        let required = items.list("required").iter().any(|r| r == key);
                        if !required && property.get("default").is_none() {
                            let path = path
                                .child("items")
                                .child("properties")
                                .key(key)
                                .child("default");
                            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a \
                                          default or be a required property";
                            errors.required(&path, detail);
                        }
                    }
                }
            }
        }
        other => errors.not_supported(&kind_path, other, &["atomic", "map", "set"]),
    }
}

fn map_kind(schema: &Value, path: &Path, errors: &mut Errors) {
    let kind = schema.text("x-kubernetes-map-type");
    if kind.is_empty() {
        return;
    }
    if schema.text("type") != "object" {
        let detail = "must be object if x-kubernetes-map-type is specified";
        errors.invalid(&path.child("type"), schema.text("type"), detail);
    }
    if !["atomic", "granular"].contains(&kind) {
        let path = path.child("x-kubernetes-map-type");
        errors.not_supported(&path, kind, &["atomic", "granular"]);
    }
}

/// Inside of `allOf` and its like only values are judged; structure is said outside.
fn value_validation(schema: &Value, path: &Path, errors: &mut Errors) {
    for field in [
        "type",
        "description",
        "title",
        "default",
        "nullable",
        "additionalProperties",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-map-type",
    ] {
        let is_set = match schema.get(field) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(_) => true,
        };
        // `anyOf: [{type: integer}, {type: string}]` is how an int-or-string has always been written.
        if is_set && !(field == "type" && ["integer", "string"].contains(&schema.text("type"))) {
            errors.forbidden(&path.child(field), "must be empty to be structural");
        }
    }
    for (name, property) in schema.entries("properties") {
        value_validation(property, &path.child("properties").key(name), errors);
    }
    if schema.has("items") {
        value_validation(schema.at("items"), &path.child("items"), errors);
    }
    for field in ["allOf", "anyOf", "oneOf"] {
        for (i, inner) in schema.list(field).iter().enumerate() {
            value_validation(inner, &path.child(field).index(i), errors);
        }
    }
    if schema.has("not") {
        value_validation(schema.at("not"), &path.child("not"), errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn each_level_says_its_type() {
        for (schema, expected) in [
            (
                json!({}),
                vec!["s.type: Required value: must not be empty at the root"],
            ),
            (
                json!({"type": "string"}),
                vec!["s.type: Invalid value: \"string\": must be object at the root"],
            ),
            (
                json!({"type": "object", "properties": {"a": {}, "b": {"type": "array"}}}),
                vec![
                    "s.properties[a].type: Required value: must not be empty for specified object fields",
                    "s.properties[b].items: Required value: must be specified",
                ],
            ),
            (
                json!({"type": "object", "properties": {"a": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["k"],
                    "items": {"type": "object", "properties": {"k": {"type": "string"}}},
                }}}),
                vec![
                    "s.properties[a].items.properties[k].default: Required value: this property is in \
                     x-kubernetes-list-map-keys, so it must have a default or be a required property",
                ],
            ),
            (
                json!({"type": "object", "properties": {"p": {
                    "x-kubernetes-int-or-string": true,
                    "anyOf": [{"type": "integer"}, {"type": "string"}],
                }}}),
                vec![],
            ),
            (
                json!({"type": "object", "properties": {"metadata": {
                    "type": "object", "properties": {"labels": {"type": "object"}},
                }}}),
                vec![
                    "s.properties[metadata]: Forbidden: must not specify anything other than name and \
                     generateName, but metadata is implicitly specified",
                ],
            ),
        ] {
            assert_eq!(
                lines(|e| validate(&schema, &Path::new("s"), e)),
                expected,
                "{schema}"
            );
        }
    }
}
