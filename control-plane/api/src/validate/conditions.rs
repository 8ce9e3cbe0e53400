//! Conditions in statuses, in the form that all newer kinds share (`meta/v1.Condition`).

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::sentences;
use crate::tree::Tree;

const STATUSES: &[&str] = &["False", "True", "Unknown"];
/// Bytes.
const MAX_REASON: usize = 1024;
const MAX_MESSAGE: usize = 32 * 1024;

/// A list of conditions, whose own path this is.
pub fn conditions(list: &[Value], path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, condition) in list.iter().enumerate() {
        let path = path.index(i);
        let kind = condition.text("type");
        if !seen.insert(kind) {
            errors.duplicate(&path.child("type"), kind);
        }
        validate(condition, &path, errors);
    }
}

fn validate(condition: &Value, path: &Path, errors: &mut Errors) {
    let (kind, status) = (condition.text("type"), condition.text("status"));
    sentences(
        names::is_qualified_name(kind),
        &path.child("type"),
        kind,
        errors,
    );
    if !STATUSES.contains(&status) {
        errors.not_supported(&path.child("status"), status, STATUSES);
    }
    let generation = condition.int("observedGeneration");
    if let Some(generation) = generation.filter(|generation| *generation < 0) {
        let detail = "must be greater than or equal to zero";
        errors.invalid(&path.child("observedGeneration"), generation, detail);
    }
    if condition.text("lastTransitionTime").is_empty() {
        errors.required(&path.child("lastTransitionTime"), "must be set");
    }
    reason(condition.text("reason"), &path.child("reason"), errors);
    if condition.text("message").len() > MAX_MESSAGE {
        errors.too_long(&path.child("message"), MAX_MESSAGE);
    }
}

fn reason(reason: &str, path: &Path, errors: &mut Errors) {
    const PATTERN: &str = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?";
    if reason.is_empty() {
        return errors.required(path, "must be set");
    }
    let bytes = reason.as_bytes();
    let is_word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let is_valid = bytes[0].is_ascii_alphabetic()
        && bytes.last().is_some_and(is_word)
        && bytes.iter().all(|b| is_word(b) || matches!(b, b',' | b':'));
    if !is_valid {
        let detail = format!(
            "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric \
             characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or \
             'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '{PATTERN}')"
        );
        errors.invalid(path, reason, detail);
    }
    if reason.len() > MAX_REASON {
        errors.too_long(path, MAX_REASON);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::{assert_begin, lines};

    #[test]
    fn a_condition_says_since_when_and_why() {
        let list = json!([
            {"type": "Ready", "status": "True", "reason": "Fine:So", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Ready", "status": "Maybe", "reason": "2 bad", "observedGeneration": -1},
        ]);
        let found = lines(|e| conditions(list.as_array().unwrap(), &Path::new("c"), e));
        let expected = [
            "c[1].type: Duplicate value: \"Ready\"",
            "c[1].status: Unsupported value: \"Maybe\": supported values: \"False\", \"True\", \"Unknown\"",
            "c[1].observedGeneration: Invalid value: -1: must be greater than or equal to zero",
            "c[1].lastTransitionTime: Required value: must be set",
            "c[1].reason: Invalid value: \"2 bad\": a condition reason must start with",
        ];
        assert_begin(&found, &expected);
    }
}
