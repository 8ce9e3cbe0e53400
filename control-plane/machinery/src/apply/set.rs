//! Sets of fields, in the form in which `managedFields` keeps them.
//!
//! A set is a tree whose edges are the keys of `FieldsV1` JSON: `f:name` for a field, `k:{"name":"a"}` for an
//! element of a keyed list, `v:"x"` for an element of a set. The operations are those of
//! `sigs.k8s.io/structured-merge-diff`'s `fieldpath.Set`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value};

use super::shape::Shape;
use crate::schema::Schema;

/// How deep a set may be nested: as deep as an object.
const MAX_DEPTH: usize = 128;

/// The fields at and below one place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// The place itself is a member.
    pub(crate) here: bool,
    pub(crate) children: BTreeMap<String, Set>,
}

impl Set {
    pub(crate) fn leaf() -> Self {
        Self {
            here: true,
            children: BTreeMap::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.here && self.children.is_empty()
    }

    /// Puts a set under an edge; empty ones leave no trace.
    pub(crate) fn put(&mut self, edge: String, set: Set) {
        if !set.is_empty() {
            match self.children.entry(edge) {
                Entry::Vacant(slot) => {
                    slot.insert(set);
                }
                Entry::Occupied(mut slot) => slot.get_mut().union(set),
            }
        }
    }

    /// Members from dotted paths of fields: `metadata.name`.
    pub(crate) fn of_fields<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let mut set = Self::default();
        for path in paths {
            let mut at = &mut set;
            for field in path.split('.') {
                at = at.children.entry(format!("f:{field}")).or_default();
            }
            at.here = true;
        }
        set
    }

    pub(crate) fn union(&mut self, other: Set) {
        self.here |= other.here;
        for (edge, set) in other.children {
            self.put(edge, set);
        }
    }

    pub(crate) fn intersection(&self, other: &Set) -> Set {
        let mut out = Set {
            here: self.here && other.here,
            children: BTreeMap::new(),
        };
        for (edge, set) in &self.children {
            if let Some(other) = other.children.get(edge) {
                out.put(edge.clone(), set.intersection(other));
            }
        }
        out
    }

    /// Removes the members of `other`; what lies below such a member stays.
    pub(crate) fn subtract(&mut self, other: &Set) {
        self.here &= !other.here;
        self.children.retain(|edge, set| {
            if let Some(other) = other.children.get(edge) {
                set.subtract(other);
            }
            !set.is_empty()
        });
    }

    /// Removes the members of `other` and all that lies below them.
    pub(crate) fn subtract_below(&mut self, other: &Set) {
        if other.here {
            *self = Self::default();
            return;
        }
        self.children.retain(|edge, set| {
            if let Some(other) = other.children.get(edge) {
                set.subtract_below(other);
            }
            !set.is_empty()
        });
    }

    /// Makes each named field on the way to a member a member too. Entries of maps and lists are left alone: they
    /// come and go with their content.
    pub(crate) fn with_named_fields(&self, schema: &Schema, shape: Shape<'_>) -> Set {
        let mut out = Set {
            here: self.here,
            children: BTreeMap::new(),
        };
        for (edge, set) in &self.children {
            let inner = shape.below(schema, edge);
            let mut set = set.with_named_fields(schema, inner);
            set.here |= shape.has_field(schema, edge);
            out.children.insert(edge.clone(), set);
        }
        out
    }

    /// Calls with the text of each member's path: `.spec.ports[port=80,protocol="TCP"].name`.
    pub(crate) fn each_path(&self, mut call: impl FnMut(&str)) {
        self.walk(&mut String::new(), &mut call);
    }

    fn walk(&self, path: &mut String, call: &mut impl FnMut(&str)) {
        let length = path.len();
        for members in [true, false] {
            for (edge, set) in &self.children {
                if members && !set.here || !members && set.children.is_empty() {
                    continue;
                }
                write_edge(edge, path);
                if members {
                    call(path);
                } else {
                    set.walk(path, call);
                }
                path.truncate(length);
            }
        }
    }

    /// `FieldsV1` JSON.
    pub(crate) fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.here && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (edge, set) in &self.children {
            map.insert(edge.clone(), set.to_value());
        }
        Value::Object(map)
    }

    /// From `FieldsV1` JSON; what is no set gives nothing.
    pub(crate) fn from_value(value: &Value) -> Option<Set> {
        let mut set = Self::read(value, 0)?;
        // The root is an object, never a member.
        set.here = false;
        Some(set)
    }

    fn read(value: &Value, depth: usize) -> Option<Set> {
        let map = value.as_object()?;
        let mut set = Set {
            here: map.is_empty(),
            children: BTreeMap::new(),
        };
        if depth > MAX_DEPTH {
            return None;
        }
        for (edge, value) in map {
            if edge == "." {
                set.here = true;
            } else if matches!(edge.as_bytes(), [b'f' | b'k' | b'v' | b'i', b':', ..]) {
                set.children
                    .insert(edge.clone(), Self::read(value, depth + 1)?);
            } else {
                return None;
            }
        }
        Some(set)
    }
}

/// `f:name` -> `.name`, `k:{"name":"a"}` -> `[name="a"]`, `v:"x"` -> `[="x"]`, `i:0` -> `[0]`.
fn write_edge(edge: &str, path: &mut String) {
    let Some((kind, text)) = edge.split_once(':') else {
        return;
    };
    match kind {
        "f" => {
            path.push('.');
            path.push_str(text);
        }
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
            path.push('[');
            for (index, (key, value)) in keys.iter().enumerate() {
                if index > 0 {
                    path.push(',');
                }
                path.push_str(&format!("{key}={value}"));
            }
            path.push(']');
        }
        "v" => path.push_str(&format!("[={text}]")),
        _ => path.push_str(&format!("[{text}]")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(value: Value) -> Set {
        Set::from_value(&value).unwrap()
    }

    #[test]
    fn sets_read_and_write_as_fields_v1() {
        let value = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}}});
        assert_eq!(set(value.clone()).to_value(), value);
        let mut paths = Vec::new();
        set(value).each_path(|path| paths.push(path.to_owned()));
        assert_eq!(
            paths,
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port"
            ]
        );
        assert!(Set::from_value(&json!({"x": {}})).is_none());
        assert!(Set::from_value(&json!({"f:a": 1})).is_none());
    }

    #[test]
    fn algebra() {
        let a = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let b = set(json!({"f:a": {}, "f:d": {}}));
        assert_eq!(a.intersection(&b).to_value(), json!({"f:a": {}}));
        let mut difference = a.clone();
        difference.subtract(&b);
        assert_eq!(
            difference.to_value(),
            json!({"f:a": {"f:b": {}}, "f:c": {}})
        );
        let mut below = a.clone();
        below.subtract_below(&b);
        assert_eq!(below.to_value(), json!({"f:c": {}}));
        let mut union = a;
        union.union(b);
        assert_eq!(
            union.to_value(),
            json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}, "f:d": {}})
        );
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = (0..200).fold(json!({}), |inner, _| json!({"f:a": inner}));
        assert!(Set::from_value(&deep).is_none());
    }
}
