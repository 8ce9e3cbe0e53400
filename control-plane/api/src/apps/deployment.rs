//! Deployments.

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use crate::core::template;
use crate::resource::Strategy;
use crate::table::{age, cells, containers, selector};
use crate::tree::{self, Tree};
use crate::validate::immutable;
use crate::validate::numbers::{
    at_most_100_percent, count_or_percent, is_zero, non_negative, not_decremented,
};

pub struct Deployment;

impl Strategy for Deployment {
    fn default(&self, object: &mut Value) {
        template::default(object, "spec.template");
        tree::fill(object, "spec.replicas", 1);
        tree::fill(object, "spec.strategy.type", "RollingUpdate");
        if object.text("spec.strategy.type") == "RollingUpdate" {
            tree::fill(object, "spec.strategy.rollingUpdate.maxUnavailable", "25%");
            tree::fill(object, "spec.strategy.rollingUpdate.maxSurge", "25%");
        }
        tree::fill(object, "spec.revisionHistoryLimit", 10);
        tree::fill(object, "spec.progressDeadlineSeconds", 600);
        tree::object_at(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({}));
    }

    /// The controller notes the revision with the status; labels are the user's.
    fn status_metadata(&self) -> &'static [&'static str] {
        &["annotations", "finalizers", "ownerReferences"]
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        non_negative(spec, "replicas", &path, errors);
        template::validate_running(object, old, "Deployment", errors);
        strategy(spec, &path.child("strategy"), errors);
        non_negative(spec, "minReadySeconds", &path, errors);
        non_negative(spec, "revisionHistoryLimit", &path, errors);
        if let Some(deadline) = spec.int("progressDeadlineSeconds") {
            non_negative(spec, "progressDeadlineSeconds", &path, errors);
            if deadline <= spec.int("minReadySeconds").unwrap_or_default() {
                let detail = "must be greater than minReadySeconds";
                errors.invalid(&path.child("progressDeadlineSeconds"), deadline, detail);
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, "spec.selector", errors);
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let path = Path::new("status");
        validate_status(new, "readyReplicas", errors);
        let (new, old) = (new.at("status"), old.at("status"));
        not_decremented(new, old, "collisionCount", &path, errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template::warn_named(new, old, "spec.template")
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let (names, images) = containers(object.at("spec.template.spec"));
        let count = |field: &str| object.int(field).unwrap_or_default();
        cells![
            format!(
                "{}/{}",
                count("status.readyReplicas"),
                count("spec.replicas")
            ),
            count("status.updatedReplicas"),
            count("status.availableReplicas"),
            age(object, now),
            names,
            images,
            selector(object.at("spec.selector")),
        ]
    }
}

fn strategy(spec: &Value, path: &Path, errors: &mut Errors) {
    let rolling = spec.at("strategy.rollingUpdate");
    let rolling_path = path.child("rollingUpdate");
    match spec.text("strategy.type") {
        "Recreate" => {
            if !rolling.is_null() {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                errors.forbidden(&rolling_path, detail);
            }
        }
        "RollingUpdate" => rolling_update(rolling, &rolling_path, errors),
        _ => {
            let types = &["Recreate", "RollingUpdate"];
            errors.not_supported(path, spec.at("strategy").clone(), types);
        }
    }
}

fn rolling_update(rolling: &Value, path: &Path, errors: &mut Errors) {
    let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
    let (unavailable_path, surge_path) = (path.child("maxUnavailable"), path.child("maxSurge"));
    count_or_percent(unavailable, &unavailable_path, errors);
    count_or_percent(surge, &surge_path, errors);
    if is_zero(unavailable) && is_zero(surge) {
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.invalid(&unavailable_path, unavailable.clone(), detail);
    }
    at_most_100_percent(unavailable, &unavailable_path, errors);
}

/// Counts of replicas in the status of Deployments and their like: none negative, none above the total. `ready` is how
/// upstream calls that field there.
pub fn validate_status(object: &Value, ready: &str, errors: &mut Errors) {
    let path = Path::new("status");
    let status = object.at("status");
    for field in [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
    ] {
        non_negative(status, field, &path, errors);
    }
    let total = status.int("replicas").unwrap_or_default();
    for field in [
        "updatedReplicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
    ] {
        if let Some(count) = status.int(field).filter(|count| *count > total) {
            errors.invalid(
                &path.child(field),
                count,
                "cannot be greater than status.replicas",
            );
        }
    }
    let most = status.int("readyReplicas").unwrap_or_default();
    if let Some(available) = status
        .int("availableReplicas")
        .filter(|count| *count > most)
    {
        let detail = format!("cannot be greater than {ready}");
        errors.invalid(&path.child("availableReplicas"), available, detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    fn deployment(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "d"}, "spec": spec});
        Deployment.default(&mut object);
        object
    }

    fn template(labels: Value) -> Value {
        json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
    }

    #[test]
    fn a_bare_deployment_gets_what_kubernetes_gives_it() {
        let object = deployment(json!({"template": template(json!({}))}));
        let mut spec = object["spec"].clone();
        spec.as_object_mut().expect("an object").remove("template");
        assert_eq!(
            spec,
            json!({
                "replicas": 1,
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"},
                },
                "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600,
            })
        );
        assert_eq!(
            object["spec"]["template"]["spec"]["restartPolicy"],
            "Always"
        );
        assert!(
            object["spec"]["template"]["spec"]
                .get("enableServiceLinks")
                .is_none()
        );
    }

    #[test]
    fn faults_carry_their_field_and_kubernetes_words() {
        let selector = || json!({"matchLabels": {"app": "a"}});
        for (spec, expected) in [
            (
                json!({"template": template(json!({"app": "a"}))}),
                vec![
                    "spec.selector: Required value",
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not \
                     match template `labels`",
                ],
            ),
            (
                json!({"selector": {}, "template": template(json!({"app": "a"}))}),
                vec!["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
            ),
            (
                json!({"selector": selector(), "template": template(json!({"app": "b"}))}),
                vec![
                    "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not \
                     match template `labels`",
                ],
            ),
            (
                json!({"selector": selector(), "template": template(json!({"app": "a"})), "replicas": -1}),
                vec!["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                json!({
                    "selector": selector(),
                    "template": template(json!({"app": "a"})),
                    "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}},
                }),
                vec![
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when \
                     `maxSurge` is 0",
                ],
            ),
            (
                json!({
                    "selector": selector(),
                    "template": template(json!({"app": "a"})),
                    "strategy": {"type": "Recreate", "rollingUpdate": {}},
                }),
                vec![
                    "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is \
                     'Recreate'",
                ],
            ),
            (
                json!({
                    "selector": selector(),
                    "template": template(json!({"app": "a"})),
                    "minReadySeconds": 600,
                }),
                vec![
                    "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than \
                     minReadySeconds",
                ],
            ),
        ] {
            let object = deployment(spec);
            assert_eq!(
                lines(|e| Deployment.validate(&object, None, e)),
                expected,
                "{object:#}"
            );
        }
        let mut never = template(json!({"app": "a"}));
        never["spec"]["restartPolicy"] = "Never".into();
        let object = deployment(json!({"selector": selector(), "template": never}));
        assert_eq!(
            lines(|e| Deployment.validate(&object, None, e)),
            [
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \
                 \"Always\""
            ]
        );
    }

    #[test]
    fn the_selector_is_immutable() {
        let old = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}});
        let new = json!({"spec": {"selector": {"matchLabels": {"a": "c"}}}});
        assert_eq!(
            lines(|e| Deployment.validate_update(&new, &old, e)),
            ["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable"]
        );
    }

    #[test]
    fn rows_count_replicas() {
        let object = json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}},
            },
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1},
        });
        let now = windlass_machinery::time::parse_seconds("2026-01-03T00:00:00Z").expect("a time");
        assert_eq!(
            Deployment.row(&object, now),
            [
                json!("2/3"),
                json!(3),
                json!(1),
                json!("2d"),
                json!("a,b"),
                json!("x,y"),
                json!("app=web"),
            ]
        );
    }
}
