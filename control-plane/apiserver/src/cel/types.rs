//! What an expression may be, as far as it is known before it is evaluated.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use windlass_machinery::schema::{FieldType, Schema, TypeId};

use super::names::escaped;

#[derive(Clone, Debug)]
pub(crate) enum Type {
    /// Anything: nothing can be said against its use.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    List(Box<Type>),
    /// Keys are strings.
    Map(Box<Type>),
    Object(Arc<Schema>, TypeId),
    /// Fields that are known by name: `variables`, `request`.
    Record(Arc<BTreeMap<String, Type>>),
}

impl Type {
    pub(crate) fn object(schema: &Arc<Schema>, id: TypeId) -> Self {
        Self::Object(schema.clone(), id)
    }

    pub(crate) fn record(fields: impl IntoIterator<Item = (&'static str, Type)>) -> Self {
        let fields = fields.into_iter().map(|(name, ty)| (name.to_owned(), ty));
        Self::Record(Arc::new(fields.collect()))
    }

    /// What keeps to a structural schema; `is_resource`: the resource itself, or one embedded in it.
    pub(crate) fn structural(schema: &Value, is_resource: bool) -> Self {
        let flag = |name: &str| schema[name] == true;
        if flag("x-kubernetes-int-or-string") || flag("nullable") {
            return Self::Dyn;
        }
        let inside = |schema: &Value| {
            let is_resource = schema["x-kubernetes-embedded-resource"] == true;
            Box::new(Self::structural(schema, is_resource))
        };
        match schema["type"].as_str() {
            Some("boolean") => Self::Bool,
            Some("integer") => Self::Int,
            Some("number") => Self::Double,
            Some("string") => match schema["format"].as_str() {
                Some("date" | "date-time") => Self::Timestamp,
                Some("duration") => Self::Duration,
                Some("byte") => Self::Bytes,
                _ => Self::String,
            },
            Some("array") => Self::List(inside(&schema["items"])),
            Some("object") if schema["additionalProperties"].is_object() => {
                Self::Map(inside(&schema["additionalProperties"]))
            }
            // What is in it beyond its properties nobody has described.
            Some("object") if flag("x-kubernetes-preserve-unknown-fields") => Self::Dyn,
            Some("object") if schema["additionalProperties"] == true => Self::Dyn,
            Some("object") => {
                let properties = schema["properties"].as_object().into_iter().flatten();
                let fields = properties
                    .map(|(name, property)| (escaped(name).into_owned(), *inside(property)));
                let mut fields: BTreeMap<String, Self> = fields.collect();
                if is_resource {
                    let names = [("name", Self::String), ("generateName", Self::String)];
                    fields.insert("apiVersion".to_owned(), Self::String);
                    fields.insert("kind".to_owned(), Self::String);
                    fields.insert("metadata".to_owned(), Self::record(names));
                }
                Self::Record(Arc::new(fields))
            }
            _ => Self::Dyn,
        }
    }

    fn of_field(schema: &Arc<Schema>, field: &FieldType) -> Self {
        match field {
            FieldType::Bool => Self::Bool,
            FieldType::Int32 | FieldType::Int64 => Self::Int,
            FieldType::Float64 => Self::Double,
            FieldType::String | FieldType::Duration => Self::String,
            FieldType::Bytes => Self::Bytes,
            FieldType::Time | FieldType::MicroTime => Self::Timestamp,
            FieldType::Object(id) => Self::object(schema, *id),
            FieldType::List(inner) => Self::List(Box::new(Self::of_field(schema, inner))),
            FieldType::Map(inner) => Self::Map(Box::new(Self::of_field(schema, inner))),
            _ => Self::Dyn,
        }
    }

    /// The type of a field.
    ///
    /// # Errors
    /// What is wrong with selecting it.
    pub(crate) fn select(&self, name: &str) -> Result<Self, String> {
        match self {
            Self::Dyn => Ok(Self::Dyn),
            Self::Map(inner) => Ok((**inner).clone()),
            Self::Record(fields) => {
                let found = fields.get(name).cloned();
                found.ok_or_else(|| format!("undefined field '{name}'"))
            }
            Self::Object(schema, id) => {
                let ty = schema.get(*id);
                let mut fields = ty.fields.iter();
                match fields.find(|field| escaped(&field.name) == name) {
                    Some(field) => Ok(Self::of_field(schema, &field.ty)),
                    // Types without fields are those whose content nobody has described.
                    None if ty.preserve_unknown || ty.fields.is_empty() => Ok(Self::Dyn),
                    None if ty.embedded_resource => Ok(Self::Dyn),
                    None => Err(format!("undefined field '{name}'")),
                }
            }
            other => Err(format!("type '{other}' does not support field selection")),
        }
    }

    /// What a macro visits: a list's elements, a map's keys.
    pub(crate) fn visited(&self) -> Self {
        match self {
            Self::List(inner) => (**inner).clone(),
            Self::Map(_) => Self::String,
            _ => Self::Dyn,
        }
    }

    pub(crate) fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn)
    }

    pub(crate) fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Whether one may stand where the other is expected.
    pub(crate) fn fits(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            (Self::List(a), Self::List(b)) | (Self::Map(a), Self::Map(b)) => a.fits(b),
            // A map's literal says nothing of an object's type.
            (Self::Map(_), Self::Object(..) | Self::Record(_))
            | (Self::Object(..) | Self::Record(_), Self::Map(_)) => true,
            (Self::Null, Self::Object(..) | Self::Record(_) | Self::Timestamp | Self::Duration)
            | (Self::Object(..) | Self::Record(_) | Self::Timestamp | Self::Duration, Self::Null) => {
                true
            }
            (Self::Object(_, a), Self::Object(_, b)) => a == b,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Duration => f.write_str("duration"),
            Self::List(inner) => write!(f, "list({inner})"),
            Self::Map(inner) => write!(f, "map(string, {inner})"),
            Self::Object(schema, id) => f.write_str(schema.get(*id).short_name()),
            Self::Record(_) => f.write_str("object"),
        }
    }
}
