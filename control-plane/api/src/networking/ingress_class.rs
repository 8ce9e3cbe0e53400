//! IngressClasses.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::{immutable, one_of, sentences};

pub struct IngressClass;

impl Strategy for IngressClass {
    fn default(&self, object: &mut Value) {
        tree::object_at(object, "spec");
        tree::fill_in(object, "spec.parameters.scope", "Cluster");
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let controller = spec.text("controller");
        if controller.len() > 250 {
            errors.too_long(&path.child("controller"), 250);
        }
        if controller.is_empty() {
            errors.required(&path.child("controller"), "");
        } else {
            let problems = names::is_domain_prefixed_path(controller);
            sentences(problems, &path.child("controller"), controller, errors);
        }
        let parameters = spec.at("parameters");
        if parameters.is_null() {
            return;
        }
        let path = path.child("parameters");
        local_reference(parameters, &path, errors);
        one_of(
            parameters,
            "scope",
            &["Cluster", "Namespace"],
            &path,
            errors,
        );
        let namespace = parameters.text("namespace");
        match parameters.text("scope") {
            "Namespace" if !parameters.has("namespace") => {
                let detail = "`parameters.scope` is set to 'Namespace'";
                errors.required(&path.child("namespace"), detail);
            }
            "Namespace" => {
                let problems = names::is_dns1123_label(namespace);
                sentences(problems, &path.child("namespace"), namespace, errors);
            }
            "Cluster" if parameters.has("namespace") => {
                let detail = "`parameters.scope` is set to 'Cluster'";
                errors.forbidden(&path.child("namespace"), detail);
            }
            _ => {}
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec.controller", errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        let parameters = if spec.has("parameters") {
            let parameters = spec.at("parameters");
            let group = parameters
                .at("apiGroup")
                .as_str()
                .map(|g| format!(".{g}"))
                .unwrap_or_default();
            format!(
                "{}{group}/{}",
                parameters.text("kind"),
                parameters.text("name")
            )
        } else {
            "<none>".to_owned()
        };
        cells![spec.text("controller"), parameters, age(object, now)]
    }
}

/// A `TypedLocalObjectReference`.
pub(super) fn local_reference(reference: &Value, path: &Path, errors: &mut Errors) {
    if let Some(group) = reference.at("apiGroup").as_str() {
        let problems = names::is_dns1123_subdomain(group);
        sentences(problems, &path.child("apiGroup"), group, errors);
    }
    for field in ["kind", "name"] {
        let (text, path) = (reference.text(field), path.child(field));
        if text.is_empty() {
            errors.required(&path, format!("{field} is required"));
        }
        sentences(names::is_path_segment(text), &path, text, errors);
    }
}
