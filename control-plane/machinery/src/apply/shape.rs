//! How server-side apply sees a value: as one piece, or as something whose parts have owners of their own.

use serde_json::Value;

use crate::schema::{Field, FieldType, ListType, Schema, TypeId};

/// What the schema says about merging a value.
#[derive(Clone, Copy)]
pub(crate) enum Shape<'s> {
    /// A scalar, or a list, map or struct that is owned as a whole.
    Leaf,
    Struct(TypeId),
    /// Each entry is owned by itself.
    Map(&'s FieldType),
    /// Scalars, each owned by itself.
    Set,
    /// Objects, identified by keys.
    Keyed(&'s [Box<str>], &'s FieldType),
    /// Nothing is known: maps are taken apart, everything else is a leaf.
    Untyped,
}

impl<'s> Shape<'s> {
    pub(crate) fn of_field(schema: &'s Schema, field: &'s Field) -> Self {
        if field.atomic {
            return Self::Leaf;
        }
        match (&field.ty, &field.list_type) {
            (FieldType::Object(id), _) if field.granular => Self::Struct(*id),
            (FieldType::List(_), ListType::Atomic) => Self::Leaf,
            (FieldType::List(_), ListType::Set) => Self::Set,
            (FieldType::List(inner), ListType::Map(keys)) => Self::Keyed(keys, inner),
            (ty, _) => Self::of_type(schema, ty),
        }
    }

    /// The shape of a list's element or a map's value; lists in lists are atomic.
    pub(crate) fn of_type(schema: &'s Schema, ty: &'s FieldType) -> Self {
        match ty {
            FieldType::Object(id) if schema.get(*id).atomic => Self::Leaf,
            FieldType::Object(id) => Self::Struct(*id),
            FieldType::Map(inner) => Self::Map(inner),
            FieldType::Any => Self::Untyped,
            _ => Self::Leaf,
        }
    }

    /// The shape of a map's value or a struct's field.
    pub(crate) fn at_key(self, schema: &'s Schema, key: &str) -> Self {
        match self {
            Self::Struct(id) => match schema.get(id).field(key) {
                Some(field) => Self::of_field(schema, field),
                None => Self::Untyped,
            },
            Self::Map(inner) => Self::of_type(schema, inner),
            Self::Untyped => Self::Untyped,
            Self::Leaf | Self::Set | Self::Keyed(..) => Self::Leaf,
        }
    }

    /// The shape of a list's element.
    pub(crate) fn at_element(self, schema: &'s Schema) -> Self {
        match self {
            Self::Keyed(_, inner) => Self::of_type(schema, inner),
            _ => Self::Leaf,
        }
    }

    /// The shape at the end of a set's edge.
    pub(crate) fn below(self, schema: &'s Schema, edge: &str) -> Self {
        match edge.strip_prefix("f:") {
            Some(field) => self.at_key(schema, field),
            None => self.at_element(schema),
        }
    }

    /// Whether a set's edge is a field that the struct declares.
    pub(crate) fn has_field(self, schema: &Schema, edge: &str) -> bool {
        match (self, edge.strip_prefix("f:")) {
            (Self::Struct(id), Some(field)) => schema.get(id).field(field).is_some(),
            _ => false,
        }
    }

    /// What a struct's field holds in Go while nobody has set it, if it holds something.
    pub(crate) fn unset(self, schema: &Schema, key: &str) -> Option<Value> {
        let Self::Struct(id) = self else { return None };
        schema.get(id).field(key)?.zero.clone()
    }

    /// Whether this value's parts have owners of their own. A list or map that Go has not made is one without any.
    pub(crate) fn is_divided(self, value: &Value) -> bool {
        match self {
            Self::Leaf => false,
            Self::Struct(_) | Self::Map(_) | Self::Untyped => value.is_object() || value.is_null(),
            Self::Set | Self::Keyed(..) => value.is_array() || value.is_null(),
        }
    }

    /// The edge that leads to a list's element; nothing when it lacks every key.
    pub(crate) fn edge(self, schema: &Schema, item: &Value) -> Option<String> {
        let Self::Keyed(keys, inner) = self else {
            return Some(format!("v:{item}"));
        };
        let ty = inner.object().map(|id| schema.get(id));
        let mut sorted: Vec<&str> = keys.iter().map(|key| &**key).collect();
        sorted.sort_unstable();
        let mut edge = String::from("k:{");
        for key in sorted {
            // A key that is left out counts as its default: a port's protocol.
            let default = || {
                ty.and_then(|ty| ty.field(key))
                    .and_then(|field| field.default.as_ref())
            };
            let Some(value) = item
                .get(key)
                .filter(|value| !value.is_null())
                .or_else(default)
            else {
                continue;
            };
            if edge.len() > 3 {
                edge.push(',');
            }
            edge.push_str(&format!("{}:{value}", Value::from(key)));
        }
        if edge.len() == 3 {
            return None;
        }
        edge.push('}');
        Some(edge)
    }
}
