//! Structural schemas: each level says its type, so that pruning, defaulting and server-side apply know every field
//! (KEP-1164, `k8s.io/apiextensions-apiserver/pkg/apiserver/schema`).

use serde_json::{Value, json};
use windlass_machinery::openapi;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;
use crate::validate::same;

const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";

/// Where a schema stands, which changes its words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

/// Whether a level uses keywords that no structure can be made of.
pub fn is_beyond(schema: &Value) -> bool {
    let is_said = |field: &&str| match schema.get(field) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Object(map)) => *field == "dependencies" || !map.is_empty(),
        Some(_) => true,
    };
    let keywords = [
        "id",
        "$schema",
        "$ref",
        "additionalItems",
        "patternProperties",
        "definitions",
        "dependencies",
    ];
    keywords.iter().any(is_said) || schema.at("items").is_array()
}

/// The faults stand in the order of their texts, as upstream sorts them.
pub fn validate(schema: &Value, path: &Path, errors: &mut Errors) {
    let mut found = Errors::new();
    invariants(schema, Level::Root, path, &mut found);
    said_outside_of(schema, schema, path, path, &mut found);
    found.sort();
    errors.extend(found);
}

fn invariants(schema: &Value, at: Level, path: &Path, errors: &mut Errors) {
    let kind = schema.text("type");
    let items = schema.at("items");
    if kind == "array" && !items.is_object() {
        errors.required(&path.child("items"), "must be specified");
    }
    if items.is_object() {
        invariants(items, Level::Item, &path.child("items"), errors);
    }
    for (name, property) in schema.entries("properties") {
        let path = path.child("properties").key(name);
        invariants(property, Level::Field, &path, errors);
    }
    let values = schema.at("additionalProperties");
    let values_path = path.child("additionalProperties");
    if !values.is_null() && at == Level::Root {
        errors.forbidden(&values_path, "must not be used at the root");
    }
    if values.is_object() {
        invariants(values, Level::Field, &values_path, errors);
    }
    extensions(schema, path, errors);
    values_of(schema, &Junctors::of(schema), path, errors);
    of_type(schema, at, path, errors);
    if schema.flag(EMBEDDED) && !values.is_null() {
        let detail = "must not be used if x-kubernetes-embedded-resource is set";
        errors.forbidden(&values_path, detail);
    }
    if at == Level::Root && !kind.is_empty() && kind != "object" {
        errors.invalid(&path.child("type"), kind, "must be object at the root");
    }
    of_resource(schema, at, path, errors);
}

fn extensions(schema: &Value, path: &Path, errors: &mut Errors) {
    if !schema.flag(INT_OR_STRING) {
        return;
    }
    for field in [PRESERVE, EMBEDDED] {
        if schema.flag(field) {
            let detail = "must be false if x-kubernetes-int-or-string is true";
            errors.invalid(&path.child(field), true, detail);
        }
    }
}

fn of_type(schema: &Value, at: Level, path: &Path, errors: &mut Errors) {
    let (kind, path) = (schema.text("type"), path.child("type"));
    if schema.flag(EMBEDDED) && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        match kind {
            "" => errors.required(&path, detail),
            kind => errors.invalid(&path, kind, detail),
        }
    } else if kind.is_empty() && !schema.flag(INT_OR_STRING) && !schema.flag(PRESERVE) {
        let detail = match at {
            Level::Root => "must not be empty at the root",
            Level::Field => "must not be empty for specified object fields",
            Level::Item => "must not be empty for specified array items",
        };
        errors.required(&path, detail);
    }
}

/// What every resource has, at the root and embedded.
fn of_resource(schema: &Value, at: Level, path: &Path, errors: &mut Errors) {
    let is_embedded = schema.flag(EMBEDDED);
    let is_resource = at == Level::Root || is_embedded;
    let properties = path.child("properties");
    for field in ["kind", "apiVersion"] {
        let property = schema.at("properties").get(field);
        let other = property.map(|p| p.text("type")).filter(|t| *t != "string");
        if let Some(kind) = other.filter(|_| is_resource) {
            let path = properties.key(field).child("type");
            errors.invalid(&path, kind, "must be string");
        }
    }
    if let Some(metadata) = schema.at("properties").get("metadata") {
        let path = properties.key("metadata");
        let kind = metadata.text("type");
        if is_resource && kind != "object" {
            errors.invalid(&path.child("type"), kind, "must be object");
        }
        if at == Level::Root && !is_plain(metadata) {
            let detail = "must not specify anything other than name and generateName, but metadata is \
                          implicitly specified";
            errors.forbidden(&path, detail);
        }
    }
    if is_embedded && !schema.flag(PRESERVE) && schema.entries("properties").next().is_none() {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                      x-kubernetes-preserve-unknown-fields";
        errors.required(&properties, detail);
    }
}

/// Whether a schema of metadata says nothing but what names look like.
fn is_plain(metadata: &Value) -> bool {
    let mut names = metadata.entries("properties").map(|(name, _)| name);
    let only_names = names.all(|name| ["name", "generateName"].contains(&name));
    let rest = metadata.as_object().into_iter().flatten();
    let mut rest =
        rest.filter(|(field, _)| !["type", "default", "properties"].contains(&field.as_str()));
    let is_silent = |value: &Value| value == false || same(value, &Value::Null);
    only_names && rest.all(|(_, value)| is_silent(value))
}

/// The two ways in which an int-or-string has always been written, whose types are let pass.
struct Junctors {
    any_of: bool,
    first_all_of: bool,
}

impl Junctors {
    const NONE: Self = Self {
        any_of: false,
        first_all_of: false,
    };

    fn of(schema: &Value) -> Self {
        let is_pattern =
            |any_of: &Value| same(any_of, &json!([{"type": "integer"}, {"type": "string"}]));
        let first = schema.list("allOf").first();
        Self {
            any_of: is_pattern(schema.at("anyOf")),
            first_all_of: first.is_some_and(|first| is_pattern(first.at("anyOf"))),
        }
    }
}

/// The keywords about values.
fn values_of(schema: &Value, passed: &Junctors, path: &Path, errors: &mut Errors) {
    if !passed.any_of {
        each_nested(schema, "anyOf", path, errors);
    }
    for (i, inner) in schema.list("allOf").iter().enumerate() {
        let passed = Junctors {
            any_of: passed.first_all_of && i == 0,
            first_all_of: false,
        };
        nested(inner, &passed, &path.child("allOf").index(i), errors);
    }
    each_nested(schema, "oneOf", path, errors);
    if schema.at("not").is_object() {
        nested(
            schema.at("not"),
            &Junctors::NONE,
            &path.child("not"),
            errors,
        );
    }
    let pattern = schema.text("pattern");
    if !pattern.is_empty()
        && let Err(why) = openapi::pattern(pattern)
    {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errors.invalid(&path.child("pattern"), pattern, detail);
    }
}

fn each_nested(schema: &Value, list: &str, path: &Path, errors: &mut Errors) {
    for (i, inner) in schema.list(list).iter().enumerate() {
        nested(inner, &Junctors::NONE, &path.child(list).index(i), errors);
    }
}

/// What may not be said inside of `allOf` and its like, where only values are judged, and how it should be.
const STRUCTURE: [(&str, &str); 12] = [
    ("type", "empty"),
    ("additionalProperties", "undefined"),
    ("default", "undefined"),
    ("title", "empty"),
    ("description", "empty"),
    ("nullable", "false"),
    (PRESERVE, "false"),
    (EMBEDDED, "false"),
    (INT_OR_STRING, "false"),
    ("x-kubernetes-list-map-keys", "empty"),
    ("x-kubernetes-list-type", "undefined"),
    ("x-kubernetes-map-type", "undefined"),
];

fn nested(schema: &Value, passed: &Junctors, path: &Path, errors: &mut Errors) {
    values_of(schema, passed, path, errors);
    if schema.at("items").is_object() {
        nested(
            schema.at("items"),
            &Junctors::NONE,
            &path.child("items"),
            errors,
        );
    }
    for (name, property) in schema.entries("properties") {
        let path = path.child("properties").key(name);
        nested(property, &Junctors::NONE, &path, errors);
    }
    let rules = [("x-kubernetes-validations", "empty")];
    for (field, wanted) in STRUCTURE.iter().chain(&rules) {
        let value = schema.at(field);
        let is_said = match *wanted {
            "undefined" => !value.is_null(),
            _ => value != false && !same(value, &Value::Null),
        };
        if is_said {
            let detail = format!("must be {wanted} to be structural");
            errors.forbidden(&path.child(field), detail);
        }
    }
    if schema.at("properties").get("metadata").is_some() {
        let path = path.child("properties").key("metadata");
        errors.forbidden(&path, "must not be specified in a nested context");
    }
}

/// Every field and item that is judged inside of `allOf` and its like must be said outside of them: in `outside`, which
/// has a path of its own. Upstream follows only those of the root.
fn said_outside_of(
    values: &Value,
    outside: &Value,
    path: &Path,
    outside_path: &Path,
    errors: &mut Errors,
) {
    for list in ["allOf", "anyOf", "oneOf"] {
        for (i, inner) in values.list(list).iter().enumerate() {
            let path = path.child(list).index(i);
            parts_said(inner, outside, &path, outside_path, errors);
        }
    }
    if values.at("not").is_object() {
        let path = path.child("not");
        parts_said(values.at("not"), outside, &path, outside_path, errors);
    }
}

fn parts_said(
    inner: &Value,
    outside: &Value,
    path: &Path,
    outside_path: &Path,
    errors: &mut Errors,
) {
    said_outside_of(inner, outside, path, outside_path, errors);
    if inner.at("items").is_object() {
        let place = outside_path.child("items");
        match outside.at("items") {
            items if items.is_object() => {
                parts_said(
                    inner.at("items"),
                    items,
                    &path.child("items"),
                    &place,
                    errors,
                );
            }
            _ => {
                let detail = format!("because it is defined in {}", path.child("items"));
                errors.required(&place, detail);
            }
        }
    }
    for (name, property) in inner.entries("properties") {
        let path = path.child("properties").key(name);
        let place = outside_path.child("properties").key(name);
        match outside.at("properties").get(name) {
            Some(said) => parts_said(property, said, &path, &place, errors),
            None => errors.required(&place, format!("because it is defined in {path}")),
        }
    }
}

#[cfg(test)]
mod tests {
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
                json!({"type": "object", "properties": {"p": {
                    "x-kubernetes-int-or-string": true,
                    "anyOf": [{"type": "integer"}, {"type": "string"}],
                }}}),
                vec![],
            ),
            (
                json!({"type": "object",
                    "anyOf": [{"properties": {"a": {"minimum": 1}}, "type": "object"}],
                    "not": {"required": ["x"], "nullable": true}}),
                vec![
                    "s.anyOf[0].type: Forbidden: must be empty to be structural",
                    "s.not.nullable: Forbidden: must be false to be structural",
                    "s.properties[a]: Required value: because it is defined in s.anyOf[0].properties[a]",
                ],
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
