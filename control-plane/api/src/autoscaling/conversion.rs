//! `autoscaling/v1` knows one target, the use of CPU; whatever else an autoscaler has travels in annotations, in
//! the flat notation of old (`targetAverageValue` beside the metric's name), so that nothing is lost on the way.

use serde_json::{Map, Value, json};

use crate::resource::Conversion;
use crate::tree::{self, Tree};

pub const V1: Conversion = Conversion::Fixed {
    to_storage: from_v1,
    from_storage: to_v1,
};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Where a metric keeps its numbers: what is aimed at, or what was last measured.
#[derive(Clone, Copy)]
enum Numbers {
    Target,
    Current,
}

impl Numbers {
    fn field(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Current => "current",
        }
    }
}

fn to_v1(object: &mut Value) {
    let mut others = Vec::new();
    for metric in object.list("spec.metrics").to_vec() {
        let target = metric.int("resource.target.averageUtilization");
        match target {
            Some(percent) if is_cpu(&metric) => {
                tree::set(object, "spec.targetCPUUtilizationPercentage", percent);
            }
            _ => others.push(flatten(&metric, Numbers::Target)),
        }
    }
    let mut current = Vec::new();
    for metric in object.list("status.currentMetrics").to_vec() {
        if let Some(percent) = metric
            .int("resource.current.averageUtilization")
            .filter(|_| is_cpu(&metric))
        {
            tree::set(object, "status.currentCPUUtilizationPercentage", percent);
        }
        current.push(flatten(&metric, Numbers::Current));
    }
    annotate(
        object,
        METRICS,
        (!others.is_empty()).then_some(Value::Array(others)),
    );
    annotate(
        object,
        CURRENT_METRICS,
        (!current.is_empty()).then_some(Value::Array(current)),
    );
    for (key, path) in [
        (CONDITIONS, "status.conditions"),
        (BEHAVIOR, "spec.behavior"),
    ] {
        let value = tree::remove(object, path).filter(|value| !value.is_null());
        annotate(object, key, value);
    }
    tree::remove(object, "spec.metrics");
    tree::remove(object, "status.currentMetrics");
}

fn from_v1(object: &mut Value) {
    let mut metrics = Vec::new();
    if let Some(percent) = tree::remove(object, "spec.targetCPUUtilizationPercentage")
        && !percent.is_null()
    {
        metrics.push(json!({
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}},
        }));
    }
    if let Some(Value::Array(others)) = take_annotation(object, METRICS) {
        metrics.extend(
            others
                .iter()
                .map(|metric| unflatten(metric, Numbers::Target)),
        );
    }
    if !metrics.is_empty() {
        tree::set(object, "spec.metrics", metrics);
    }
    let percent = tree::remove(object, "status.currentCPUUtilizationPercentage");
    if let Some(Value::Array(current)) = take_annotation(object, CURRENT_METRICS) {
        let current: Vec<_> = current
            .iter()
            .map(|metric| unflatten(metric, Numbers::Current))
            .collect();
        tree::set(object, "status.currentMetrics", current);
    } else if let Some(percent) = percent.filter(|percent| !percent.is_null()) {
        let metric = json!({
            "type": "Resource",
            "resource": {"name": "cpu", "current": {"averageUtilization": percent}},
        });
        tree::set(object, "status.currentMetrics", vec![metric]);
    }
    for (key, path) in [
        (CONDITIONS, "status.conditions"),
        (BEHAVIOR, "spec.behavior"),
    ] {
        if let Some(value) = take_annotation(object, key) {
            tree::set(object, path, value);
        }
    }
}

fn is_cpu(metric: &Value) -> bool {
    metric.text("type") == "Resource" && metric.text("resource.name") == "cpu"
}

fn annotate(object: &mut Value, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        tree::object_at(object, "metadata.annotations")
            .insert(key.to_owned(), value.to_string().into());
    }
}

/// An annotation that cannot be read is left where it is: it is then the client's own.
fn take_annotation(object: &mut Value, key: &str) -> Option<Value> {
    let annotations = tree::at_mut(object, "metadata.annotations")?.as_object_mut()?;
    let value = serde_json::from_str(annotations.get(key)?.as_str()?).ok()?;
    annotations.remove(key);
    if annotations.is_empty() {
        tree::remove(object, "metadata.annotations");
    }
    Some(value)
}

/// The field of a metric that holds its details, from its type: `Pods` -> `pods`.
fn details_field(kind: &str) -> String {
    let mut chars = kind.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(chars).collect()
    })
}

/// The old name of a number, such as `targetAverageValue`.
fn flat_name(kind: &str, numbers: Numbers, field: &str) -> &'static str {
    match (kind, numbers, field) {
        ("Object", _, "averageValue") => "averageValue",
        (_, Numbers::Target, "averageUtilization") => "targetAverageUtilization",
        (_, Numbers::Target, "averageValue") => "targetAverageValue",
        (_, Numbers::Target, _) => "targetValue",
        (_, Numbers::Current, "averageUtilization") => "currentAverageUtilization",
        (_, Numbers::Current, "averageValue") => "currentAverageValue",
        (_, Numbers::Current, _) => "currentValue",
    }
}

const NUMBERS: [&str; 3] = ["averageUtilization", "averageValue", "value"];

fn selector_name(kind: &str) -> &'static str {
    if kind == "External" {
        "metricSelector"
    } else {
        "selector"
    }
}

fn flatten(metric: &Value, numbers: Numbers) -> Value {
    let kind = metric.text("type");
    let details_field = details_field(kind);
    let details = metric.at(&details_field);
    let mut flat = Map::new();
    for field in ["name", "container"] {
        if details.has(field) {
            flat.insert(field.to_owned(), details.at(field).clone());
        }
    }
    if details.has("metric") {
        flat.insert("metricName".to_owned(), details.at("metric.name").clone());
        if details.has("metric.selector") {
            flat.insert(
                selector_name(kind).to_owned(),
                details.at("metric.selector").clone(),
            );
        }
    }
    if details.has("describedObject") {
        flat.insert("target".to_owned(), details.at("describedObject").clone());
    }
    let values = details.at(numbers.field());
    for field in NUMBERS {
        if values.has(field) {
            flat.insert(
                flat_name(kind, numbers, field).to_owned(),
                values.at(field).clone(),
            );
        }
    }
    json!({"type": kind, details_field: flat})
}

fn unflatten(metric: &Value, numbers: Numbers) -> Value {
    let kind = metric.text("type");
    let details_field = details_field(kind);
    let flat = metric.at(&details_field);
    let mut details = json!({});
    for field in ["name", "container"] {
        if flat.has(field) {
            details[field] = flat.at(field).clone();
        }
    }
    if flat.has("metricName") {
        details["metric"] = json!({"name": flat.at("metricName")});
        if flat.has(selector_name(kind)) {
            details["metric"]["selector"] = flat.at(selector_name(kind)).clone();
        }
    }
    if flat.has("target") {
        details["describedObject"] = flat.at("target").clone();
    }
    let mut values = json!({});
    for field in NUMBERS {
        let name = flat_name(kind, numbers, field);
        if flat.has(name) {
            values[field] = flat.at(name).clone();
        }
    }
    if let Numbers::Target = numbers {
        values["type"] = if values.has("averageUtilization") {
            "Utilization"
        } else if values.has("averageValue") {
            "AverageValue"
        } else {
            "Value"
        }
        .into();
    }
    details[numbers.field()] = values;
    json!({"type": kind, details_field: details})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_target_is_a_field_of_v1() {
        let mut object = json!({"spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 70}});
        let v1 = object.clone();
        from_v1(&mut object);
        assert_eq!(
            object["spec"]["metrics"],
            json!([{"type": "Resource", "resource": {
                "name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 70},
            }}])
        );
        to_v1(&mut object);
        assert_eq!(object, v1);
    }

    #[test]
    fn everything_survives_a_round_trip_through_v1() {
        let v2 = json!({
            "metadata": {"name": "h"},
            "spec": {
                "maxReplicas": 3,
                "metrics": [
                    {"type": "Resource", "resource": {
                        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70},
                    }},
                    {"type": "Resource", "resource": {
                        "name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"},
                    }},
                    {"type": "Pods", "pods": {
                        "metric": {"name": "qps"},
                        "target": {"type": "AverageValue", "averageValue": "10"},
                    }},
                    {"type": "Object", "object": {
                        "describedObject": {"kind": "Service", "name": "s"},
                        "metric": {"name": "hits", "selector": {"matchLabels": {"a": "b"}}},
                        "target": {"type": "Value", "value": "5"},
                    }},
                    {"type": "External", "external": {
                        "metric": {"name": "queue", "selector": {"matchLabels": {"a": "b"}}},
                        "target": {"type": "Value", "value": "5"},
                    }},
                ],
                "behavior": {"scaleDown": {"selectPolicy": "Disabled"}},
            },
            "status": {
                "currentMetrics": [{"type": "Resource", "resource": {
                    "name": "cpu", "current": {"averageUtilization": 30, "averageValue": "3m"},
                }}],
                "conditions": [{"type": "AbleToScale", "status": "True"}],
            },
        });
        let mut object = v2.clone();
        to_v1(&mut object);
        assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 70);
        assert_eq!(object["status"]["currentCPUUtilizationPercentage"], 30);
        assert!(object["spec"].get("metrics").is_none());
        from_v1(&mut object);
        assert_eq!(object, v2);
    }
}
