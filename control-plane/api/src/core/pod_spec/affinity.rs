//! Node affinity, pod affinity and pod anti-affinity.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;
use crate::validate::labels::selector;
use crate::validate::sentences;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn affinity(affinity: &Value, path: &Path, errors: &mut Errors) {
    let node = affinity.at("nodeAffinity");
    let node_path = path.child("nodeAffinity");
    if node.has(REQUIRED) {
        node_selector(node.at(REQUIRED), &node_path.child(REQUIRED), errors);
    }
    for (i, preferred) in node.list(PREFERRED).iter().enumerate() {
        let path = node_path.child(PREFERRED).index(i);
        weight(preferred, &path, errors);
        node_selector_term(
            preferred.at("preference"),
            &path.child("preference"),
            errors,
        );
    }
    for field in ["podAffinity", "podAntiAffinity"] {
        let pod = affinity.at(field);
        let path = path.child(field);
        for (i, term) in pod.list(REQUIRED).iter().enumerate() {
            pod_affinity_term(term, &path.child(REQUIRED).index(i), errors);
        }
        for (i, preferred) in pod.list(PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(i);
            weight(preferred, &path, errors);
            pod_affinity_term(
                preferred.at("podAffinityTerm"),
                &path.child("podAffinityTerm"),
                errors,
            );
        }
    }
}

fn weight(preferred: &Value, path: &Path, errors: &mut Errors) {
    let weight = preferred.int("weight").unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

/// A `core.v1.NodeSelector`.
pub fn node_selector(selector: &Value, path: &Path, errors: &mut Errors) {
    let terms = selector.list("nodeSelectorTerms");
    let path = path.child("nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&path, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_selector_term(term, &path.index(i), errors);
    }
}

fn node_selector_term(term: &Value, path: &Path, errors: &mut Errors) {
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

fn pod_affinity_term(term: &Value, path: &Path, errors: &mut Errors) {
    selector(
        term.at("labelSelector"),
        &path.child("labelSelector"),
        errors,
    );
    selector(
        term.at("namespaceSelector"),
        &path.child("namespaceSelector"),
        errors,
    );
    for namespace in term.list("namespaces") {
        let namespace = namespace.as_str().unwrap_or_default();
        sentences(
            names::is_dns1123_label(namespace),
            &path.child("namespace"),
            namespace,
            errors,
        );
    }
    let key = term.text("topologyKey");
    if key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    }
    sentences(
        names::is_qualified_name(key),
        &path.child("topologyKey"),
        key,
        errors,
    );
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = term.list(field);
        if !keys.is_empty() && !term.has("labelSelector") {
            errors.forbidden(
                &path.child(field),
                "must not be specified when labelSelector is not set",
            );
        }
        for (i, key) in keys.iter().enumerate() {
            let key = key.as_str().unwrap_or_default();
            sentences(
                names::is_qualified_name(key),
                &path.child(field).index(i),
                key,
                errors,
            );
        }
    }
}
