//! Labels, annotations-like maps and label selectors.

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::names;
use windlass_machinery::selector::LabelSelector;
use windlass_machinery::validation::{Errors, Path};

use super::sentences;
use crate::tree::Tree;

/// A map of labels; `path` is the map's own.
pub fn labels(map: &Value, path: &Path, errors: &mut Errors) {
    meta::validate_labels(map.as_object(), path, errors);
}

/// Whether a LabelSelector selects everything: no term at all.
pub fn is_empty_selector(selector: &Value) -> bool {
    selector
        .map("matchLabels")
        .is_none_or(serde_json::Map::is_empty)
        && selector.list("matchExpressions").is_empty()
}

/// Whether a LabelSelector can be read; an absent one can, and selects nothing.
pub fn is_selector(selector: &Value) -> bool {
    LabelSelector::from_value(selector).is_ok()
}

/// A `metav1.LabelSelector`.
pub fn selector(selector: &Value, path: &Path, errors: &mut Errors) {
    selector_terms(selector, true, path, errors);
}

/// The same; `values` are left alone where the object had wrong ones before they were checked.
pub fn selector_terms(selector: &Value, values: bool, path: &Path, errors: &mut Errors) {
    labels(
        selector.at("matchLabels"),
        &path.child("matchLabels"),
        errors,
    );
    for (i, expression) in selector.list("matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        requirement(expression, values, &path, errors);
    }
}

fn requirement(expression: &Value, check_values: bool, path: &Path, errors: &mut Errors) {
    let values = expression.list("values");
    match expression.text("operator") {
        "In" | "NotIn" if values.is_empty() => errors.required(
            &path.child("values"),
            "must be specified when `operator` is 'In' or 'NotIn'",
        ),
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
            &path.child("values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        ),
    }
    let key = expression.text("key");
    sentences(
        names::is_qualified_name(key),
        &path.child("key"),
        key,
        errors,
    );
    for (i, value) in values.iter().enumerate().filter(|_| check_values) {
        let value = value.as_str().unwrap_or_default();
        sentences(
            names::is_label_value(value),
            &path.child("values").index(i),
            value,
            errors,
        );
    }
}

/// Whether a LabelSelector selects these labels; an invalid one selects nothing.
pub fn selects(selector: &Value, labels: &Value) -> bool {
    LabelSelector::from_value(selector).is_ok_and(|selector| selector.matches(labels.as_object()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn selectors_are_checked_term_by_term() {
        let value = json!({
            "matchLabels": {"a b": "x"},
            "matchExpressions": [
                {"key": "k", "operator": "In"},
                {"key": "k", "operator": "Exists", "values": ["v"]},
                {"key": "k", "operator": "Like", "values": ["v"]},
            ]
        });
        let found = lines(|errors| selector(&value, &Path::new("spec").child("selector"), errors));
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].starts_with("spec.selector.matchLabels: Invalid value: \"a b\": "));
        assert_eq!(
            found[1..],
            [
                "spec.selector.matchExpressions[0].values: Required value: must be specified when \
                 `operator` is 'In' or 'NotIn'",
                "spec.selector.matchExpressions[1].values: Forbidden: may not be specified when \
                 `operator` is 'Exists' or 'DoesNotExist'",
                "spec.selector.matchExpressions[2].operator: Invalid value: \"Like\": not a valid \
                 selector operator",
            ]
        );
    }

    #[test]
    fn selection_follows_every_operator() {
        let labels = json!({"app": "web", "tier": "front"});
        for (terms, selected) in [
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "web"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["a"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}),
                false,
            ),
            (json!({}), true),
        ] {
            assert_eq!(selects(&terms, &labels), selected, "{terms}");
        }
    }
}
