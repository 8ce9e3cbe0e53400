//! PodTemplates: a template as an object of its own.

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use super::template;
use crate::resource::Strategy;
use crate::table::{cells, containers, labels};
use crate::tree::Tree;

pub struct PodTemplate;

impl Strategy for PodTemplate {
    fn default(&self, object: &mut Value) {
        template::default(object, "template");
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let old = old.map(|old| old.at("template"));
        template::validate(object.at("template"), old, &Path::new("template"), errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template::warn(new, old, "template")
    }

    fn row(&self, object: &Value, _now: i64) -> Vec<Value> {
        let (names, images) = containers(object.at("template.spec"));
        cells![names, images, labels(object.at("template.metadata.labels"))]
    }
}
