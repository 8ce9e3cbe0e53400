//! Checks that many kinds share, with the sentences of `k8s.io/kubernetes/pkg/apis/core/validation`.

pub mod conditions;
pub mod labels;
pub mod numbers;
pub mod quantities;

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;

/// Adds each sentence of a name check (empty when valid) as an invalid value.
pub fn sentences(problems: Vec<String>, path: &Path, value: &str, errors: &mut Errors) {
    for problem in problems {
        errors.invalid(path, value, problem);
    }
}

/// A string field that must be set; gives it when it is.
pub fn required<'a>(
    object: &'a Value,
    field: &str,
    path: &Path,
    errors: &mut Errors,
) -> Option<&'a str> {
    let text = object.text(field);
    if text.is_empty() {
        errors.required(&path.child(field), "");
        return None;
    }
    Some(text)
}

/// A string field that must be set and pass a name check.
pub fn named(
    object: &Value,
    field: &str,
    check: fn(&str) -> Vec<String>,
    path: &Path,
    errors: &mut Errors,
) {
    if let Some(text) = required(object, field, path, errors) {
        sentences(check(text), &path.child(field), text, errors);
    }
}

/// A string field that, if set, must pass a name check.
pub fn optional_name(
    object: &Value,
    field: &str,
    check: fn(&str) -> Vec<String>,
    path: &Path,
    errors: &mut Errors,
) {
    let text = object.text(field);
    if !text.is_empty() {
        sentences(check(text), &path.child(field), text, errors);
    }
}

/// An enumeration that must be set.
pub fn one_of(object: &Value, field: &str, allowed: &[&str], path: &Path, errors: &mut Errors) {
    if let Some(text) = required(object, field, path, errors)
        && !allowed.contains(&text)
    {
        errors.not_supported(&path.child(field), text, allowed);
    }
}

/// An enumeration that may be left out.
pub fn optional_one_of(
    object: &Value,
    field: &str,
    allowed: &[&str],
    path: &Path,
    errors: &mut Errors,
) {
    if object.has(field) {
        let text = object.text(field);
        if !allowed.contains(&text) {
            errors.not_supported(&path.child(field), text, allowed);
        }
    }
}

/// Addresses or ranges (`what`) of which `text` gives each one's own text: one of each family at most, and none twice.
pub fn one_of_each_family(
    list: &[Value],
    text: fn(&Value) -> &str,
    what: &str,
    path: &Path,
    errors: &mut Errors,
) {
    let is_v6 = |entry: &Value| text(entry).contains(':');
    if list.len() > 2 || (list.len() == 2 && is_v6(&list[0]) == is_v6(&list[1])) {
        let detail = format!("may specify no more than one {what} for each IP family");
        errors.invalid(path, list.to_vec(), detail);
    }
    for (i, entry) in list.iter().enumerate() {
        if list[..i].contains(entry) {
            errors.duplicate(&path.index(i), entry.clone());
        }
    }
}

/// A field that may not change: `field is immutable`.
pub fn immutable(new: &Value, old: &Value, field: &str, errors: &mut Errors) {
    let value = new.at(field);
    if !same(value, old.at(field)) {
        let path = field
            .split('.')
            .fold(Path::root(), |path, part| path.child(part));
        errors.invalid(&path, value.clone(), "field is immutable");
    }
}

/// Equality as Go's semantic DeepEqual has it: absent, null, empty lists and empty maps are the same.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter()
                .all(|(key, value)| same(value, b.get(key).unwrap_or(&Value::Null)))
                && b.iter()
                    .all(|(key, value)| a.contains_key(key) || is_empty(value))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => a == b || (is_empty(a) && is_empty(b)),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The errors of one check, for tests: `(field, kind, …)` reads better as the lines users see.
#[cfg(test)]
pub(crate) fn lines(check: impl FnOnce(&mut Errors)) -> Vec<String> {
    let mut errors = Errors::new();
    check(&mut errors);
    errors.iter().map(ToString::to_string).collect()
}

/// That there are these errors, of which some are long.
#[cfg(test)]
pub(crate) fn assert_begin(found: &[String], expected: &[&str]) {
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absence_and_emptiness_compare_equal() {
        assert!(same(
            &json!({"a": [], "b": {"c": 1}}),
            &json!({"b": {"c": 1, "d": null}})
        ));
        assert!(same(&json!({"a": 1}), &json!({"a": 1, "b": {}})));
        assert!(!same(&json!({"a": [1]}), &json!({"a": [1, 2]})));
        assert!(!same(&json!({}), &json!({"a": false})));
    }
}
