//! A PodTemplateSpec inside of a workload, and the selector that must match it.

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::validation::{Errors, Path};

use super::pod_spec::{self, Context, annotations, defaults, warnings};
use crate::tree::{self, Tree};
use crate::validate::labels::{is_empty_selector, is_selector, labels, selector, selects};
use crate::validate::same;

/// Fills in the defaults of the template at `path`, such as `spec.template`.
pub fn default(object: &mut Value, path: &str) {
    let spec = tree::object_at(object, path)
        .entry("spec")
        .or_insert(Value::Null);
    tree::object_at(spec, "");
    defaults::pod_spec(spec);
}

/// Checks a template's metadata and spec. `old` is the template that it takes the place of.
pub fn validate(template: &Value, old: Option<&Value>, path: &Path, errors: &mut Errors) {
    // Upstream's paths of both leave `metadata` out.
    labels(
        template.at("metadata.labels"),
        &path.child("labels"),
        errors,
    );
    let annotations = template.map("metadata.annotations");
    let annotations_path = path.child("annotations");
    meta::validate_annotations(annotations, &annotations_path, errors);
    annotations::validate(template, old, &annotations_path, errors);
    let context = Context::template().replacing(old.map(|old| old.at("spec")));
    let spec = path.child("spec");
    pod_spec::validate(template.at("spec"), &context, &spec, errors);
    annotations::agree_with_fields(template, &spec, errors);
    if !template.list("spec.ephemeralContainers").is_empty() {
        errors.forbidden(
            &path.child("spec").child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

/// Warnings about the template at `path`; only when it is new or has changed, so that a status update or a scale
/// says nothing about what was written long ago.
pub fn warn(new: &Value, old: Option<&Value>, path: &str) -> Vec<String> {
    if old.is_some_and(|old| same(new.at(path), old.at(path))) {
        return Vec::new();
    }
    let place = path
        .split('.')
        .fold(Path::root(), |place, field| place.child(field));
    warnings::warnings(new.at(path), &place)
}

/// The same, for workloads whose pods take their names from it.
pub fn warn_named(new: &Value, old: Option<&Value>, path: &str) -> Vec<String> {
    let mut found = if old.is_none() {
        warnings::pod_name_prefix(new)
    } else {
        Vec::new()
    };
    found.extend(warn(new, old, path));
    found
}

/// The rules of workloads that keep pods running for ever: their selector matches their template, and the
/// template neither ends nor has a deadline. `kind` is the workload's; ReplicaSets and Deployments share upstream's words.
pub fn validate_running(object: &Value, old: Option<&Value>, kind: &str, errors: &mut Errors) {
    let (selected, running) = match kind {
        "Deployment" | "ReplicaSet" => ("Deployment", "ReplicaSet"),
        other => (other, other),
    };
    let spec = Path::new("spec");
    let (own_selector, template) = (object.at("spec.selector"), object.at("spec.template"));
    let (selector_path, template_path) = (spec.child("selector"), spec.child("template"));
    selector(own_selector, &selector_path, errors);
    let empty = |errors: &mut Errors| {
        if own_selector.is_object() && is_empty_selector(own_selector) {
            let detail = format!("empty selector is invalid for {}", selected.to_lowercase());
            errors.invalid(&selector_path, own_selector.clone(), detail);
        }
    };
    if kind == "DaemonSet" {
        // Upstream says nothing of its own about a DaemonSet without a selector.
        matches_selector(own_selector, template, &template_path, errors);
        empty(errors);
    } else {
        if own_selector.is_null() {
            errors.required(&selector_path, "");
        }
        empty(errors);
        if !is_selector(own_selector) {
            let detail = match kind {
                "StatefulSet" => "",
                _ => "invalid label selector",
            };
            return errors.invalid(&selector_path, own_selector.clone(), detail);
        }
        matches_selector(own_selector, template, &template_path, errors);
    }
    let old = old.map(|old| old.at("spec.template"));
    validate(template, old, &template_path, errors);
    always_restarts(template, running, &template_path, errors);
}

/// An absent selector selects nothing; of one that cannot be read its own faults tell.
pub fn matches_selector(selector: &Value, template: &Value, path: &Path, errors: &mut Errors) {
    let labels = template.at("metadata.labels");
    if is_selector(selector) && !selects(selector, labels) {
        errors.invalid(
            &path.child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
}

pub fn always_restarts(template: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    let policy = template.text("spec.restartPolicy");
    if policy != "Always" {
        errors.not_supported(
            &path.child("spec").child("restartPolicy"),
            policy,
            &["Always"],
        );
    }
    if template.has("spec.activeDeadlineSeconds") {
        errors.forbidden(
            &path.child("spec").child("activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {kind} is not Supported"),
        );
    }
}
