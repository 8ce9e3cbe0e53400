//! ResourceSlices: the devices that a driver offers.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::claim::driver;
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::Tree;
use crate::validate::numbers::{non_negative, positive};
use crate::validate::{immutable, named, required};

pub struct ResourceSlice;

const MAX_DEVICES: usize = 128;

impl Strategy for ResourceSlice {
    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        driver(spec, &path, errors);
        let pool = path.child("pool");
        required(spec.at("pool"), "name", &pool, errors);
        positive(spec.at("pool"), "resourceSliceCount", &pool, errors);
        non_negative(spec.at("pool"), "generation", &pool, errors);
        let places = [
            "nodeName",
            "nodeSelector",
            "allNodes",
            "perDeviceNodeSelection",
        ];
        let set = places.iter().filter(|field| match spec.at(field) {
            Value::Null | Value::Bool(false) => false,
            Value::String(text) => !text.is_empty(),
            _ => true,
        });
        // Slices that only hold shared counters belong to no place.
        match set.count() {
            1 => {}
            0 if !spec.list("sharedCounters").is_empty() => {}
            0 => errors.required(
                &path,
                "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
            ),
            _ => errors.invalid(
                &path,
                Value::Null,
                "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is \
                 required, but multiple fields are set",
            ),
        }
        let devices = spec.list("devices");
        if devices.len() > MAX_DEVICES {
            errors.too_many(&path.child("devices"), devices.len(), MAX_DEVICES);
        }
        let mut seen = HashSet::new();
        for (i, device) in devices.iter().enumerate() {
            let path = path.child("devices").index(i);
            named(device, "name", names::is_dns1123_label, &path, errors);
            if !seen.insert(device.text("name")) {
                errors.duplicate(&path.child("name"), device.text("name"));
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        for field in ["spec.driver", "spec.nodeName", "spec.pool.name"] {
            immutable(new, old, field, errors);
        }
    }

    fn selectable(&self) -> &'static [&'static str] {
        &["spec.nodeName", "spec.driver"]
    }

    fn field(&self, object: &Value, name: &str) -> String {
        object.text(name).to_owned()
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        cells![
            spec.text("nodeName"),
            spec.text("driver"),
            spec.text("pool.name"),
            age(object, now)
        ]
    }
}
