//! RuntimeClasses.

use std::collections::HashSet;

use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::core::pod_spec::compute::huge_pages_alone;
use crate::core::pod_spec::{tolerations, warnings};
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
        let overhead = json!({"limits": object.at("overhead.podFixed")});
        for (name, value) in object.entries("overhead.podFixed") {
            container_resource_name(name, &path.key(name), errors);
            amount(name, value, &path.key(name), errors);
        }
        huge_pages_alone(&overhead, &Path::new("overhead"), errors);
        let path = Path::new("scheduling");
        let scheduling = object.at("scheduling");
        labels(
            scheduling.at("nodeSelector"),
            &path.child("nodeSelector"),
            errors,
        );
        let path = path.child("tolerations");
        tolerations(scheduling.at("tolerations"), &path, errors);
        let mut seen = HashSet::new();
        for (i, toleration) in scheduling.list("tolerations").iter().enumerate() {
            let key = ["key", "operator", "value", "effect"].map(|field| toleration.text(field));
            if !seen.insert(key) {
                errors.duplicate(&path.index(i), toleration.clone());
            }
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let keys = new.entries("scheduling.nodeSelector").map(|(key, _)| key);
        keys.filter_map(warnings::old_label)
            .map(|text| format!("scheduling.nodeSelector: {text}"))
            .collect()
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "handler", errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![object.text("handler"), age(object, now)]
    }
}
