//! What an `openAPIV3Schema` may say: structure first, then defaults, then the keywords of each level.

use std::collections::HashSet;

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use super::{defaults, rules, structural};
use crate::tree::Tree;

pub const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const LIST_TYPE: &str = "x-kubernetes-list-type";
const MAP_TYPE: &str = "x-kubernetes-map-type";
const MAP_KEYS: &str = "x-kubernetes-list-map-keys";

/// Of texts, without their dashes.
const FORMATS: [&str; 26] = [
    "bsonobjectid",
    "byte",
    "cidr",
    "creditcard",
    "date",
    "datetime",
    "duration",
    "email",
    "hexcolor",
    "hostname",
    "ipv4",
    "ipv6",
    "isbn",
    "isbn10",
    "isbn13",
    "k8slongname",
    "k8sshortname",
    "mac",
    "password",
    "rgbcolor",
    "ssn",
    "uri",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
];

/// Which rules a definition need not keep, since it did not before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub unknown_types: bool,
    pub unpruned_defaults: bool,
    pub sets_of_parts: bool,
    pub loose_keys: bool,
}

impl Kept {
    /// What a stored definition may keep.
    pub fn of(old: &Value) -> Self {
        let any = |check: &dyn Fn(&Value) -> bool| {
            let mut versions = old.list("spec.versions").iter();
            versions.any(|version| has(version.at("schema.openAPIV3Schema"), check))
        };
        let breaks = |rule: fn(&Value, &Path, &mut Errors)| {
            any(&|schema| {
                let mut errors = Errors::new();
                rule(schema, &Path::root(), &mut errors);
                !errors.is_empty()
            })
        };
        Self {
            unknown_types: any(&|schema| is_unknown(schema.text("type"))),
            unpruned_defaults: any(&defaults::is_unpruned),
            sets_of_parts: breaks(sets_are_of_wholes),
            loose_keys: breaks(keys_are_firm),
        }
    }
}

/// Adds the formats of texts in a schema that are nobody's, and hold for every text.
pub fn unknown_formats<'s>(schema: &'s Value, found: &mut Vec<&'s str>) {
    let format = schema.text("format");
    let is_text = schema.text("type") == "string" && !format.is_empty();
    if is_text && !FORMATS.contains(&&*format.replace('-', "")) {
        found.push(format);
    }
    for schema in inside(schema).filter(|schema| schema.is_object()) {
        unknown_formats(schema, found);
    }
}

/// Whether a version's schema has any.
pub fn has_defaults(version: &Value) -> bool {
    has(version.at("schema.openAPIV3Schema"), &|schema| {
        schema.has("default")
    })
}

fn is_unknown(kind: &str) -> bool {
    !kind.is_empty() && !TYPES.contains(&kind)
}

/// Whether a schema or one inside it is such.
fn has(schema: &Value, check: &dyn Fn(&Value) -> bool) -> bool {
    schema.is_object() && (check(schema) || inside(schema).any(|schema| has(schema, check)))
}

/// The schemas directly inside of one.
fn inside(schema: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["allOf", "oneOf", "anyOf"].into_iter();
    let single = ["additionalProperties", "not", "items"].into_iter();
    let properties = schema.entries("properties").map(|(_, property)| property);
    properties
        .chain(single.map(move |field| schema.at(field)))
        .chain(lists.flat_map(move |field| schema.list(field)))
}

/// What the root may have if the status is judged by itself: nothing of it may be lost then.
const AT_ROOT: &[(&str, &str)] = &[
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    (PRESERVE, "XPreserveUnknownFields"),
    ("x-kubernetes-validations", "XValidations"),
];

/// A version's whole schema; `has_status`: it has that subresource.
pub fn validate(schema: &Value, has_status: bool, kept: &Kept, path: &Path, errors: &mut Errors) {
    if has_status {
        root_with_status(schema, path, errors);
    }
    if schema.flag("nullable") {
        let detail = "nullable cannot be true at the root";
        errors.forbidden(&path.child("nullable"), detail);
    }
    // A schema that has no structure at all is refused for its keywords, below.
    if !has(schema, &structural::is_beyond) {
        let before = errors.len();
        structural::validate(schema, path, errors);
        if errors.len() == before {
            defaults::validate(schema, !kept.unpruned_defaults, path, errors);
        }
    }
    let level = Level {
        kept,
        is_root: true,
        in_metadata: false,
        no_defaults: None,
    };
    level.validate(schema, path, errors);
}

fn root_with_status(schema: &Value, path: &Path, errors: &mut Errors) {
    let kind = schema.text("type");
    if !kind.is_empty() && kind != "object" {
        let detail = "only \"object\" is allowed as the type at the root of the schema if the status \
                      subresource is enabled";
        return errors.invalid(&path.child("type"), kind, detail);
    }
    let is_said = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
    let is_other = |(name, value): (&str, &Value)| {
        is_said(value) && !AT_ROOT.iter().any(|(allowed, _)| *allowed == name)
    };
    if root_entries(schema).any(is_other) {
        let allowed: Vec<_> = AT_ROOT.iter().map(|(_, shown)| *shown).collect();
        let detail = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            allowed.join(" ")
        );
        errors.invalid(path, schema.clone(), detail);
    }
}

fn root_entries(schema: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let fields = schema.as_object().into_iter().flatten();
    fields.map(|(name, value)| (name.as_str(), value))
}

/// One level of a schema.
#[derive(Clone, Copy)]
struct Level<'k> {
    kept: &'k Kept,
    is_root: bool,
    in_metadata: bool,
    /// Why there may be no default here.
    no_defaults: Option<&'k str>,
}

impl Level<'_> {
    fn validate(&self, schema: &Value, path: &Path, errors: &mut Errors) {
        self.keywords(schema, path, errors);
        if schema.flag("uniqueItems") {
            let detail =
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            errors.forbidden(&path.child("uniqueItems"), detail);
        }
        self.parts(schema, path, errors);
        if schema.at(PRESERVE) == false {
            errors.invalid(&path.child(PRESERVE), false, "must be true or undefined");
        }
        map_type(schema, path, errors);
        list_type(schema, self.kept, path, errors);
        map_keys(schema, path, errors);
        if !self.kept.loose_keys {
            keys_are_firm(schema, path, errors);
        }
        rules::validate(schema, path, errors);
    }

    fn keywords(&self, schema: &Value, path: &Path, errors: &mut Errors) {
        let kind = schema.text("type");
        if !self.kept.unknown_types && is_unknown(kind) {
            errors.not_supported(&path.child("type"), kind, TYPES);
        }
        if let Some(why) = self.no_defaults.filter(|_| schema.has("default")) {
            let detail = format!("must not be set {why}");
            errors.forbidden(&path.child("default"), detail);
        }
        for field in [
            "id",
            "additionalItems",
            "patternProperties",
            "definitions",
            "dependencies",
            "$ref",
        ] {
            let is_said = match schema.get(field) {
                None | Some(Value::Null) => false,
                Some(Value::String(text)) => field == "$ref" || !text.is_empty(),
                Some(Value::Object(map)) => field == "dependencies" || !map.is_empty(),
                Some(_) => true,
            };
            if is_said {
                let detail = format!("{field} is not supported");
                errors.forbidden(&path.child(field), detail);
            }
        }
        if kind == "null" {
            let detail = "type cannot be set to null, use nullable as an alternative";
            errors.forbidden(&path.child("type"), detail);
        }
        if schema.at("items").is_array() {
            let detail = "items must be a schema object and not an array";
            errors.forbidden(&path.child("items"), detail);
        }
        if self.in_metadata && schema.flag("x-kubernetes-embedded-resource") {
            let path = path.child("x-kubernetes-embedded-resource");
            errors.forbidden(&path, "must not be used inside of resource meta");
        }
    }

    /// The schemas inside.
    fn parts(&self, schema: &Value, path: &Path, errors: &mut Errors) {
        let below = Self {
            is_root: false,
            ..*self
        };
        let values = schema.at("additionalProperties");
        let values_path = path.child("additionalProperties");
        let has_properties = schema.entries("properties").next().is_some();
        if has_properties && !matches!(values, Value::Null | Value::Bool(true)) {
            let detail = "additionalProperties and properties are mutual exclusive";
            errors.forbidden(&values_path, detail);
        }
        if values.is_object() {
            let no_defaults = match self.in_metadata {
                true => Some("inside additionalProperties applying to object metadata"),
                false => self.no_defaults,
            };
            let below = Level {
                no_defaults,
                ..below
            };
            below.validate(values, &values_path, errors);
        }
        let is_resource = self.is_root || schema.flag("x-kubernetes-embedded-resource");
        for (name, property) in schema.entries("properties") {
            let path = path.child("properties").key(name);
            let is_metadata = is_resource && ["metadata", "kind", "apiVersion"].contains(&name);
            let why = format!("in top-level {name}");
            let below = Level {
                in_metadata: self.in_metadata || is_metadata,
                no_defaults: match is_metadata && self.is_root {
                    true => Some(&why),
                    false => self.no_defaults,
                },
                ..below
            };
            below.validate(property, &path, errors);
        }
        if schema.at("not").is_object() {
            below.validate(schema.at("not"), &path.child("not"), errors);
        }
        for field in ["allOf", "oneOf", "anyOf"] {
            for (i, inner) in schema.list(field).iter().enumerate() {
                below.validate(inner, &path.child(field).index(i), errors);
            }
        }
        if schema.at("items").is_object() {
            below.validate(schema.at("items"), &path.child("items"), errors);
        }
    }
}

/// An extension wants a type.
fn of_type(schema: &Value, wanted: &str, extension: &str, path: &Path, errors: &mut Errors) {
    let kind = schema.text("type");
    let detail = format!("must be {wanted} if {extension} is specified");
    match kind {
        kind if kind == wanted => {}
        "" => errors.required(&path.child("type"), detail),
        kind => errors.invalid(&path.child("type"), kind, detail),
    }
}

fn map_type(schema: &Value, path: &Path, errors: &mut Errors) {
    let Some(kind) = schema.at(MAP_TYPE).as_str() else {
        return;
    };
    of_type(schema, "object", MAP_TYPE, path, errors);
    let allowed = &["atomic", "granular"];
    if !allowed.contains(&kind) {
        errors.not_supported(&path.child(MAP_TYPE), kind, allowed);
    }
}

fn list_type(schema: &Value, kept: &Kept, path: &Path, errors: &mut Errors) {
    let Some(kind) = schema.at(LIST_TYPE).as_str() else {
        return;
    };
    of_type(schema, "array", LIST_TYPE, path, errors);
    if schema.text("type") == "array" && !kept.sets_of_parts {
        sets_are_of_wholes(schema, path, errors);
    }
    let allowed = &["atomic", "set", "map"];
    if !allowed.contains(&kind) {
        errors.not_supported(&path.child(LIST_TYPE), kind, allowed);
    }
}

/// The items of a set are told apart as wholes, so nobody may own a part of one.
fn sets_are_of_wholes(schema: &Value, path: &Path, errors: &mut Errors) {
    if schema.text(LIST_TYPE) != "set" {
        return;
    }
    let items = schema.at("items");
    let path = path.child("items");
    let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
    // Upstream shows the kind of list of both.
    let shown = items.at(LIST_TYPE);
    match items.text("type") {
        "array" if !shown.is_null() && shown != "atomic" => {
            errors.invalid(&path.child(LIST_TYPE), shown.clone(), detail);
        }
        "object" if items.at(MAP_TYPE) != "atomic" => {
            errors.invalid(&path.child(MAP_TYPE), shown.clone(), detail);
        }
        _ => {}
    }
}

fn map_keys(schema: &Value, path: &Path, errors: &mut Errors) {
    let keys = schema.list(MAP_KEYS);
    let (type_path, keys_path) = (path.child(LIST_TYPE), path.child(MAP_KEYS));
    let kind = schema.at(LIST_TYPE);
    if !keys.is_empty() && kind != "map" {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        match kind {
            Value::Null => errors.required(&type_path, detail),
            kind => errors.invalid(&type_path, kind.clone(), detail),
        }
    }
    if kind != "map" {
        return;
    }
    if keys.is_empty() {
        let detail = "must not be empty if x-kubernetes-list-type is map";
        errors.required(&keys_path, detail);
    }
    let (items, path) = (schema.at("items"), path.child("items"));
    match items {
        Value::Null => {
            let detail = "must have a schema if x-kubernetes-list-type is map";
            return errors.required(&path, detail);
        }
        Value::Object(_) => {}
        other => {
            let detail = "must only have a single schema if x-kubernetes-list-type is map";
            return errors.invalid(&path, other.clone(), detail);
        }
    }
    if items.text("type") != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        return errors.invalid(&path.child("type"), items.text("type"), detail);
    }
    let mut seen = HashSet::new();
    for key in keys.iter().filter_map(Value::as_str) {
        match items.at("properties").get(key) {
            Some(property) if ["array", "object"].contains(&property.text("type")) => {
                let path = path.child("properties").key(key).child("type");
                let detail =
                    "must be a scalar type if parent array's x-kubernetes-list-type is map";
                // Upstream shows the items' type.
                errors.invalid(&path, items.text("type"), detail);
            }
            Some(_) => {}
            None => {
                let detail = "entries must all be names of item properties";
                errors.invalid(&keys_path, json!(keys), detail);
            }
        }
        if !seen.insert(key) {
            errors.invalid(
                &keys_path,
                json!(keys),
                "must not contain duplicate entries",
            );
        }
    }
}

/// Items that are told apart are there, and so is what tells them apart.
fn keys_are_firm(schema: &Value, path: &Path, errors: &mut Errors) {
    let (items, kind) = (schema.at("items"), schema.text(LIST_TYPE));
    if !items.is_object() || !["set", "map"].contains(&kind) {
        return;
    }
    let path = path.child("items");
    if items.flag("nullable") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {kind}");
        errors.forbidden(&path.child("nullable"), detail);
    }
    if kind != "map" {
        return;
    }
    for key in schema.list(MAP_KEYS).iter().filter_map(Value::as_str) {
        let Some(property) = items.at("properties").get(key) else {
            continue;
        };
        let path = path.child("properties").key(key);
        let is_required = items.list("required").iter().any(|name| name == key);
        if !is_required && !property.has("default") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a \
                          required property";
            errors.required(&path.child("default"), detail);
        }
        if property.flag("nullable") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.forbidden(&path.child("nullable"), detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn what_a_definition_had_it_may_keep() {
        let schema = json!({"type": "object", "properties": {
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}},
            "d": {"type": "object", "default": {"x": 1}},
        }});
        let faults = |kept: &Kept| lines(|e| validate(&schema, false, kept, &Path::new("s"), e));
        assert_eq!(
            faults(&Kept::default()),
            [
                "s.properties[d].default: Invalid value: {\"x\":1}: must not have unknown fields",
                "s.properties[set].items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list \
                 with x-kubernetes-list-type=set",
            ]
        );
        let old = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}});
        let kept = Kept::of(&old);
        let expected = Kept {
            unpruned_defaults: true,
            sets_of_parts: true,
            ..Kept::default()
        };
        assert_eq!(kept, expected);
        assert_eq!(faults(&kept), [""; 0]);
    }
}
