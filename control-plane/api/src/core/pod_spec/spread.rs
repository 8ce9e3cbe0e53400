//! Topology spread constraints.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::Context;
use crate::tree::Tree;
use crate::validate::labels::selector;
use crate::validate::{optional_one_of, sentences};

pub fn constraints(spec: &Value, context: &Context<'_>, path: &Path, errors: &mut Errors) {
    let list = spec.list("topologySpreadConstraints");
    for (i, constraint) in list.iter().enumerate() {
        let path = path.child("topologySpreadConstraints").index(i);
        one(constraint, &list[i + 1..], context, &path, errors);
    }
}

/// `rest` are the constraints that follow it.
fn one(
    constraint: &Value,
    rest: &[Value],
    context: &Context<'_>,
    path: &Path,
    errors: &mut Errors,
) {
    let skew = constraint.int("maxSkew").unwrap_or_default();
    if skew <= 0 {
        errors.invalid(&path.child("maxSkew"), skew, "must be greater than zero");
    }
    let key = constraint.text("topologyKey");
    if key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    }
    let action = constraint.text("whenUnsatisfiable");
    let actions = &["DoNotSchedule", "ScheduleAnyway"];
    if !actions.contains(&action) {
        errors.not_supported(&path.child("whenUnsatisfiable"), action, actions);
    }
    let pair = |other: &Value| {
        (other.text("topologyKey"), other.text("whenUnsatisfiable")) == (key, action)
    };
    if rest.iter().any(pair) {
        let path = path.child("{topologyKey, whenUnsatisfiable}");
        errors.duplicate(&path, format!("{{{key}, {action}}}"));
    }
    if let Some(domains) = constraint.int("minDomains") {
        let path = path.child("minDomains");
        if domains <= 0 {
            errors.invalid(&path, domains, "must be greater than zero");
        }
        if action != "DoNotSchedule" {
            let detail =
                format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
            errors.invalid(&path, domains, detail);
        }
    }
    for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
        optional_one_of(constraint, field, &["Honor", "Ignore"], path, errors);
    }
    if !context.kept.spread_keys {
        match_label_keys(constraint, path, errors);
    }
    if !context.kept.spread_selectors {
        let path = path.child("labelSelector");
        selector(constraint.at("labelSelector"), &path, errors);
    }
}

/// The labels by whose values a pod is compared; the server makes a term of the selector of each, so that a term that
/// is already there stands twice.
pub fn match_label_keys(holder: &Value, path: &Path, errors: &mut Errors) {
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = holder.list(field);
        let path = path.child(field);
        if !keys.is_empty() && !holder.has("labelSelector") {
            errors.forbidden(&path, "must not be specified when labelSelector is not set");
            continue;
        }
        for (i, key) in keys.iter().enumerate() {
            let key = key.as_str().unwrap_or_default();
            sentences(names::is_qualified_name(key), &path.index(i), key, errors);
        }
    }
    let position = |key: &str| holder.list("matchLabelKeys").iter().position(|k| k == key);
    let mut seen: HashSet<_> = holder
        .entries("labelSelector.matchLabels")
        .map(|(key, _)| key)
        .collect();
    for expression in holder.list("labelSelector.matchExpressions") {
        let key = expression.text("key");
        if let Some(i) = position(key).filter(|_| seen.contains(key)) {
            let path = path.child("matchLabelKeys").index(i);
            let detail = "exists in both matchLabelKeys and labelSelector";
            errors.invalid(&path, key, detail);
        }
        seen.insert(key);
    }
    for (i, key) in holder.list("matchLabelKeys").iter().enumerate() {
        if holder.list("mismatchLabelKeys").contains(key) {
            let path = path.child("matchLabelKeys").index(i);
            let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
            errors.invalid(&path, key.clone(), detail);
        }
    }
}
