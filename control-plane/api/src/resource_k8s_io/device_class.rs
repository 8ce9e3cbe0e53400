//! DeviceClasses.

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::Tree;

pub struct DeviceClass;

const MAX_SELECTORS: usize = 32;

/// CEL selectors of devices; the expressions are compiled by the scheduler that runs them.
pub fn selectors(holder: &Value, path: &Path, errors: &mut Errors) {
    let selectors = holder.list("selectors");
    let path = path.child("selectors");
    if selectors.len() > MAX_SELECTORS {
        errors.too_many(&path, selectors.len(), MAX_SELECTORS);
    }
    for (i, selector) in selectors.iter().enumerate() {
        let path = path.index(i).child("cel");
        if !selector.has("cel") {
            errors.required(&path, "");
        } else if selector.text("cel.expression").is_empty() {
            errors.required(&path.child("expression"), "");
        }
    }
}

impl Strategy for DeviceClass {
    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        selectors(spec, &path, errors);
        for (i, config) in spec.list("config").iter().enumerate() {
            let path = path.child("config").index(i);
            if config.has("opaque") {
                super::claim::driver(config.at("opaque"), &path.child("opaque"), errors);
            } else {
                errors.required(&path, "exactly one configuration type is required");
            }
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![age(object, now)]
    }
}
