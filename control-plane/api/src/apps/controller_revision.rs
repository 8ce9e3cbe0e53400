//! ControllerRevisions: the states that DaemonSets and StatefulSets roll back to.

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::Tree;
use crate::validate::immutable;
use crate::validate::numbers::non_negative;

pub struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        if !object.has("data") {
            errors.required(&Path::new("data"), "data is mandatory");
        }
        non_negative(object, "revision", &Path::root(), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "data", errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let controller = meta::controller(object).map_or_else(
            || "<none>".to_owned(),
            |owner| {
                let group = owner
                    .text("apiVersion")
                    .rsplit_once('/')
                    .map_or("", |(group, _)| group);
                let kind = owner.text("kind").to_lowercase();
                let kind = if group.is_empty() {
                    kind
                } else {
                    format!("{kind}.{group}")
                };
                format!("{kind}/{}", owner.text("name"))
            },
        );
        cells![
            controller,
            object.int("revision").unwrap_or_default(),
            age(object, now)
        ]
    }
}
