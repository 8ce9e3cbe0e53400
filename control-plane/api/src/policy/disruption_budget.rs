//! PodDisruptionBudgets.

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells, plain};
use crate::tree::{self, Tree};
use crate::validate::conditions::conditions;
use crate::validate::labels::{selector, selector_terms};
use crate::validate::numbers::{at_most_100_percent, count_or_percent, non_negative};
use crate::validate::optional_one_of;

pub struct PodDisruptionBudget;

/// Counts that are plain integers in Go and therefore always served.
const COUNTS: [&str; 4] = [
    "currentHealthy",
    "desiredHealthy",
    "disruptionsAllowed",
    "expectedPods",
];

impl Strategy for PodDisruptionBudget {
    fn default(&self, object: &mut Value) {
        tree::object_at(object, "spec");
        fill_counts(object);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({}));
        fill_counts(object);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let (min, max) = (spec.at("minAvailable"), spec.at("maxUnavailable"));
        if !min.is_null() && !max.is_null() {
            errors.invalid(
                &path,
                spec.clone(),
                "minAvailable and maxUnavailable cannot be both set",
            );
        }
        for field in ["minAvailable", "maxUnavailable"] {
            count_or_percent(spec.at(field), &path.child(field), errors);
            at_most_100_percent(spec.at(field), &path.child(field), errors);
        }
        let had_bad_values = old.is_some_and(|old| {
            let mut errors = Errors::new();
            selector(old.at("spec.selector"), &Path::root(), &mut errors);
            !errors.is_empty()
        });
        let path_of_selector = path.child("selector");
        let own = spec.at("selector");
        selector_terms(own, !had_bad_values, &path_of_selector, errors);
        let policies = &["AlwaysAllow", "IfHealthyBudget"];
        optional_one_of(spec, "unhealthyPodEvictionPolicy", policies, &path, errors);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        let path = Path::new("status").child("conditions");
        conditions(new.list("status.conditions"), &path, errors);
        for count in [
            "disruptionsAllowed",
            "currentHealthy",
            "desiredHealthy",
            "expectedPods",
        ] {
            non_negative(new.at("status"), count, &Path::new("status"), errors);
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let bound = |field: &str| match object.at(field) {
            Value::Null => "N/A".to_owned(),
            value => plain(value),
        };
        cells![
            bound("spec.minAvailable"),
            bound("spec.maxUnavailable"),
            object.int("status.disruptionsAllowed").unwrap_or_default(),
            age(object, now),
        ]
    }
}

fn fill_counts(object: &mut Value) {
    for count in COUNTS {
        tree::fill(object, &format!("status.{count}"), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn a_budget_has_one_bound() {
        let object = json!({"spec": {"minAvailable": 1, "maxUnavailable": "150%"}});
        assert_eq!(
            lines(|e| PodDisruptionBudget.validate(&object, None, e)),
            [
                "spec: Invalid value: {\"maxUnavailable\":\"150%\",\"minAvailable\":1}: minAvailable and \
                 maxUnavailable cannot be both set",
                "spec.maxUnavailable: Invalid value: \"150%\": must not be greater than 100%",
            ]
        );
        let object = json!({"spec": {"minAvailable": "50%"}, "status": {"disruptionsAllowed": 2}});
        assert_eq!(
            PodDisruptionBudget.row(&object, 0)[..3],
            [json!("50%"), json!("N/A"), json!(2)]
        );
    }
}
