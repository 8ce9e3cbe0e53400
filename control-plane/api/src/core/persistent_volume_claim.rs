//! PersistentVolumeClaims.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::persistent_volume::{access_modes, class, short_modes};
use crate::resource::Strategy;
use crate::table::{age, cells, or};
use crate::tree::{self, Tree};
use crate::validate::labels::selector;
use crate::validate::quantities::{compare, is_positive, show};
use crate::validate::{optional_name, optional_one_of, same};

pub struct PersistentVolumeClaim;

/// Defaults of a claim's spec, also in the claim templates of StatefulSets.
pub fn default_spec(object: &mut Value) {
    tree::fill(object, "spec.volumeMode", "Filesystem");
    tree::object_at(object, "spec.resources");
    // The old source field and the newer reference name the same thing.
    if object.has("spec.dataSource") && !object.has("spec.dataSourceRef") {
        tree::set(
            object,
            "spec.dataSourceRef",
            object.at("spec.dataSource").clone(),
        );
    }
}

impl Strategy for PersistentVolumeClaim {
    fn default(&self, object: &mut Value) {
        default_spec(object);
        tree::fill(object, "status.phase", "Pending");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", serde_json::json!({"phase": "Pending"}));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate_spec(object.at("spec"), &Path::new("spec"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let mut rest = new.at("spec").clone();
        let old_spec = old.at("spec");
        // The binder fills in the volume; the class may be given later where it was left open (KEP-3333).
        if old_spec.text("volumeName").is_empty() {
            tree::keep(&mut rest, old_spec, "volumeName");
        }
        if !old_spec.has("storageClassName") {
            tree::keep(&mut rest, old_spec, "storageClassName");
        }
        if old.text("status.phase") == "Bound" {
            tree::keep(&mut rest, old_spec, "resources");
            tree::keep(&mut rest, old_spec, "volumeAttributesClassName");
        }
        if !same(&rest, old_spec) {
            let detail = "spec is immutable after creation except resources.requests and \
                          volumeAttributesClassName for bound claims";
            errors.forbidden(&path, detail);
        }
        let storage = |object: &Value, path: &str| object.at(path).get("storage").cloned();
        let wanted = storage(new, "spec.resources.requests");
        let before = storage(old, "spec.resources.requests");
        if let (Some(wanted), Some(before)) = (wanted, before)
            && compare(&wanted, &before).is_some_and(std::cmp::Ordering::is_lt)
        {
            let capacity = storage(old, "status.capacity").unwrap_or_else(|| "0".into());
            if compare(&wanted, &capacity).is_some_and(std::cmp::Ordering::is_le) {
                let path = path.child("resources").child("requests").child("storage");
                errors.forbidden(&path, "field can not be less than status.capacity");
            }
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let phase = if object.has("metadata.deletionTimestamp") {
            "Terminating"
        } else {
            object.text("status.phase")
        };
        let volume = object.text("spec.volumeName");
        let (capacity, modes) = if volume.is_empty() {
            (String::new(), String::new())
        } else {
            let capacity = object.at("status.capacity").get("storage");
            (
                capacity.map_or_else(|| "0".to_owned(), show),
                short_modes(object.list("status.accessModes")),
            )
        };
        cells![
            phase,
            volume,
            capacity,
            modes,
            class(object),
            or(object.text("spec.volumeAttributesClassName"), "<unset>"),
            age(object, now),
            or(object.text("spec.volumeMode"), "<unset>"),
        ]
    }
}

/// Checks a claim's spec, wherever it stands.
pub fn validate_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    access_modes(spec, "at least 1 access mode is required", path, errors);
    if spec.has("selector") {
        selector(spec.at("selector"), &path.child("selector"), errors);
    }
    let storage_path = path.child("resources").key("storage");
    match spec.at("resources.requests").get("storage") {
        None => errors.required(&storage_path, ""),
        Some(storage) if !is_positive(storage) => {
            errors.invalid(&storage_path, show(storage), "must be greater than zero");
        }
        Some(_) => {}
    }
    optional_name(
        spec,
        "storageClassName",
        names::is_dns1123_subdomain,
        path,
        errors,
    );
    optional_name(
        spec,
        "volumeAttributesClassName",
        names::is_dns1123_subdomain,
        path,
        errors,
    );
    optional_one_of(spec, "volumeMode", &["Block", "Filesystem"], path, errors);
    if spec.has("dataSource")
        && spec.has("dataSourceRef")
        && !same(spec.at("dataSource"), spec.at("dataSourceRef"))
    {
        errors.invalid(
            path,
            path.child("dataSource").to_string(),
            "must match dataSourceRef",
        );
    }
    for field in ["dataSource", "dataSourceRef"] {
        let source = spec.at(field);
        if source.is_null() {
            continue;
        }
        let path = path.child(field);
        for part in ["name", "kind"] {
            if source.text(part).is_empty() {
                errors.required(&path.child(part), "");
            }
        }
        if source.text("apiGroup").is_empty() && source.text("kind") != "PersistentVolumeClaim" {
            let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.invalid(&path, source.text("kind"), detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn claims_ask_for_modes_and_storage() {
        let path = Path::new("spec");
        assert_eq!(
            lines(|e| validate_spec(&json!({"accessModes": ["RWX"]}), &path, e)),
            [
                "spec.accessModes: Unsupported value: \"RWX\": supported values: \"ReadOnlyMany\", \
                 \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.resources[storage]: Required value",
            ]
        );
        let good = json!({
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        });
        assert!(lines(|e| validate_spec(&good, &path, e)).is_empty());
    }

    #[test]
    fn a_bound_claim_only_grows() {
        let claim = |storage: &str, phase: &str| {
            json!({
                "spec": {"volumeName": "v", "resources": {"requests": {"storage": storage}}},
                "status": {"phase": phase, "capacity": {"storage": "2Gi"}},
            })
        };
        let check = |new: &Value, old: &Value| {
            lines(|e| PersistentVolumeClaim.validate_update(new, old, e))
        };
        assert!(check(&claim("3Gi", "Bound"), &claim("2Gi", "Bound")).is_empty());
        assert_eq!(
            check(&claim("1Gi", "Bound"), &claim("2Gi", "Bound")),
            [
                "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"
            ]
        );
        assert_eq!(
            check(&claim("3Gi", "Pending"), &claim("2Gi", "Pending")).len(),
            1
        );
    }
}
