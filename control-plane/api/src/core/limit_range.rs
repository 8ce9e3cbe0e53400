//! LimitRanges: bounds and defaults for what pods and containers ask for.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::created_at;
use crate::tree::{self, Tree, each};
use crate::validate::quantities::{
    compare, container_resource_name, is_overcommittable, parse, resource_name, show,
};
use crate::validate::sentences;

pub struct LimitRange;

const TYPES: [&str; 3] = ["Container", "PersistentVolumeClaim", "Pod"];

impl Strategy for LimitRange {
    fn default(&self, object: &mut Value) {
        for item in each(object, "spec.limits").filter(|item| item.text("type") == "Container") {
            copy_missing(item, "max", "default");
            copy_missing(item, "default", "defaultRequest");
            // A minimum is what is requested where nothing else says so.
            copy_missing(item, "min", "defaultRequest");
        }
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let mut types = HashSet::new();
        for (i, item) in object.list("spec.limits").iter().enumerate() {
            let path = Path::new("spec").child("limits").index(i);
            let kind = item.text("type");
            let problems = names::is_qualified_name(kind);
            if problems.is_empty() && !kind.contains('/') && !TYPES.contains(&kind) {
                let detail = "must be a standard limit type or fully qualified";
                errors.invalid(&path.child("type"), kind, detail);
            }
            sentences(problems, &path.child("type"), kind, errors);
            if !types.insert(kind) {
                errors.duplicate(&path.child("type"), kind);
            }
            validate_item(item, &path, errors);
        }
    }

    fn row(&self, object: &Value, _now: i64) -> Vec<Value> {
        created_at(object)
    }

    fn create_on_update(&self) -> bool {
        true
    }
}

fn copy_missing(item: &mut Value, from: &str, to: &str) {
    let Some(source) = item.map(from).cloned().filter(|map| !map.is_empty()) else {
        return;
    };
    let target = tree::object_at(item, to);
    for (name, value) in source {
        target.entry(name).or_insert(value);
    }
}

fn validate_item(item: &Value, path: &Path, errors: &mut Errors) {
    let kind = item.text("type");
    let mut names = BTreeSet::new();
    let mut named = |field: &str, errors: &mut Errors| {
        for (name, _) in item.entries(field) {
            let path = path.child(field).key(name);
            match kind {
                "Container" | "Pod" => container_resource_name(name, &path, errors),
                _ => resource_name(name, &path, errors),
            }
            names.insert(name.to_owned());
        }
    };
    named("max", errors);
    named("min", errors);
    for field in ["default", "defaultRequest"] {
        if kind != "Pod" {
            named(field, errors);
        } else if item.entries(field).next().is_some() {
            let detail = "may not be specified when `type` is 'Pod'";
            errors.forbidden(&path.child(field), detail);
        }
    }
    if kind == "PersistentVolumeClaim"
        && item.at("min").get("storage").is_none()
        && item.at("max").get("storage").is_none()
    {
        let detail =
            "either minimum or maximum storage value is required, but neither was provided";
        errors.required(&path.child("limits"), detail);
    }
    named("maxLimitRequestRatio", errors);
    for name in &names {
        bounds(item, name, path, errors);
        ratio(item, name, path, errors);
        let get = |field: &str| item.at(field).get(name).filter(|_| kind != "Pod");
        if let (Some(limit), Some(request)) = (get("default"), get("defaultRequest"))
            && !is_overcommittable(name)
            && compare(limit, request) != Some(Ordering::Equal)
        {
            let (limit, request) = (show(limit), show(request));
            let detail = format!(
                "default value {limit} must equal to defaultRequest value {request} in {name}"
            );
            errors.invalid(&path.child("defaultRequest").key(name), request, detail);
        }
    }
}

/// Which amounts of a resource may not be more than which: the field and the amount that the fault names, and the words.
fn bounds(item: &Value, name: &str, path: &Path, errors: &mut Errors) {
    let is_pod = item.text("type") == "Pod";
    for (low, high, fault, shown, low_word, high_word) in [
        ("min", "max", "min", "min", "min", "max"),
        (
            "min",
            "defaultRequest",
            "defaultRequest",
            "defaultRequest",
            "min",
            "default request",
        ),
        (
            "defaultRequest",
            "max",
            "defaultRequest",
            "defaultRequest",
            "default request",
            "max",
        ),
        (
            "defaultRequest",
            "default",
            "defaultRequest",
            "defaultRequest",
            "default request",
            "default limit",
        ),
        ("min", "default", "default", "min", "min", "default"),
        ("default", "max", "default", "max", "default", "max"),
    ] {
        if is_pod && fault != "min" {
            continue;
        }
        let get = |field: &str| item.at(field).get(name);
        let (Some(a), Some(b)) = (get(low), get(high)) else {
            continue;
        };
        if compare(a, b) == Some(Ordering::Greater) {
            let (a, b) = (show(a), show(b));
            let detail = format!("{low_word} value {a} is greater than {high_word} value {b}");
            let value = if shown == low { a } else { b };
            errors.invalid(&path.child(fault).key(name), value, detail);
        }
    }
}

fn ratio(item: &Value, name: &str, path: &Path, errors: &mut Errors) {
    let get = |field: &str| item.at(field).get(name);
    let Some(ratio) = get("maxLimitRequestRatio") else {
        return;
    };
    let path = path.child("maxLimitRequestRatio").key(name);
    if compare(ratio, &Value::from("1")) == Some(Ordering::Less) {
        let detail = format!("ratio {} is less than 1", show(ratio));
        errors.invalid(&path, show(ratio), detail);
    }
    let milli = |value: &Value| parse(value).map(|quantity| quantity.milli_value() as f64);
    if let (Some(min), Some(max)) = (get("min").and_then(milli), get("max").and_then(milli)) {
        let most = max / min;
        if milli(ratio).is_some_and(|ratio| ratio / 1000.0 > most) {
            let detail = format!("ratio {} is greater than max/min = {most:.6}", show(ratio));
            errors.invalid(&path, show(ratio), detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn maxima_are_default_limits_and_those_default_requests() {
        let mut object = json!({"spec": {"limits": [
            {"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}},
        ]}});
        LimitRange.default(&mut object);
        assert_eq!(
            object["spec"]["limits"][0],
            json!({
                "type": "Container",
                "max": {"cpu": "2"},
                "min": {"memory": "1Mi"},
                "default": {"cpu": "2"},
                "defaultRequest": {"cpu": "2", "memory": "1Mi"},
            })
        );
    }

    #[test]
    fn bounds_are_in_order() {
        let object = json!({"spec": {"limits": [
            {"type": "Pod", "min": {"cpu": "3"}, "max": {"cpu": "2"}, "default": {"cpu": "1"}},
            {"type": "Pod"},
        ]}});
        let found = lines(|e| LimitRange.validate(&object, None, e));
        assert!(
            found.contains(
                &"spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than max value 2"
                    .to_owned()
            ),
            "{found:#?}"
        );
        assert!(found.contains(&"spec.limits[1].type: Duplicate value: \"Pod\"".to_owned()));
        assert!(found[0].contains("may not be specified when `type` is 'Pod'"));
    }
}
