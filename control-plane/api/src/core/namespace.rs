//! Namespaces: their content is removed before they are.

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};
use windlass_machinery::{meta, names};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::sentences;

pub struct Namespace;

/// The finalizer that the namespace controller takes away when the namespace is empty.
pub const FINALIZER: &str = "kubernetes";

impl Strategy for Namespace {
    fn default(&self, object: &mut Value) {
        let name = object.text("metadata.name").to_owned();
        if !name.is_empty() {
            // Selectors rely on it, so a client's own value gives way.
            let labels = tree::object_at(object, "metadata.labels");
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
        }
        tree::object_at(object, "spec");
        tree::fill(object, "status.phase", "Active");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({"phase": "Active"}));
        let has_ours = object
            .list("spec.finalizers")
            .iter()
            .any(|f| f == FINALIZER);
        if !has_ours {
            let mut finalizers = object.list("spec.finalizers").to_vec();
            finalizers.push(FINALIZER.into());
            tree::set(object, "spec.finalizers", finalizers);
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        tree::keep(new, old, "spec.finalizers");
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec").child("finalizers");
        for finalizer in object.list("spec.finalizers") {
            let finalizer = finalizer.as_str().unwrap_or_default();
            sentences(
                names::is_qualified_name(finalizer),
                &path,
                finalizer,
                errors,
            );
            meta::standard_finalizer(finalizer, &path, errors);
        }
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        let path = Path::new("status").child("Phase");
        let phase = new.text("status.phase");
        if new.has("metadata.deletionTimestamp") {
            if phase != "Terminating" {
                errors.invalid(
                    &path,
                    phase,
                    "may only be 'Terminating' if `deletionTimestamp` is not empty",
                );
            }
        } else if phase != "Active" {
            errors.invalid(
                &path,
                phase,
                "may only be 'Active' if `deletionTimestamp` is empty",
            );
        }
    }

    fn selectable(&self) -> &'static [&'static str] {
        &["status.phase"]
    }

    fn field(&self, object: &Value, name: &str) -> String {
        object.text(name).to_owned()
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![object.text("status.phase"), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_is_active_and_guarded_by_its_finalizer() {
        let mut object = json!({"metadata": {"name": "a"}, "status": {"phase": "Terminating"}});
        Namespace.prepare_for_create(&mut object);
        Namespace.default(&mut object);
        assert_eq!(
            object,
            json!({
                "metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
                "spec": {"finalizers": ["kubernetes"]},
                "status": {"phase": "Active"},
            })
        );
    }
}
