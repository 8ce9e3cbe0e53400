//! DeviceClasses.

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use super::device::{self, MANY, each_of};
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::Tree;

pub struct DeviceClass;

impl Strategy for DeviceClass {
    fn has_generation(&self) -> bool {
        true
    }

    fn prepare_for_create(&self, object: &mut Value) {
        device::drop_gated(object, None, &["spec.extendedResourceName"]);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        device::drop_gated(new, Some(old), &["spec.extendedResourceName"]);
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        device::selectors(spec, &path, errors);
        let list = "spec.config";
        let stored = old.is_some_and(|old| object.at(list) == old.at(list));
        each_of(
            object.list(list),
            MANY,
            &path.child("config"),
            errors,
            |config, path, errors| {
                device::configuration(config, stored, path, errors);
            },
        );
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![age(object, now)]
    }
}
