//! ReplicationControllers: what ReplicaSets were before selectors had operators.

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use super::template;
use crate::apps::deployment::validate_status;
use crate::resource::Strategy;
use crate::table::{age, cells, containers, labels};
use crate::tree::{self, Tree};
use crate::validate::numbers::non_negative;

pub struct ReplicationController;

impl Strategy for ReplicationController {
    fn default(&self, object: &mut Value) {
        if object.has("spec.template") {
            template::default(object, "spec.template");
        }
        let template_labels = object.map("spec.template.metadata.labels").cloned();
        if let Some(from_template) = template_labels.filter(|labels| !labels.is_empty()) {
            for field in ["spec.selector", "metadata.labels"] {
                if object.map(field).is_none_or(serde_json::Map::is_empty) {
                    tree::set(object, field, from_template.clone());
                }
            }
        }
        tree::fill(object, "spec.replicas", 1);
        tree::fill(object, "status.replicas", 0);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", serde_json::json!({"replicas": 0}));
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        non_negative(spec, "minReadySeconds", &path, errors);
        let selector = spec.map("selector");
        if selector.is_none_or(serde_json::Map::is_empty) {
            errors.required(&path.child("selector"), "");
        }
        non_negative(spec, "replicas", &path, errors);
        let (template, path) = (spec.at("template"), path.child("template"));
        if template.is_null() {
            errors.required(&path, "");
            return;
        }
        let labels = template.at("metadata.labels");
        let matched = selector
            .into_iter()
            .flatten()
            .all(|(k, v)| labels.get(k) == Some(v));
        if !matched {
            errors.invalid(
                &path.child("metadata").child("labels"),
                labels.clone(),
                "`selector` does not match template `labels`",
            );
        }
        template::validate(
            template,
            old.map(|old| old.at("spec.template")),
            &path,
            errors,
        );
        template::always_restarts(template, "ReplicationController", &path, errors);
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
        cells![
            object.int("spec.replicas").unwrap_or_default(),
            object.int("status.replicas").unwrap_or_default(),
            object.int("status.readyReplicas").unwrap_or_default(),
            age(object, now),
            names,
            images,
            labels(object.at("spec.selector")),
        ]
    }
}
