//! Reading and filling JSON trees by dotted paths, with Go's idea of absence: a missing field and `null` are the same,
//! and so is `""` where it is not a pointer's (the decoder has dropped it there, unless the field is required).
//!
//! Field names in the built-in types contain no dots, so a path is split on them without allocating; keys of
//! free maps (labels, data) are read with `get`.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// Read access; what is absent or of another type reads as empty.
pub trait Tree {
    /// The value at a dotted path, or `Null`.
    fn at(&self, path: &str) -> &Value;

    fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    fn int(&self, path: &str) -> Option<i64> {
        self.at(path).as_i64()
    }

    fn flag(&self, path: &str) -> bool {
        self.at(path).as_bool().unwrap_or_default()
    }

    fn list(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map_or(&[], Vec::as_slice)
    }

    fn map(&self, path: &str) -> Option<&Map<String, Value>> {
        self.at(path).as_object()
    }

    /// The entries of a map; none where it is absent.
    fn entries(&self, path: &str) -> impl Iterator<Item = (&str, &Value)> {
        self.map(path)
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value))
    }

    fn has(&self, path: &str) -> bool {
        !self.at(path).is_null()
    }
}

impl Tree for Value {
    fn at(&self, path: &str) -> &Value {
        path.split('.')
            .try_fold(self, |value, field| value.get(field))
            .unwrap_or(&NULL)
    }
}

/// The object at a dotted path, made where it is missing. Anything else in the way is replaced: callers run
/// after the decoder has checked the types.
pub fn object_at<'a>(root: &'a mut Value, path: &str) -> &'a mut Map<String, Value> {
    let mut here = root;
    if !path.is_empty() {
        for field in path.split('.') {
            here = as_object(here).entry(field).or_insert(Value::Null);
        }
    }
    as_object(here)
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("just made an object")
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// Sets a field that is unset; its parents are made.
pub fn fill(root: &mut Value, path: &str, value: impl Into<Value>) {
    let (parent, field) = split(path);
    let object = object_at(root, parent);
    if object.get(field).is_none_or(Value::is_null) {
        object.insert(field.to_owned(), value.into());
    }
}

/// Sets a text that is unset or empty: required fields that are plain strings in Go.
pub fn fill_text(root: &mut Value, path: &str, value: &str) {
    if root.text(path).is_empty() {
        set(root, path, value);
    }
}

/// Sets a field that is unset, only where its parent exists.
pub fn fill_in(root: &mut Value, path: &str, value: impl Into<Value>) {
    let (parent, field) = split(path);
    if let Some(object) = at_mut(root, parent).filter(|v| v.is_object()) {
        fill(object, field, value);
    }
}

/// Sets a number that is unset or 0: fields that are plain integers in Go.
pub fn fill_zero(root: &mut Value, field: &str, value: i64) {
    if root.int(field).unwrap_or_default() == 0 {
        object_at(root, "").insert(field.to_owned(), value.into());
    }
}

/// Sets a field whatever it was; its parents are made.
pub fn set(root: &mut Value, path: &str, value: impl Into<Value>) {
    let (parent, field) = split(path);
    object_at(root, parent).insert(field.to_owned(), value.into());
}

/// Removes a field and gives what it was.
pub fn remove(root: &mut Value, path: &str) -> Option<Value> {
    let (parent, field) = split(path);
    at_mut(root, parent)?.as_object_mut()?.remove(field)
}

/// Gives a field the value it has in `old`, absent if it is absent there.
pub fn keep(new: &mut Value, old: &Value, path: &str) {
    match old.at(path) {
        Value::Null => {
            remove(new, path);
        }
        value => set(new, path, value.clone()),
    }
}

/// The value at a dotted path, if all of it exists.
pub fn at_mut<'a>(root: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    if path.is_empty() {
        return Some(root);
    }
    path.split('.')
        .try_fold(root, |value, field| value.get_mut(field))
}

/// The elements of a list; none where it is absent.
pub fn each<'a>(root: &'a mut Value, path: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    at_mut(root, path)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn filling_makes_parents_and_keeps_what_is_set() {
        let mut value = json!({"spec": {"a": "", "b": 0, "g": ""}});
        fill(&mut value, "spec.a", "x");
        fill(&mut value, "spec.b", 1);
        fill(&mut value, "spec.c.d", true);
        fill_in(&mut value, "spec.e.f", true);
        fill_text(&mut value, "spec.g", "y");
        assert_eq!(
            value,
            json!({"spec": {"a": "", "b": 0, "c": {"d": true}, "g": "y"}})
        );
    }

    #[test]
    fn keeping_takes_absence_over_too() {
        let old = json!({"spec": {"a": 1}});
        let mut new = json!({"spec": {"a": 2, "b": 3}});
        keep(&mut new, &old, "spec.a");
        keep(&mut new, &old, "spec.b");
        assert_eq!(new, old);
    }
}
