//! DaemonSets.

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use crate::core::template;
use crate::resource::Strategy;
use crate::table::{age, cells, containers, labels, selector};
use crate::tree::{self, Tree};
use crate::validate::immutable;
use crate::validate::numbers::{
    at_most_100_percent, count_or_percent, is_zero, non_negative, not_decremented,
};

pub struct DaemonSet;

/// Counts that are plain integers in Go and therefore always served.
const COUNTS: [&str; 4] = [
    "currentNumberScheduled",
    "desiredNumberScheduled",
    "numberMisscheduled",
    "numberReady",
];

impl Strategy for DaemonSet {
    fn default(&self, object: &mut Value) {
        template::default(object, "spec.template");
        tree::fill(object, "spec.updateStrategy.type", "RollingUpdate");
        if object.text("spec.updateStrategy.type") == "RollingUpdate" {
            tree::fill(
                object,
                "spec.updateStrategy.rollingUpdate.maxUnavailable",
                1,
            );
            tree::fill(object, "spec.updateStrategy.rollingUpdate.maxSurge", 0);
        }
        tree::fill(object, "spec.revisionHistoryLimit", 10);
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
        template::validate_running(object, old, "DaemonSet", errors);
        non_negative(spec, "minReadySeconds", &path, errors);
        update_strategy(
            spec.at("updateStrategy"),
            &path.child("updateStrategy"),
            errors,
        );
        non_negative(spec, "revisionHistoryLimit", &path, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec.selector", errors);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let path = Path::new("status");
        let counts = [
            "collisionCount",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
        ];
        for field in COUNTS.into_iter().chain(counts) {
            non_negative(new.at("status"), field, &path, errors);
        }
        let (new, old) = (new.at("status"), old.at("status"));
        not_decremented(new, old, "collisionCount", &path, errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template::warn(new, old, "spec.template")
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let (names, images) = containers(object.at("spec.template.spec"));
        let count = |field: &str| object.at("status").int(field).unwrap_or_default();
        cells![
            count("desiredNumberScheduled"),
            count("currentNumberScheduled"),
            count("numberReady"),
            count("updatedNumberScheduled"),
            count("numberAvailable"),
            labels(object.at("spec.template.spec.nodeSelector")),
            age(object, now),
            names,
            images,
            selector(object.at("spec.selector")),
        ]
    }
}

fn fill_counts(object: &mut Value) {
    for count in COUNTS {
        tree::fill(object, &format!("status.{count}"), 0);
    }
}

fn update_strategy(strategy: &Value, path: &Path, errors: &mut Errors) {
    match strategy.text("type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = strategy.at("rollingUpdate");
            let path = path.child("rollingUpdate");
            let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            let (unavailable_path, surge_path) =
                (path.child("maxUnavailable"), path.child("maxSurge"));
            count_or_percent(unavailable, &unavailable_path, errors);
            count_or_percent(surge, &surge_path, errors);
            at_most_100_percent(unavailable, &unavailable_path, errors);
            at_most_100_percent(surge, &surge_path, errors);
            match (is_zero(unavailable), is_zero(surge)) {
                (false, false) => {
                    let detail = "may not be set when maxUnavailable is non-zero";
                    errors.invalid(&surge_path, surge.clone(), detail);
                }
                (true, true) => {
                    let detail = "cannot be 0 when maxSurge is 0";
                    errors.required(&unavailable_path, detail);
                }
                _ => {}
            }
        }
        _ => errors.not_supported(path, strategy.clone(), &["RollingUpdate", "OnDelete"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn updates_either_surge_or_leave_nodes_without() {
        let path = Path::new("spec").child("updateStrategy");
        let rolling = |unavailable: Value, surge: Value| {
            let strategy = json!({
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge},
            });
            lines(|e| update_strategy(&strategy, &path, e))
        };
        assert!(rolling(json!(1), json!(0)).is_empty());
        assert_eq!(
            rolling(json!(0), json!(0)),
            [
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when \
                 maxSurge is 0"
            ]
        );
        assert_eq!(
            rolling(json!(1), json!("10%")),
            [
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: \"10%\": may not be set when \
                 maxUnavailable is non-zero"
            ]
        );
    }
}
