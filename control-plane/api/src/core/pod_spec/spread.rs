//! Topology spread constraints.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;
use crate::validate::labels::selector;
use crate::validate::{one_of, optional_one_of, sentences};

pub fn constraints(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, constraint) in spec.list("topologySpreadConstraints").iter().enumerate() {
        let path = path.child("topologySpreadConstraints").index(i);
        one(constraint, &path, errors);
        let pair = (
            constraint.text("topologyKey"),
            constraint.text("whenUnsatisfiable"),
        );
        if !seen.insert(pair) {
            errors.duplicate(
                &path.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{}, {}}}", pair.0, pair.1),
            );
        }
    }
}

fn one(constraint: &Value, path: &Path, errors: &mut Errors) {
    let skew = constraint.int("maxSkew").unwrap_or_default();
    if skew <= 0 {
        errors.invalid(&path.child("maxSkew"), skew, "must be greater than zero");
    }
    let key = constraint.text("topologyKey");
    if key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    } else {
        sentences(
            names::is_qualified_name(key),
            &path.child("topologyKey"),
            key,
            errors,
        );
    }
    let unsatisfiable = &["DoNotSchedule", "ScheduleAnyway"];
    one_of(constraint, "whenUnsatisfiable", unsatisfiable, path, errors);
    if let Some(domains) = constraint.int("minDomains") {
        let path = path.child("minDomains");
        if domains <= 0 {
            errors.invalid(&path, domains, "must be greater than zero");
        }
        if constraint.text("whenUnsatisfiable") != "DoNotSchedule" {
            errors.invalid(
                &path,
                domains,
                format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}",
                    constraint.text("whenUnsatisfiable")
                ),
            );
        }
    }
    for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
        optional_one_of(constraint, field, &["Honor", "Ignore"], path, errors);
    }
    selector(
        constraint.at("labelSelector"),
        &path.child("labelSelector"),
        errors,
    );
    match_label_keys(constraint, path, errors);
}

fn match_label_keys(constraint: &Value, path: &Path, errors: &mut Errors) {
    let keys = constraint.list("matchLabelKeys");
    if !keys.is_empty() && !constraint.has("labelSelector") {
        errors.forbidden(
            &path.child("matchLabelKeys"),
            "must not be specified when labelSelector is not set",
        );
        return;
    }
    for (i, key) in keys.iter().enumerate() {
        let key = key.as_str().unwrap_or_default();
        let path = path.child("matchLabelKeys").index(i);
        sentences(names::is_qualified_name(key), &path, key, errors);
        let selected = constraint
            .at("labelSelector.matchLabels")
            .get(key)
            .is_some()
            || constraint
                .list("labelSelector.matchExpressions")
                .iter()
                .any(|e| e.text("key") == key);
        if selected && !is_merged(constraint, key) {
            errors.invalid(
                &path,
                key,
                "exists in both matchLabelKeys and labelSelector",
            );
        }
    }
}

/// Whether the selector's only term for this key is the one that the server itself merged in: `key in (value)`.
fn is_merged(constraint: &Value, key: &str) -> bool {
    let terms: Vec<_> = constraint
        .list("labelSelector.matchExpressions")
        .iter()
        .filter(|e| e.text("key") == key)
        .collect();
    constraint
        .at("labelSelector.matchLabels")
        .get(key)
        .is_none()
        && matches!(terms.as_slice(), [term] if term.text("operator") == "In" && term.list("values").len() == 1)
}
