//! Node affinity, pod affinity and pod anti-affinity.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::kept::Kept;
use super::spread::match_label_keys;
use crate::tree::Tree;
use crate::validate::labels::selector_terms;
use crate::validate::sentences;

pub const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
pub const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn affinity(affinity: &Value, kept: &Kept, path: &Path, errors: &mut Errors) {
    let node = affinity.at("nodeAffinity");
    let node_path = path.child("nodeAffinity");
    if node.has(REQUIRED) {
        let path = node_path.child(REQUIRED);
        selector_of_nodes(node.at(REQUIRED), !kept.node_affinity_values, &path, errors);
    }
    for (i, preferred) in node.list(PREFERRED).iter().enumerate() {
        let path = node_path.child(PREFERRED).index(i);
        weight(preferred, &path, errors);
        // A wish that no value can fulfil does no harm.
        let (term, path) = (preferred.at("preference"), path.child("preference"));
        node_selector_term(term, false, &path, errors);
    }
    for field in ["podAffinity", "podAntiAffinity"] {
        let pod = affinity.at(field);
        let path = path.child(field);
        for (i, term) in pod.list(REQUIRED).iter().enumerate() {
            pod_affinity_term(term, kept, &path.child(REQUIRED).index(i), errors);
        }
        for (i, preferred) in pod.list(PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(i);
            weight(preferred, &path, errors);
            pod_affinity_term(
                preferred.at("podAffinityTerm"),
                kept,
                &path.child("podAffinityTerm"),
                errors,
            );
        }
    }
}

/// All terms of pod affinity and anti-affinity, required and preferred.
pub fn pod_terms(spec: &Value) -> impl Iterator<Item = &Value> {
    ["podAffinity", "podAntiAffinity"]
        .into_iter()
        .flat_map(|kind| {
            let affinity = spec.at("affinity").at(kind);
            let preferred = affinity.list(PREFERRED).iter();
            affinity
                .list(REQUIRED)
                .iter()
                .chain(preferred.map(|weighted| weighted.at("podAffinityTerm")))
        })
}

fn weight(preferred: &Value, path: &Path, errors: &mut Errors) {
    let weight = preferred.int("weight").unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

/// A `core.v1.NodeSelector`.
pub fn node_selector(selector: &Value, path: &Path, errors: &mut Errors) {
    selector_of_nodes(selector, true, path, errors);
}

/// `values` are only checked where they were in order before.
pub fn selector_of_nodes(selector: &Value, values: bool, path: &Path, errors: &mut Errors) {
    let terms = selector.list("nodeSelectorTerms");
    let path = path.child("nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&path, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_selector_term(term, values, &path.index(i), errors);
    }
}

fn node_selector_term(term: &Value, values: bool, path: &Path, errors: &mut Errors) {
    for (i, expression) in term.list("matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        node_requirement(expression, &path, errors);
        let key = expression.text("key");
        sentences(
            names::is_qualified_name(key),
            &path.child("key"),
            key,
            errors,
        );
        for (j, value) in expression.list("values").iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            let path = path.child("values").index(j);
            if values {
                sentences(names::is_label_value(value), &path, value, errors);
            }
        }
    }
    for (i, expression) in term.list("matchFields").iter().enumerate() {
        let path = path.child("matchFields").index(i);
        let values = expression.list("values");
        match expression.text("operator") {
            "In" | "NotIn" if values.len() != 1 => errors.required(
                &path.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ),
            "In" | "NotIn" => {}
            other => {
                errors.invalid(
                    &path.child("operator"),
                    other,
                    "not a valid selector operator",
                );
            }
        }
        if expression.text("key") != "metadata.name" {
            errors.invalid(
                &path.child("key"),
                expression.text("key"),
                "not a valid field selector key",
            );
        } else {
            for (j, value) in values.iter().enumerate() {
                let value = value.as_str().unwrap_or_default();
                let path = path.child("values").index(j);
                sentences(names::is_dns1123_subdomain(value), &path, value, errors);
            }
        }
    }
}

fn node_requirement(expression: &Value, path: &Path, errors: &mut Errors) {
    let values = expression.list("values");
    let path_of_values = path.child("values");
    match expression.text("operator") {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(
                &path_of_values,
                "must be specified when `operator` is 'In' or 'NotIn'",
            );
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
            &path_of_values,
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        ),
        "Gt" | "Lt" if values.len() != 1 => errors.required(
            &path_of_values,
            "must be specified single value when `operator` is 'Lt' or 'Gt'",
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.invalid(
            &path.child("operator"),
            other,
            "not a valid selector operator",
        ),
    }
}

fn pod_affinity_term(term: &Value, kept: &Kept, path: &Path, errors: &mut Errors) {
    for field in ["labelSelector", "namespaceSelector"] {
        let check_values = !kept.selector_values;
        selector_terms(term.at(field), check_values, &path.child(field), errors);
    }
    for namespace in term.list("namespaces") {
        let namespace = namespace.as_str().unwrap_or_default();
        let path = path.child("namespace");
        sentences(names::is_dns1123_label(namespace), &path, namespace, errors);
    }
    match_label_keys(term, path, errors);
    let (key, path) = (term.text("topologyKey"), path.child("topologyKey"));
    if key.is_empty() {
        errors.required(&path, "can not be empty");
    }
    sentences(names::is_qualified_name(key), &path, key, errors);
}
