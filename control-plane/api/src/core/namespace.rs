//! Namespaces: their content is removed before they are.

use serde_json::{Value, json};
use windlass_machinery::validation::Errors;

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};

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

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        let path = windlass_machinery::validation::Path::new("status").child("Phase");
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
