//! A schema's JSON to [`Rules`].

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::{Bound, Kind, Range, Rules};

/// A pattern may not compile to more than this, in bytes: a few counted repetitions can ask for gigabytes.
const MAX_PATTERN: usize = 1 << 20;

/// A schema that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("{path}: unknown type {ty:?}")]
    Type { path: String, ty: String },
    #[error("{path}: pattern {pattern:?}: {why}")]
    Pattern {
        path: String,
        pattern: String,
        why: String,
    },
}

impl Rules {
    /// Compiles an `openAPIV3Schema`.
    pub fn compile(schema: &Value) -> Result<Self, SchemaError> {
        compile(schema, "")
    }
}

/// Compiles a `pattern`.
///
/// # Errors
/// Says why it is none, or that it is too large.
pub fn pattern(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).size_limit(MAX_PATTERN).build();
    built.map_err(|error| error.to_string())
}

fn compile(schema: &Value, path: &str) -> Result<Rules, SchemaError> {
    let flag = |name: &str| {
        schema
            .get(name)
            .and_then(Value::as_bool)
            .unwrap_or_default()
    };
    let count = |name: &str| schema.get(name).and_then(Value::as_u64);
    let number = |name: &str| schema.get(name).and_then(Value::as_f64);
    let texts = |name: &str| -> Vec<String> {
        let list = schema
            .get(name)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let nested = |name: &str| -> Result<Option<Box<Rules>>, SchemaError> {
        match schema.get(name).filter(|inner| inner.is_object()) {
            Some(inner) => Ok(Some(Box::new(compile(inner, &format!("{path}.{name}"))?))),
            None => Ok(None),
        }
    };
    let several = |name: &str| -> Result<Vec<Rules>, SchemaError> {
        let list = schema
            .get(name)
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        list.enumerate()
            .map(|(i, inner)| compile(inner, &format!("{path}.{name}[{i}]")))
            .collect()
    };
    let ty = match schema.get("type").and_then(Value::as_str) {
        None | Some("") => None,
        Some("object") => Some(Kind::Object),
        Some("array") => Some(Kind::Array),
        Some("string") => Some(Kind::String),
        Some("integer") => Some(Kind::Integer),
        Some("number") => Some(Kind::Number),
        Some("boolean") => Some(Kind::Boolean),
        Some(other) => {
            return Err(SchemaError::Type {
                path: path.to_owned(),
                ty: other.to_owned(),
            });
        }
    };
    let pattern = match schema
        .get("pattern")
        .and_then(Value::as_str)
        .filter(|pattern| !pattern.is_empty())
    {
        Some(text) => Some(self::pattern(text).map_err(|why| SchemaError::Pattern {
            path: path.to_owned(),
            pattern: text.to_owned(),
            why,
        })?),
        None => None,
    };
    let mut properties = Vec::new();
    for (key, inner) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        properties.push((
            key.clone(),
            compile(inner, &format!("{path}.properties[{key}]"))?,
        ));
    }
    properties.sort_by(|a, b| a.0.cmp(&b.0));
    let bound = |name: &str, exclusive: &str| {
        number(name).map(|value| Bound {
            value,
            exclusive: flag(exclusive),
        })
    };
    let list_type = schema.get("x-kubernetes-list-type").and_then(Value::as_str);
    Ok(Rules {
        ty,
        nullable: flag("nullable"),
        int_or_string: flag("x-kubernetes-int-or-string"),
        format: schema
            .get("format")
            .and_then(Value::as_str)
            .map(str::to_owned),
        choices: schema
            .get("enum")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default(),
        pattern,
        lengths: Range {
            min: count("minLength"),
            max: count("maxLength"),
        },
        items: Range {
            min: count("minItems"),
            max: count("maxItems"),
        },
        properties_count: Range {
            min: count("minProperties"),
            max: count("maxProperties"),
        },
        minimum: bound("minimum", "exclusiveMinimum"),
        maximum: bound("maximum", "exclusiveMaximum"),
        multiple_of: number("multipleOf").filter(|factor| *factor > 0.0),
        unique_items: flag("uniqueItems"),
        required: texts("required"),
        properties,
        additional: nested("additionalProperties")?,
        element: nested("items")?,
        set: list_type == Some("set"),
        map_keys: if list_type == Some("map") {
            texts("x-kubernetes-list-map-keys")
        } else {
            Vec::new()
        },
        all_of: several("allOf")?,
        any_of: several("anyOf")?,
        one_of: several("oneOf")?,
        not: nested("not")?,
    })
}
