//! PersistentVolumes.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::pod_spec::{node_selector, volume_source};
use crate::resource::Strategy;
use crate::table::{age, cells, or};
use crate::tree::{self, Tree};
use crate::validate::quantities::{is_positive, show};
use crate::validate::{optional_name, optional_one_of, same};

pub struct PersistentVolume;

const MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

/// The annotation that was the storage class before there was a field.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// Fields of the spec that are not one of the volume's possible sources.
const NOT_A_SOURCE: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// `RWO,ROX,RWX,RWOP`: access modes as kubectl shows them, each once and in this order.
pub fn short_modes(modes: &[Value]) -> String {
    [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .iter()
    .filter(|(mode, _)| modes.iter().any(|m| m == mode))
    .map(|(_, short)| *short)
    .collect::<Vec<_>>()
    .join(",")
}

/// The storage class of a volume or claim.
pub fn class(object: &Value) -> &str {
    let annotation = object
        .at("metadata.annotations")
        .get(CLASS_ANNOTATION)
        .and_then(Value::as_str);
    annotation.unwrap_or_else(|| object.text("spec.storageClassName"))
}

pub fn access_modes(spec: &Value, missing: &str, path: &Path, errors: &mut Errors) {
    let path = path.child("accessModes");
    let modes = spec.list("accessModes");
    if modes.is_empty() {
        errors.required(&path, missing);
    }
    for mode in modes.iter().filter_map(Value::as_str) {
        if !MODES.contains(&mode) {
            errors.not_supported(&path, mode, MODES);
        }
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.forbidden(
            &path,
            "may not use ReadWriteOncePod with other access modes",
        );
    }
}

fn sources(spec: &Value) -> Vec<(&str, &Value)> {
    spec.as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| !NOT_A_SOURCE.contains(&name.as_str()) && !value.is_null())
        .map(|(name, value)| (name.as_str(), value))
        .collect()
}

impl Strategy for PersistentVolume {
    fn default(&self, object: &mut Value) {
        tree::fill(object, "spec.persistentVolumeReclaimPolicy", "Retain");
        tree::fill(object, "spec.volumeMode", "Filesystem");
        tree::fill(object, "status.phase", "Pending");
        if let Some(host_path) = tree::at_mut(object, "spec.hostPath").filter(|v| v.is_object())
            && !host_path.has("type")
        {
            tree::set(host_path, "type", "");
        }
        tree::fill_in(object, "spec.iscsi.iscsiInterface", "default");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", serde_json::json!({"phase": "Pending"}));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        access_modes(spec, "", &path, errors);
        let capacity = path.child("capacity");
        let amounts = spec.map("capacity").cloned().unwrap_or_default();
        if amounts.is_empty() {
            errors.required(&capacity, "");
        }
        if !amounts.contains_key("storage") || amounts.len() > 1 {
            errors.not_supported(&capacity, amounts.clone(), &["storage"]);
        }
        for (name, amount) in &amounts {
            if !is_positive(amount) {
                errors.invalid(
                    &capacity.key(name),
                    show(amount),
                    "must be greater than zero",
                );
            }
        }
        optional_one_of(
            spec,
            "persistentVolumeReclaimPolicy",
            &["Delete", "Recycle", "Retain"],
            &path,
            errors,
        );
        let node_affinity = path.child("nodeAffinity");
        if spec.has("nodeAffinity") {
            if spec.has("nodeAffinity.required") {
                let required = spec.at("nodeAffinity.required");
                node_selector(required, &node_affinity.child("required"), errors);
            } else {
                errors.required(
                    &node_affinity.child("required"),
                    "must specify required node constraints",
                );
            }
        } else if spec.has("local") {
            errors.required(&node_affinity, "Local volume requires node affinity");
        }
        let sources = sources(spec);
        match sources.first() {
            None => errors.required(&path, "must specify a volume type"),
            Some((name, source)) => {
                volume_source::validate(name, source, &path.child(name), errors);
            }
        }
        for (name, _) in sources.iter().skip(1) {
            errors.forbidden(&path.child(name), "may not specify more than 1 volume type");
        }
        if spec.text("persistentVolumeReclaimPolicy") == "Recycle"
            && spec.has("hostPath")
            && spec.text("hostPath.path").trim_matches('/').is_empty()
        {
            let detail = "may not be 'recycle' for a hostPath mount of '/'";
            errors.forbidden(&path.child("persistentVolumeReclaimPolicy"), detail);
        }
        if spec.has("csi") && spec.text("csi.volumeHandle").is_empty() {
            errors.required(&path.child("csi").child("volumeHandle"), "");
        }
        optional_name(
            spec,
            "storageClassName",
            names::is_dns1123_subdomain,
            &path,
            errors,
        );
        optional_one_of(spec, "volumeMode", &["Block", "Filesystem"], &path, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let pick = |object: &Value| {
            sources(object.at("spec"))
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.clone()))
                .collect::<serde_json::Map<_, _>>()
        };
        // A CSI driver's secret for expansion may be added later; all else about the source is fixed.
        let (mut new_source, old_source) = (Value::Object(pick(new)), Value::Object(pick(old)));
        tree::keep(
            &mut new_source,
            &old_source,
            "csi.controllerExpandSecretRef",
        );
        if !same(&new_source, &old_source) {
            let path = Path::new("spec").child("persistentvolumesource");
            errors.forbidden(
                &path,
                "spec.persistentvolumesource is immutable after creation",
            );
        }
        // Upstream's paths of these two leave `spec` out.
        for field in ["volumeMode", "nodeAffinity"] {
            let (now, before) = (new.at("spec").at(field), old.at("spec").at(field));
            if !before.is_null() && !same(now, before) {
                errors.invalid(&Path::new(field), now.clone(), "field is immutable");
            }
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        if new.text("spec.persistentVolumeReclaimPolicy") == "Recycle" {
            found.push(
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the \
                 recommended approach is to use dynamic provisioning."
                    .to_owned(),
            );
        }
        if new
            .at("metadata.annotations")
            .get(CLASS_ANNOTATION)
            .is_some()
        {
            found.push(format!(
                "metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use \"storageClassName\" \
                 attribute instead"
            ));
        }
        found
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        let phase = if object.has("metadata.deletionTimestamp") {
            "Terminating"
        } else {
            object.text("status.phase")
        };
        let claim = if spec.has("claimRef") {
            format!(
                "{}/{}",
                spec.text("claimRef.namespace"),
                spec.text("claimRef.name")
            )
        } else {
            String::new()
        };
        cells![
            spec.at("capacity")
                .get("storage")
                .map_or_else(|| "0".to_owned(), show),
            short_modes(spec.list("accessModes")),
            spec.text("persistentVolumeReclaimPolicy"),
            phase,
            claim,
            class(object),
            or(spec.text("volumeAttributesClassName"), "<unset>"),
            object.text("status.reason"),
            age(object, now),
            or(spec.text("volumeMode"), "<unset>"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn a_volume_has_capacity_modes_and_one_source() {
        assert_eq!(
            lines(|e| PersistentVolume.validate(&json!({"spec": {}}), e)),
            [
                "spec.accessModes: Required value",
                "spec.capacity: Required value",
                "spec.capacity: Unsupported value: {}: supported values: \"storage\"",
                "spec: Required value: must specify a volume type",
            ]
        );
        let good = json!({"spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": "/data"},
        }});
        assert!(lines(|e| PersistentVolume.validate(&good, e)).is_empty());
        let mut moved = good.clone();
        moved["spec"]["hostPath"]["path"] = "/other".into();
        assert_eq!(
            lines(|e| PersistentVolume.validate_update(&moved, &good, e)),
            [
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after \
                 creation"
            ]
        );
    }
}
