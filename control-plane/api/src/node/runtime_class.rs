//! RuntimeClasses.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::core::pod_spec::tolerations;
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::Tree;
use crate::validate::labels::labels;
use crate::validate::quantities::{amount, container_resource_name};
use crate::validate::{immutable, sentences};

pub struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let handler = object.text("handler");
        sentences(
            names::is_dns1123_label(handler),
            &Path::new("handler"),
            handler,
            errors,
        );
        // The checks of a container's limits, and their path.
        let path = Path::new("overhead").child("limits");
        for (name, value) in object.entries("overhead.podFixed") {
            container_resource_name(name, &path.key(name), errors);
            amount(name, value, &path.key(name), errors);
        }
        let path = Path::new("scheduling");
        let scheduling = object.at("scheduling");
        labels(
            scheduling.at("nodeSelector"),
            &path.child("nodeSelector"),
            errors,
        );
        tolerations(
            scheduling.at("tolerations"),
            &path.child("tolerations"),
            errors,
        );
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "handler", errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![object.text("handler"), age(object, now)]
    }
}
