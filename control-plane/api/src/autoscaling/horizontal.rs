//! HorizontalPodAutoscalers, in their v2 form.

use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells, or};
use crate::tree::{self, Tree};
use crate::validate::numbers::non_negative;
use crate::validate::quantities::{container_resource_name, is_positive, show};
use crate::validate::{named, optional_one_of, sentences};

pub struct HorizontalPodAutoscaler;

/// What an autoscaler aims at when it says nothing: percent of the CPU that was requested.
const DEFAULT_CPU_UTILIZATION: i64 = 80;
const MAX_PERIOD_SECONDS: i64 = 1800;
const MAX_STABILIZATION_SECONDS: i64 = 3600;

impl Strategy for HorizontalPodAutoscaler {
    fn default(&self, object: &mut Value) {
        tree::fill(object, "spec.minReplicas", 1);
        if object.list("spec.metrics").is_empty() {
            let target =
                json!({"type": "Utilization", "averageUtilization": DEFAULT_CPU_UTILIZATION});
            let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
            tree::set(object, "spec.metrics", vec![metric]);
        }
        if let Some(behavior) = tree::at_mut(object, "spec.behavior").filter(|b| b.is_object()) {
            let up = json!([
                {"type": "Pods", "value": 4, "periodSeconds": 15},
                {"type": "Percent", "value": 100, "periodSeconds": 15},
            ]);
            tree::fill(behavior, "scaleUp.stabilizationWindowSeconds", 0);
            let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
            for (direction, policies) in [("scaleUp", up), ("scaleDown", down)] {
                tree::fill(behavior, &format!("{direction}.selectPolicy"), "Max");
                tree::fill(behavior, &format!("{direction}.policies"), policies);
            }
        }
        tree::fill(object, "status.desiredReplicas", 0);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({"desiredReplicas": 0}));
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let (min, max) = (
            spec.int("minReplicas").unwrap_or(1),
            spec.int("maxReplicas").unwrap_or_default(),
        );
        // One that was let in to rest at nothing may go on so.
        let least = i64::from(old.and_then(|old| old.int("spec.minReplicas")) != Some(0));
        if min < least {
            let detail = format!("must be greater than or equal to {least}");
            errors.invalid(&path.child("minReplicas"), min, detail);
        }
        if max < 1 {
            errors.invalid(&path.child("maxReplicas"), max, "must be greater than 0");
        }
        if max < min {
            let detail = "must be greater than or equal to `minReplicas`";
            errors.invalid(&path.child("maxReplicas"), max, detail);
        }
        let target = path.child("scaleTargetRef");
        let aim = spec.at("scaleTargetRef");
        reference(aim, &target, errors);
        // The kind of what is scaled may have been accepted before.
        let is_kept = old.is_some_and(|old| {
            let before = old.at("spec.scaleTargetRef");
            ["apiVersion", "kind"]
                .iter()
                .all(|field| aim.text(field) == before.text(field))
        });
        if !is_kept {
            let in_core = aim.text("kind") == "ReplicationController";
            api_version(aim, in_core, &target, errors);
        }
        for (i, metric) in spec.list("metrics").iter().enumerate() {
            validate_metric(metric, &path.child("metrics").index(i), errors);
        }
        let wakes = |metric: &Value| ["Object", "External"].contains(&metric.text("type"));
        if min == 0 && !spec.list("metrics").iter().any(wakes) {
            let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
            errors.forbidden(&path.child("metrics"), detail);
        }
        for direction in ["scaleUp", "scaleDown"] {
            let rules = spec.at("behavior").at(direction);
            if !rules.is_null() {
                scaling_rules(rules, &path.child("behavior").child(direction), errors);
            }
        }
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        for count in ["currentReplicas", "desiredReplicas"] {
            non_negative(new.at("status"), count, &Path::new("status"), errors);
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        let min = spec
            .int("minReplicas")
            .map_or_else(|| "<unset>".to_owned(), |n| n.to_string());
        cells![
            format!(
                "{}/{}",
                spec.text("scaleTargetRef.kind"),
                spec.text("scaleTargetRef.name")
            ),
            targets(object),
            min,
            spec.int("maxReplicas").unwrap_or_default(),
            object.int("status.currentReplicas").unwrap_or_default(),
            age(object, now),
        ]
    }
}

fn api_version(reference: &Value, may_be_core: bool, path: &Path, errors: &mut Errors) {
    let text = reference.text("apiVersion");
    let detail = match text.split('/').collect::<Vec<_>>()[..] {
        [_] | ["", _] if may_be_core => return,
        [_] | ["", _] => "apiVersion must specify API group".to_owned(),
        [_, _] => return,
        _ => format!("unexpected GroupVersion string: {text}"),
    };
    errors.invalid(&path.child("apiVersion"), text, detail);
}

fn reference(reference: &Value, path: &Path, errors: &mut Errors) {
    for field in ["kind", "name"] {
        named(reference, field, names::is_path_segment, path, errors);
    }
}

/// The sources of metrics, in upstream's order.
const SOURCES: [&str; 5] = [
    "object",
    "external",
    "pods",
    "resource",
    "containerResource",
];
const KINDS: &[&str] = &[
    "ContainerResource",
    "External",
    "Object",
    "Pods",
    "Resource",
];

fn validate_metric(metric: &Value, path: &Path, errors: &mut Errors) {
    let kind = metric.text("type");
    let type_path = path.child("type");
    if kind.is_empty() {
        errors.required(&type_path, "must specify a metric source type");
    }
    if !KINDS.contains(&kind) {
        errors.not_supported(&type_path, kind, KINDS);
    }
    let given: Vec<_> = SOURCES
        .into_iter()
        .filter(|field| metric.has(field))
        .collect();
    // Only the first one is looked into.
    if let Some(field) = given.first() {
        source(metric.at(field), field, &path.child(field), errors);
    }
    let expected = SOURCES
        .into_iter()
        .find(|field| field.eq_ignore_ascii_case(kind));
    match expected {
        Some(field) if !metric.has(field) => {
            let detail = "must populate information for the given metric source";
            errors.required(&path.child(field), detail);
        }
        Some(_) => {}
        None => errors.not_supported(&type_path, kind, KINDS),
    }
    if given.len() != 1 {
        for other in given.iter().filter(|field| Some(**field) != expected) {
            let detail = "must populate the given metric source only";
            errors.forbidden(&path.child(other), detail);
        }
    }
}

fn source(source: &Value, field: &str, path: &Path, errors: &mut Errors) {
    match field {
        "resource" | "containerResource" => {
            let (name, name_path) = (source.text("name"), path.child("name"));
            if name.is_empty() {
                errors.required(&name_path, "must specify a resource name");
            } else if field == "containerResource" {
                container_resource_name(name, &name_path, errors);
            }
            let (container, container_path) = (source.text("container"), path.child("container"));
            if field == "containerResource" && container.is_empty() {
                errors.required(&container_path, "must specify a container");
            } else if field == "containerResource" {
                let problems = names::is_dns1123_label(container);
                sentences(problems, &container_path, container, errors);
            }
        }
        _ => {
            if field == "object" {
                let path = path.child("describedObject");
                reference(source.at("describedObject"), &path, errors);
            }
            let (name, path) = (
                source.text("metric.name"),
                path.child("metric").child("name"),
            );
            if name.is_empty() {
                errors.required(&path, "must specify a metric name");
            } else {
                sentences(names::is_path_segment(name), &path, name, errors);
            }
        }
    }
    validate_target(source.at("target"), field, &path.child("target"), errors);
}

fn validate_target(target: &Value, source: &str, path: &Path, errors: &mut Errors) {
    let (kind, type_path) = (target.text("type"), path.child("type"));
    if kind.is_empty() {
        errors.required(&type_path, "must specify a metric target type");
    }
    if !["Utilization", "Value", "AverageValue"].contains(&kind) {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.invalid(&type_path, kind, detail);
    }
    for field in ["value", "averageValue"] {
        if target.has(field) && !is_positive(target.at(field)) {
            let shown = show(target.at(field));
            errors.invalid(&path.child(field), shown, "must be positive");
        }
    }
    let utilization = target.int("averageUtilization");
    if let Some(percent) = utilization.filter(|percent| *percent < 1) {
        let detail = "must be greater than 0";
        errors.invalid(&path.child("averageUtilization"), percent, detail);
    }
    let (value, average) = (target.has("value"), target.has("averageValue"));
    match source {
        "resource" | "containerResource" => match (utilization.is_some(), average) {
            (false, false) => errors.required(
                &path.child("averageUtilization"),
                "must set either a target raw value or a target utilization",
            ),
            (true, true) => errors.forbidden(
                &path.child("averageValue"),
                "may not set both a target raw value and a target utilization",
            ),
            _ => {}
        },
        "pods" if !average => errors.required(
            &path.child("averageValue"),
            "must specify a positive target averageValue",
        ),
        "object" if !value && !average => errors.required(
            &path.child("averageValue"),
            "must set either a target value or averageValue",
        ),
        "external" if !value && !average => errors.required(
            &path.child("averageValue"),
            "must set either a target value for metric or a per-pod target",
        ),
        "external" if value && average => errors.forbidden(
            &path.child("value"),
            "may not set both a target value for metric and a per-pod target",
        ),
        _ => {}
    }
}

fn scaling_rules(rules: &Value, path: &Path, errors: &mut Errors) {
    if let Some(seconds) = rules.int("stabilizationWindowSeconds") {
        let path = path.child("stabilizationWindowSeconds");
        if seconds < 0 {
            errors.invalid(&path, seconds, "must be greater than or equal to zero");
        } else if seconds > MAX_STABILIZATION_SECONDS {
            let detail = format!("must be less than or equal to {MAX_STABILIZATION_SECONDS}");
            errors.invalid(&path, seconds, detail);
        }
    }
    optional_one_of(
        rules,
        "selectPolicy",
        &["Disabled", "Max", "Min"],
        path,
        errors,
    );
    let policies = rules.list("policies");
    if policies.is_empty() {
        errors.required(&path.child("policies"), "must specify at least one Policy");
    }
    for (i, policy) in policies.iter().enumerate() {
        let path = path.child("policies").index(i);
        let (kind, kinds) = (policy.text("type"), &["Percent", "Pods"]);
        if !kinds.contains(&kind) {
            errors.not_supported(&path.child("type"), kind, kinds);
        }
        for field in ["value", "periodSeconds"] {
            let number = policy.int(field).unwrap_or_default();
            if number <= 0 {
                errors.invalid(&path.child(field), number, "must be greater than zero");
            }
        }
        let period = policy.int("periodSeconds").unwrap_or_default();
        if period > MAX_PERIOD_SECONDS {
            let detail = format!("must be less than or equal to {MAX_PERIOD_SECONDS}");
            errors.invalid(&path.child("periodSeconds"), period, detail);
        }
    }
}

/// `cpu: 30%/80%, 3/10 + 1 more...`: what is measured over what is aimed at.
fn targets(object: &Value) -> String {
    const SHOWN: usize = 2;
    let specs = object.list("spec.metrics");
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let statuses = object.list("status.currentMetrics");
    let texts: Vec<_> = specs
        .iter()
        .enumerate()
        .take(SHOWN)
        .map(|(i, spec)| target(spec, statuses.get(i).unwrap_or(&Value::Null)))
        .collect();
    let shown = texts.join(", ");
    if specs.len() > SHOWN {
        format!("{shown} + {} more...", specs.len() - SHOWN)
    } else {
        shown
    }
}

fn target(spec: &Value, status: &Value) -> String {
    let (field, is_resource) = match spec.text("type") {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".to_owned(),
    };
    let (source, current) = (spec.at(field), status.at(field).at("current"));
    let aim = source.at("target");
    let measured = |name: &str| match current.at(name) {
        Value::Null => "<unknown>".to_owned(),
        value => show(value),
    };
    let percent = |value: Option<i64>, none: &str| {
        value.map_or_else(|| none.to_owned(), |percent| format!("{percent}%"))
    };
    let text = if aim.has("averageValue") {
        let suffix = if is_resource || field == "pods" {
            ""
        } else {
            " (avg)"
        };
        format!(
            "{}/{}{suffix}",
            measured("averageValue"),
            show(aim.at("averageValue"))
        )
    } else if is_resource {
        let now = percent(current.int("averageUtilization"), "<unknown>");
        format!("{now}/{}", percent(aim.int("averageUtilization"), "<auto>"))
    } else {
        format!("{}/{}", measured("value"), show(aim.at("value")))
    };
    if is_resource {
        format!("{}: {text}", or(source.text("name"), "<unknown>"))
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn faults_carry_their_field_and_kubernetes_words() {
        let mut object = json!({"spec": {
            "scaleTargetRef": {"kind": "Deployment"},
            "minReplicas": 3,
            "maxReplicas": 2,
            "metrics": [{"type": "Resource"}, {"type": "X"}],
        }});
        HorizontalPodAutoscaler.default(&mut object);
        assert_eq!(
            lines(|e| HorizontalPodAutoscaler.validate(&object, None, e)),
            [
                "spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`",
                "spec.scaleTargetRef.name: Required value",
                "spec.scaleTargetRef.apiVersion: Invalid value: \"\": apiVersion must specify API group",
                "spec.metrics[0].resource: Required value: must populate information for the given metric \
                 source",
                "spec.metrics[1].type: Unsupported value: \"X\": supported values: \"ContainerResource\", \
                 \"External\", \"Object\", \"Pods\", \"Resource\"",
                "spec.metrics[1].type: Unsupported value: \"X\": supported values: \"ContainerResource\", \
                 \"External\", \"Object\", \"Pods\", \"Resource\"",
            ]
        );
    }

    #[test]
    fn rows_show_measured_over_aim() {
        let mut object = json!({
            "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 5},
            "status": {"currentReplicas": 2, "currentMetrics": [
                {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 30}}},
            ]},
        });
        HorizontalPodAutoscaler.default(&mut object);
        assert_eq!(
            HorizontalPodAutoscaler.row(&object, 0)[..5],
            [
                json!("Deployment/web"),
                json!("cpu: 30%/80%"),
                json!("1"),
                json!(5),
                json!(2)
            ]
        );
    }
}
