//! LimitRanges: bounds and defaults for what pods and containers ask for.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::created_at;
use crate::tree::{self, Tree, each};
use crate::validate::quantities::{compare, show};
use crate::validate::sentences;

pub struct LimitRange;

impl Strategy for LimitRange {
    fn default(&self, object: &mut Value) {
        for item in each(object, "spec.limits").filter(|item| item.text("type") == "Container") {
            copy_missing(item, "max", "default");
            copy_missing(item, "default", "defaultRequest");
            // A minimum is what is requested where nothing else says so.
            copy_missing(item, "min", "defaultRequest");
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let mut types = HashSet::new();
        for (i, item) in object.list("spec.limits").iter().enumerate() {
            let path = Path::new("spec").child("limits").index(i);
            let kind = item.text("type");
            sentences(
                names::is_qualified_name(kind),
                &path.child("type"),
                kind,
                errors,
            );
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
    if item.text("type") == "Pod" {
        for field in ["default", "defaultRequest"] {
            if item.entries(field).next().is_some() {
                errors.forbidden(
                    &path.child(field),
                    "may not be specified when `type` is 'Pod'",
                );
            }
        }
    }
    let fields = [
        "max",
        "min",
        "default",
        "defaultRequest",
        "maxLimitRequestRatio",
    ];
    let names: BTreeSet<_> = fields
        .iter()
        .flat_map(|field| item.entries(field).map(|(name, _)| name))
        .collect();
    if item.text("type") == "PersistentVolumeClaim"
        && item.at("min").get("storage").is_none()
        && item.at("max").get("storage").is_none()
    {
        let detail =
            "either minimum or maximum storage value is required, but neither was provided";
        errors.required(path, detail);
    }
    for name in names {
        let get = |field: &str| item.at(field).get(name);
        // Each pair must be in this order; the fault is the first one's.
        for (low, low_word, high, high_word) in [
            ("min", "min", "max", "max"),
            ("min", "min", "default", "default"),
            ("default", "default", "max", "max"),
            ("min", "min", "defaultRequest", "default request"),
            ("defaultRequest", "default request", "max", "max"),
            (
                "defaultRequest",
                "default request",
                "default",
                "default limit",
            ),
        ] {
            let (Some(a), Some(b)) = (get(low), get(high)) else {
                continue;
            };
            if compare(a, b) == Some(Ordering::Greater) {
                let detail = format!(
                    "{low_word} value {} is greater than {high_word} value {}",
                    show(a),
                    show(b)
                );
                errors.invalid(&path.child(low).key(name), show(a), detail);
            }
        }
        if let Some(ratio) = get("maxLimitRequestRatio")
            && compare(ratio, &Value::from("1")) == Some(Ordering::Less)
        {
            let detail = format!("ratio {} is less than 1", show(ratio));
            errors.invalid(
                &path.child("maxLimitRequestRatio").key(name),
                show(ratio),
                detail,
            );
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
        let found = lines(|e| LimitRange.validate(&object, e));
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
