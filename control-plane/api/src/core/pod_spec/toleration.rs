//! Tolerations of taints.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;
use crate::validate::sentences;

pub const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// A list of tolerations; `path` is the list's.
pub fn tolerations(list: &Value, path: &Path, errors: &mut Errors) {
    for (i, toleration) in list.as_array().into_iter().flatten().enumerate() {
        one(toleration, &path.index(i), errors);
    }
}

fn one(toleration: &Value, path: &Path, errors: &mut Errors) {
    let (key, operator, value, effect) = (
        toleration.text("key"),
        toleration.text("operator"),
        toleration.text("value"),
        toleration.text("effect"),
    );
    if !key.is_empty() {
        sentences(
            names::is_qualified_name(key),
            &path.child("key"),
            key,
            errors,
        );
    } else if operator != "Exists" {
        errors.invalid(
            &path.child("operator"),
            operator,
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    if toleration.has("tolerationSeconds") && effect != "NoExecute" {
        errors.invalid(
            &path.child("effect"),
            effect,
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
    match operator {
        "Equal" | "" => {
            let problems = names::is_label_value(value);
            if !problems.is_empty() {
                errors.invalid(&path.child("operator"), value, problems.join(";"));
            }
        }
        "Exists" if !value.is_empty() => errors.invalid(
            &path.child("operator"),
            value,
            "value must be empty when `operator` is 'Exists'",
        ),
        "Exists" => {}
        other => errors.not_supported(&path.child("operator"), other, &["Equal", "Exists"]),
    }
    if !effect.is_empty() && !EFFECTS.contains(&effect) {
        errors.not_supported(&path.child("effect"), effect, EFFECTS);
    }
}
