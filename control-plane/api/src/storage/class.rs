//! StorageClasses and VolumeAttributesClasses.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::core::pod_spec::warnings;
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree};
use crate::validate::{optional_one_of, required, same, sentences};

pub struct StorageClass;

const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETERS_BYTES: usize = 256 * 1024;

/// The object's name, marked when it is what claims without a class get.
fn marked_name(object: &Value, annotations: &[&str]) -> String {
    let is_default = annotations
        .iter()
        .any(|key| object.at("metadata.annotations").get(key) == Some(&"true".into()));
    let name = object.text("metadata.name");
    if is_default {
        format!("{name} (default)")
    } else {
        name.to_owned()
    }
}

impl Strategy for StorageClass {
    fn default(&self, object: &mut Value) {
        tree::fill(object, "reclaimPolicy", "Delete");
        tree::fill(object, "volumeBindingMode", "Immediate");
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let root = Path::root();
        driver(object, "provisioner", errors);
        parameters(object, true, errors);
        if object.at("reclaimPolicy") != "" {
            let policies = &["Delete", "Retain"];
            optional_one_of(object, "reclaimPolicy", policies, &root, errors);
        }
        let modes = &["Immediate", "WaitForFirstConsumer"];
        optional_one_of(object, "volumeBindingMode", modes, &root, errors);
        topologies(object.list("allowedTopologies"), errors);
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        for (i, term) in new.list("allowedTopologies").iter().enumerate() {
            let path = Path::new("allowedTopologies").index(i);
            let path = path.child("matchLabelExpressions");
            for (j, expression) in term.list("matchLabelExpressions").iter().enumerate() {
                if let Some(text) = warnings::old_label(expression.text("key")) {
                    found.push(format!("{}: {text}", path.index(j).child("key")));
                }
            }
        }
        found
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        for (field, detail) in [
            ("parameters", "updates to parameters are forbidden."),
            ("provisioner", "updates to provisioner are forbidden."),
            ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
        ] {
            if !same(new.at(field), old.at(field)) {
                errors.forbidden(&Path::new(field), detail);
            }
        }
        crate::validate::immutable(new, old, "volumeBindingMode", errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![
            marked_name(
                object,
                &[
                    "storageclass.kubernetes.io/is-default-class",
                    "storageclass.beta.kubernetes.io/is-default-class",
                ],
            ),
            object.text("provisioner"),
            crate::table::or(object.text("reclaimPolicy"), "Delete"),
            crate::table::or(object.text("volumeBindingMode"), "Immediate"),
            object.flag("allowVolumeExpansion"),
            age(object, now),
        ]
    }
}

/// Who makes volumes: a name that stands for itself in lower case.
fn driver(object: &Value, field: &str, errors: &mut Errors) {
    if let Some(name) = required(object, field, &Path::root(), errors) {
        let lower = name.to_lowercase();
        let problems = names::is_qualified_name(&lower);
        sentences(problems, &Path::new(field), &lower, errors);
    }
}

/// Where volumes of a class may be; no two terms may say the same.
fn topologies(terms: &[Value], errors: &mut Errors) {
    let mut seen: Vec<BTreeMap<&str, BTreeSet<&str>>> = Vec::new();
    for (i, term) in terms.iter().enumerate() {
        let path = Path::new("allowedTopologies").index(i);
        let path = path.child("matchLabelExpressions");
        let said = topology(term, &path, errors);
        // Upstream compares with as many empty terms as there are, too.
        let empty = if said.is_empty() { terms.len() } else { 0 };
        for _ in 0..empty + seen.iter().filter(|other| **other == said).count() {
            errors.duplicate(&path, "");
        }
        seen.push(said);
    }
}

/// One term, as the values of each key.
fn topology<'t>(
    term: &'t Value,
    path: &Path,
    errors: &mut Errors,
) -> BTreeMap<&'t str, BTreeSet<&'t str>> {
    let mut said = BTreeMap::new();
    for (i, expression) in term.list("matchLabelExpressions").iter().enumerate() {
        let path = path.index(i);
        let (key, key_path) = (expression.text("key"), path.child("key"));
        let (values, values_path) = (expression.list("values"), path.child("values"));
        if values.is_empty() {
            errors.required(&values_path, "");
        }
        let mut set = BTreeSet::new();
        for (j, value) in values.iter().enumerate() {
            if !set.insert(value.as_str().unwrap_or_default()) {
                errors.duplicate(&values_path.index(j), value.clone());
            }
        }
        sentences(names::is_qualified_name(key), &key_path, key, errors);
        if said.insert(key, set).is_some() {
            errors.duplicate(&key_path, key);
        }
    }
    said
}

fn parameters(object: &Value, may_be_empty: bool, errors: &mut Errors) {
    let path = Path::new("parameters");
    let count = object.entries("parameters").count();
    if count > MAX_PARAMETERS {
        errors.too_long(&path, MAX_PARAMETERS);
        return;
    }
    let mut bytes = 0;
    for (key, value) in object.entries("parameters") {
        if key.is_empty() {
            errors.invalid(&path, key, "field can not be empty.");
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > MAX_PARAMETERS_BYTES {
        errors.too_long(&path, MAX_PARAMETERS_BYTES);
    }
    if count == 0 && !may_be_empty {
        errors.required(&path, "must contain at least one key/value pair");
    }
}

pub struct VolumeAttributesClass;

impl Strategy for VolumeAttributesClass {
    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        driver(object, "driverName", errors);
        parameters(object, false, errors);
    }

    /// What changes is told before what is wrong.
    fn validate_change(&self, new: &Value, old: &Value, errors: &mut Errors) {
        for (field, detail) in [
            ("driverName", "updates to driverName are forbidden."),
            ("parameters", "updates to parameters are forbidden."),
        ] {
            if !same(new.at(field), old.at(field)) {
                errors.forbidden(&Path::new(field), detail);
            }
        }
        self.validate(new, Some(old), errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![
            marked_name(
                object,
                &["volumeattributesclass.alpha.kubernetes.io/is-default-class"]
            ),
            object.text("driverName"),
            age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn old_labels_of_places_are_told() {
        let key = "failure-domain.beta.kubernetes.io/zone";
        let object = json!({"allowedTopologies": [{"matchLabelExpressions": [{"key": key, "values": ["a"]}]}]});
        assert_eq!(
            StorageClass.warnings(&object, None),
            [
                "allowedTopologies[0].matchLabelExpressions[0].key: deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
            ]
        );
    }

    #[test]
    fn the_default_class_is_marked() {
        let mut object = json!({
            "metadata": {
                "name": "fast",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "example.com/x",
        });
        StorageClass.default(&mut object);
        assert!(lines(|e| StorageClass.validate(&object, None, e)).is_empty());
        assert_eq!(
            StorageClass.row(&object, 0)[..4],
            [
                json!("fast (default)"),
                json!("example.com/x"),
                json!("Delete"),
                json!("Immediate")
            ]
        );
        let mut new = object.clone();
        new["provisioner"] = "y".into();
        assert_eq!(
            lines(|e| StorageClass.validate_update(&new, &object, e)),
            ["provisioner: Forbidden: updates to provisioner are forbidden."]
        );
    }
}
