//! CSIDrivers, CSINodes and CSIStorageCapacities.

use std::collections::HashSet;

use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::core::pod_spec::warnings;
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::labels::selector;
use crate::validate::numbers::{non_negative, token_seconds};
use crate::validate::quantities::{is_negative, show};
use crate::validate::{immutable, optional_one_of, required, same, sentences};

/// The longest name of a driver, so that paths made of it fit.
const MAX_DRIVER_NAME: usize = 63;

/// The name of a CSI driver.
pub fn driver_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
    }
    if name.len() > MAX_DRIVER_NAME {
        errors.too_long(path, MAX_DRIVER_NAME);
    }
    let lower = name.to_lowercase();
    sentences(names::is_dns1123_subdomain(&lower), path, name, errors);
}

const MAX_NODE_ID: usize = 256;

/// Seconds.
const LEAST_UPDATE_PERIOD: i64 = 10;

pub struct CsiDriver;

const DRIVER_FLAGS: [(&str, bool); 5] = [
    ("attachRequired", true),
    ("podInfoOnMount", false),
    ("storageCapacity", false),
    ("requiresRepublish", false),
    ("seLinuxMount", false),
];

impl Strategy for CsiDriver {
    fn default(&self, object: &mut Value) {
        for (flag, value) in DRIVER_FLAGS {
            tree::fill(object, &format!("spec.{flag}"), value);
        }
        tree::fill(object, "spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
        if object.list("spec.volumeLifecycleModes").is_empty() {
            tree::set(object, "spec.volumeLifecycleModes", json!(["Persistent"]));
        }
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        // Upstream's path of the first is not the field's.
        for (flag, shown) in [
            ("attachRequired", "attachedRequired"),
            ("podInfoOnMount", "podInfoOnMount"),
            ("storageCapacity", "storageCapacity"),
        ] {
            if !spec.has(flag) {
                errors.required(&path.child(shown), "");
            }
        }
        let policies = &["File", "None", "ReadWriteOnceWithFSType"];
        optional_one_of(spec, "fsGroupPolicy", policies, &path, errors);
        let mut audiences = HashSet::new();
        for (i, request) in spec.list("tokenRequests").iter().enumerate() {
            let path = path.child("tokenRequests").index(i);
            let audience = request.text("audience");
            if !audiences.insert(audience) {
                errors.duplicate(&path.child("audience"), audience);
            } else if let Some(seconds) = request.int("expirationSeconds") {
                token_seconds(seconds, &path.child("expirationSeconds"), errors);
            }
        }
        let modes = ["Persistent", "Ephemeral"];
        for mode in spec.list("volumeLifecycleModes") {
            let mode = mode.as_str().unwrap_or_default();
            if !modes.contains(&mode) {
                errors.not_supported(&path.child("volumeLifecycleModes"), mode, &modes);
            }
        }
        let period = spec.int("nodeAllocatableUpdatePeriodSeconds");
        if let Some(seconds) = period.filter(|seconds| *seconds < LEAST_UPDATE_PERIOD) {
            let detail = format!("must be greater than or equal to {LEAST_UPDATE_PERIOD} seconds");
            let path = path.child("nodeAllocatableUpdatePeriodSeconds");
            errors.invalid(&path, seconds, detail);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        // Upstream's path, which is not the field's.
        let attach = |driver: &Value| driver.at("spec.attachRequired").clone();
        if attach(new) != attach(old) {
            let path = Path::new("spec").child("attachedRequired");
            errors.invalid(&path, attach(new), "field is immutable");
        }
        immutable(new, old, "spec.volumeLifecycleModes", errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        let join = |list: &str, field: &str| {
            let texts: Vec<_> = spec
                .list(list)
                .iter()
                .map(|item| item.as_str().unwrap_or_else(|| item.text(field)))
                .collect();
            texts.join(",")
        };
        let tokens = if spec.has("tokenRequests") {
            join("tokenRequests", "audience")
        } else {
            "<unset>".to_owned()
        };
        let modes = join("volumeLifecycleModes", "");
        cells![
            spec.at("attachRequired").as_bool().unwrap_or(true),
            spec.flag("podInfoOnMount"),
            spec.flag("storageCapacity"),
            tokens,
            spec.flag("requiresRepublish"),
            if modes.is_empty() {
                "<none>".to_owned()
            } else {
                modes
            },
            age(object, now),
        ]
    }
}

pub struct CsiNode;

impl Strategy for CsiNode {
    fn default(&self, object: &mut Value) {
        tree::object_at(object, "spec");
        if !object.has("spec.drivers") {
            tree::set(object, "spec.drivers", json!([]));
        }
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec").child("drivers");
        let mut seen = HashSet::new();
        for (i, driver) in object.list("spec.drivers").iter().enumerate() {
            let path = path.index(i);
            let name = driver.text("name");
            driver_name(name, &path.child("name"), errors);
            let id = required(driver, "nodeID", &path, errors).unwrap_or_default();
            if id.len() > MAX_NODE_ID {
                let detail = format!("must be {MAX_NODE_ID} characters or less");
                errors.invalid(&path.child("nodeID"), id, detail);
            }
            let limits = path.child("allocatable");
            non_negative(driver.at("allocatable"), "count", &limits, errors);
            if !seen.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
            // Upstream's path of these is the driver's.
            let mut keys = HashSet::new();
            for key in driver.list("topologyKeys") {
                let key = key.as_str().unwrap_or_default();
                if key.is_empty() {
                    errors.required(&path, "");
                }
                if !keys.insert(key) {
                    errors.duplicate(&path, key);
                }
                sentences(names::is_qualified_name(key), &path, key, errors);
            }
        }
    }

    /// Of a driver that stays, only how many volumes it takes may change (KEP-4876).
    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let path = Path::new("spec").child("drivers");
        let fixed = |driver: &Value| {
            let mut driver = driver.clone();
            tree::remove(&mut driver, "allocatable");
            driver
        };
        for before in old.list("spec.drivers") {
            for driver in new.list("spec.drivers") {
                let is_same = before.text("name") == driver.text("name");
                if is_same && !same(&fixed(before), &fixed(driver)) {
                    errors.invalid(&path, fixed(driver), "field is immutable");
                }
            }
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![object.list("spec.drivers").len(), age(object, now)]
    }
}

pub struct CsiStorageCapacity;

impl Strategy for CsiStorageCapacity {
    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        selector(
            object.at("nodeTopology"),
            &Path::new("nodeTopology"),
            errors,
        );
        let class = object.text("storageClassName");
        let problems = names::is_dns1123_subdomain(class);
        sentences(problems, &Path::new("storageClassName"), class, errors);
        let capacity = object.at("capacity");
        if is_negative(capacity) {
            let detail = "must be greater than or equal to 0";
            errors.invalid(&Path::new("capacity"), show(capacity), detail);
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let path = Path::new("nodeTopology");
        let mut found = Vec::new();
        warnings::node_term(new.at("nodeTopology"), &path, &mut found);
        for (key, _) in new.entries("nodeTopology.matchLabels") {
            if let Some(text) = warnings::old_label(key) {
                found.push(format!("{}: {text}", path.child("matchLabels").child(key)));
            }
        }
        found
    }

    /// Upstream looks at no more of one that is there.
    fn validate_change(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "nodeTopology", errors);
        immutable(new, old, "storageClassName", errors);
    }

    fn row(&self, object: &Value, _now: i64) -> Vec<Value> {
        let capacity = match object.at("capacity") {
            Value::Null => "<unset>".to_owned(),
            value => show(value),
        };
        cells![object.text("storageClassName"), capacity]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn drivers_get_their_defaults() {
        let mut object = json!({"metadata": {"name": "d.example"}, "spec": {}});
        CsiDriver.default(&mut object);
        assert!(lines(|e| CsiDriver.validate(&object, None, e)).is_empty());
        assert_eq!(
            CsiDriver.row(&object, 0)[..6],
            [
                json!(true),
                json!(false),
                json!(false),
                json!("<unset>"),
                json!(false),
                json!("Persistent"),
            ]
        );
    }
}
