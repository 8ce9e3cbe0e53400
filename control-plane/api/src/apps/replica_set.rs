//! ReplicaSets.

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use super::deployment::validate_status;
use crate::core::template;
use crate::resource::Strategy;
use crate::table::{age, cells, containers, selector};
use crate::tree::{self, Tree};
use crate::validate::immutable;
use crate::validate::numbers::non_negative;

pub struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn default(&self, object: &mut Value) {
        template::default(object, "spec.template");
        tree::fill(object, "spec.replicas", 1);
        tree::fill(object, "status.replicas", 0);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({"replicas": 0}));
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        non_negative(spec, "replicas", &path, errors);
        non_negative(spec, "minReadySeconds", &path, errors);
        template::validate_running(object, old, "ReplicaSet", errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec.selector", errors);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        validate_status(new, "readyReplicas", errors);
    }

    fn selectable(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn field(&self, object: &Value, name: &str) -> String {
        object.int(name).unwrap_or_default().to_string()
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template::warn_named(new, old, "spec.template")
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let (names, images) = containers(object.at("spec.template.spec"));
        let count = |field: &str| object.int(field).unwrap_or_default();
        cells![
            count("spec.replicas"),
            count("status.replicas"),
            count("status.readyReplicas"),
            age(object, now),
            names,
            images,
            selector(object.at("spec.selector")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn a_status_does_not_count_more_than_there_is() {
        let object = json!({"status": {"replicas": 1, "readyReplicas": 2, "availableReplicas": 1}});
        assert_eq!(
            lines(|e| ReplicaSet.validate_status_update(&object, &object, e)),
            ["status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"]
        );
    }
}
