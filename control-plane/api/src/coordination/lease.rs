//! Leases.

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::numbers::positive;

pub struct Lease;

impl Strategy for Lease {
    fn default(&self, object: &mut Value) {
        tree::object_at(object, "spec");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        drop_gated(object, &Value::Null);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        drop_gated(new, old);
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        positive(spec, "leaseDurationSeconds", &path, errors);
        if let Some(count) = spec.int("leaseTransitions").filter(|count| *count < 0) {
            let detail = "must be greater than or equal to 0";
            errors.invalid(&path.child("leaseTransitions"), count, detail);
        }
        if spec.at("holderIdentity").as_str() == Some("") && spec.has("strategy") {
            errors.invalid(&path.child("holderIdentity"), "", "must not be empty");
        }
        if spec.has("preferredHolder") && spec.text("strategy").is_empty() {
            let detail = "may only be specified if `strategy` is defined";
            errors.forbidden(&path.child("preferredHolder"), detail);
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![object.text("spec.holderIdentity"), age(object, now)]
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn unconditional_update(&self) -> bool {
        false
    }
}

/// Coordinated leader election is off in v1.35.
fn drop_gated(new: &mut Value, old: &Value) {
    for field in ["spec.strategy", "spec.preferredHolder"] {
        if !old.has(field) {
            tree::remove(new, field);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn durations_are_positive() {
        let object = json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}});
        assert_eq!(
            lines(|e| Lease.validate(&object, None, e)),
            [
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }
}
