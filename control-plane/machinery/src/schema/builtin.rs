//! Reads the checked-in table of the built-in API.
//!
//! The text (`builtin.txt`, written by `cargo xtask schema`) has one line a type and one indented line a field:
//!
//! ```text
//! io.k8s.api.core.v1.ServiceSpec
//!   ports 1 [].ServicePort map=port,protocol key=port patch=merge
//! ```
//!
//! name, protobuf tag, type, then in any order: `inline=` (tags of embedded messages, outermost first), `required`,
//! `pointer` (an explicit zero is kept), `zero=` (JSON; what Go writes while it is not set), `set`, `map=` (list types; atomic is
//! the default), `atomic` (map or struct), `granular` (a struct of an atomic type that is not atomic here), `key=` and
//! `patch=` (strategic merge), `default=` (JSON; always last). `[]` is a list, `{}` a map, `.Name` a type of the same package.

use std::sync::{Arc, OnceLock};

use super::{Field, FieldType, ListType, Schema, SchemaAlternative, Type};

static TABLE: &str = include_str!("builtin.txt");

pub(super) fn schema() -> Arc<Schema> {
    static SCHEMA: OnceLock<Arc<Schema>> = OnceLock::new();
    SCHEMA.get_or_init(|| Arc::new(read(TABLE))).clone()
}

/// The text is part of the program: a fault in it is a fault of the build, found by every test.
fn read(text: &str) -> Schema {
    let mut schema = Schema::default();
    for line in text.lines().filter(|line| line.starts_with("io.")) {
        schema.declare(line.split(' ').next().unwrap_or(line));
    }
    let mut current: Option<(&str, bool, Vec<Field>)> = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(line) = line.strip_prefix("  ") {
            if let Some((name, _, fields)) = &mut current {
                fields.push(field(&schema, name, line));
            }
        } else {
            define(&mut schema, current.take());
            let (name, atomic) = line.split_once(' ').unwrap_or((line, ""));
            current = Some((name, atomic == "atomic", Vec::new()));
        }
    }
    define(&mut schema, current);
    schema
}

fn define(schema: &mut Schema, current: Option<(&str, bool, Vec<Field>)>) {
    if let Some((name, atomic, fields)) = current {
        let mut ty = Type::new(name, fields);
        ty.atomic = atomic;
        schema.define(ty);
    }
}

fn field(schema: &Schema, owner: &str, line: &str) -> Field {
    let (line, default) = match line.split_once(" default=") {
        Some((line, default)) => (line, Some(default)),
        None => (line, None),
    };
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default();
    let tag = words
        .next()
        .and_then(|tag| tag.parse().ok())
        .expect("every field has a tag");
    let ty = field_type(schema, owner, words.next().unwrap_or_default());
    let mut field = Field {
        tag,
        keeps_zero: false,
        ..Field::new(name, ty)
    };
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("required", _) => {
                field.required = true;
                field.keeps_zero = true;
            }
            ("pointer", _) => field.keeps_zero = true,
            ("atomic", _) => field.atomic = true,
            ("granular", _) => field.granular = true,
            ("zero", text) => field.zero = serde_json::from_str(text).ok(),
            ("set", _) => field.list_type = ListType::Set,
            ("map", keys) => {
                field.list_type = ListType::Map(keys.split(',').map(Box::from).collect());
            }
            ("key", key) => field.patch_merge_key = Some(key.into()),
            ("patch", strategy) => {
                field.patch_strategy.merge = strategy.split(',').any(|s| s == "merge");
                field.patch_strategy.retain_keys = strategy.split(',').any(|s| s == "retainKeys");
            }
            ("inline", tags) => {
                field.inline = tags.split('.').filter_map(|tag| tag.parse().ok()).collect();
            }
            (unknown, _) => unreachable!("the table has no word {unknown}"),
        }
    }
    field.default = default
        .and_then(|text| serde_json::from_str(text).ok())
        // A zero that says nothing needs not be filled in.
        .filter(|value| !field.is_empty_value(value));
    field
}

fn field_type(schema: &Schema, owner: &str, word: &str) -> FieldType {
    if let Some(inner) = word.strip_prefix("[]") {
        return FieldType::List(Box::new(field_type(schema, owner, inner)));
    }
    if let Some(inner) = word.strip_prefix("{}") {
        return FieldType::Map(Box::new(field_type(schema, owner, inner)));
    }
    let alternative = |alternative| {
        let name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
        let id = schema
            .type_id(name)
            .expect("the table holds JSONSchemaProps");
        FieldType::SchemaOr(alternative, id)
    };
    match word {
        "bool" => FieldType::Bool,
        "int32" => FieldType::Int32,
        "int64" => FieldType::Int64,
        "double" => FieldType::Float64,
        "string" => FieldType::String,
        "bytes" => FieldType::Bytes,
        "Quantity" => FieldType::Quantity,
        "IntOrString" => FieldType::IntOrString,
        "Time" => FieldType::Time,
        "MicroTime" => FieldType::MicroTime,
        "Duration" => FieldType::Duration,
        "RawExtension" => FieldType::RawExtension,
        "JSON" => FieldType::Json,
        "FieldsV1" => FieldType::FieldsV1,
        "SchemaOrBool" => alternative(SchemaAlternative::Bool),
        "SchemaOrArray" => alternative(SchemaAlternative::Schemas),
        "SchemaOrStringArray" => alternative(SchemaAlternative::Strings),
        name => {
            let id = match name.strip_prefix('.') {
                Some(short) => {
                    let package = owner.rsplit_once('.').map_or("", |(package, _)| package);
                    schema.type_id(&format!("{package}.{short}"))
                }
                None => schema.type_id(name),
            };
            FieldType::Object(id.expect("every type that a field names is in the table"))
        }
    }
}
