//! PersistentVolumes.

use jiff::Timestamp;
use serde_json::{Value, json};
use windlass_machinery::time;
use windlass_machinery::validation::{Errors, Path};

use super::pod_spec::warnings;
use super::volume_spec;
use crate::resource::Strategy;
use crate::table::{age, cells, or};
use crate::tree::{self, Tree};
use crate::validate::quantities::show;
use crate::validate::same;

pub struct PersistentVolume;

const MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

/// The annotation that was the storage class before there was a field.
pub const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

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

/// Warns of annotations that became fields: key, since when, field.
pub fn old_annotations(object: &Value, old: &[(&str, &str, &str)], found: &mut Vec<String>) {
    for (key, since, field) in old {
        if object.at("metadata.annotations").get(*key).is_some() {
            found.push(format!(
                "metadata.annotations[{key}]: deprecated since {since}; use {field:?} attribute instead"
            ));
        }
    }
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
    let alone = "ReadWriteOncePod";
    let is_other = |mode: &Value| mode != alone && MODES.iter().any(|known| mode == known);
    if modes.iter().any(|mode| mode == alone) && modes.iter().any(is_other) {
        errors.forbidden(
            &path,
            "may not use ReadWriteOncePod with other access modes",
        );
    }
}

/// Node affinity in which old names of labels are the new ones.
fn renamed(affinity: &Value) -> Value {
    let mut affinity = affinity.clone();
    for term in tree::each(&mut affinity, "required.nodeSelectorTerms") {
        for expression in tree::each(term, "matchExpressions") {
            let name = match expression.text("key") {
                "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
                "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
                "beta.kubernetes.io/os" => "kubernetes.io/os",
                "beta.kubernetes.io/arch" => "kubernetes.io/arch",
                "beta.kubernetes.io/instance-type" => "node.kubernetes.io/instance-type",
                _ => continue,
            };
            tree::set(expression, "key", name);
        }
    }
    affinity
}

/// The field that says since when a volume is in its phase.
const SINCE: &str = "lastPhaseTransitionTime";

fn note_phase(object: &mut Value) {
    let now = time::format(Timestamp::now().as_second());
    tree::set(object, &format!("status.{SINCE}"), now);
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
        tree::set(object, "status", json!({"phase": "Pending"}));
        note_phase(object);
    }

    /// Who writes another phase need not say since when it is.
    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        let (is, was) = (new.at("status"), old.at("status"));
        let noted = is.text(SINCE);
        if is.text("phase") != was.text("phase") && (noted.is_empty() || noted == was.text(SINCE)) {
            note_phase(new);
        }
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let name = object.text("metadata.name");
        volume_spec::validate(object.at("spec"), name, &Path::new("spec"), errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let pick = |object: &Value| {
            let sources = volume_spec::sources(object.at("spec"));
            let fields = sources.map(|(name, value)| (name.to_owned(), value.clone()));
            Value::Object(fields.collect())
        };
        // A CSI driver's secret for expansion may be added later; all else about the source is fixed.
        let (mut new_source, old_source) = (pick(new), pick(old));
        if !old_source.has("csi.controllerExpandSecretRef") {
            tree::remove(&mut new_source, "csi.controllerExpandSecretRef");
        }
        let (new, old) = (new.at("spec"), old.at("spec"));
        if !same(&new_source, &old_source) {
            let path = Path::new("spec").child("persistentvolumesource");
            let detail = "spec.persistentvolumesource is immutable after creation";
            errors.forbidden(&path, detail);
        }
        // Upstream's paths of these two leave `spec` out.
        if !same(new.at("volumeMode"), old.at("volumeMode")) {
            let value = new.at("volumeMode").clone();
            errors.invalid(&Path::new("volumeMode"), value, "field is immutable");
        }
        let affinity = old.at("nodeAffinity");
        if !affinity.is_null() && !same(&renamed(new.at("nodeAffinity")), &renamed(affinity)) {
            let value = new.at("nodeAffinity").clone();
            let detail = "field is immutable, except for updating from beta label to GA";
            errors.invalid(&Path::new("nodeAffinity"), value, detail);
        }
        if old.has("volumeAttributesClassName") && !new.has("volumeAttributesClassName") {
            let path = Path::new("spec").child("volumeAttributesClassName");
            errors.forbidden(&path, "update from non-nil value to nil is forbidden");
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        old_annotations(
            new,
            &[
                (CLASS_ANNOTATION, "v1.8", "storageClassName"),
                (
                    "volume.beta.kubernetes.io/mount-options",
                    "v1.31",
                    "mountOptions",
                ),
            ],
            &mut found,
        );
        if new.text("spec.persistentVolumeReclaimPolicy") == "Recycle" {
            found.push(
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the \
                 recommended approach is to use dynamic provisioning."
                    .to_owned(),
            );
        }
        let path = Path::new("spec");
        let terms = path
            .child("nodeAffinity")
            .child("required")
            .child("nodeSelectorTerms");
        let list = new.list("spec.nodeAffinity.required.nodeSelectorTerms");
        for (i, term) in list.iter().enumerate() {
            warnings::node_term(term, &terms.index(i), &mut found);
        }
        for (source, text) in warnings::OLD_VOLUMES {
            if new.at("spec").has(source) {
                found.push(format!("{}: {text}", path.child(source)));
            }
        }
        warnings::fractional(
            new.at("spec.capacity"),
            "storage",
            &path.child("capacity"),
            &mut found,
        );
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
    use super::*;
    use crate::validate::lines;

    #[test]
    fn a_volume_tells_since_when_it_is_in_its_phase() {
        let mut volume = json!({"spec": {}});
        PersistentVolume.prepare_for_create(&mut volume);
        assert!(volume["status"][SINCE].is_string());
        let old = json!({"status": {"phase": "Pending", SINCE: "2026-01-01T00:00:00Z"}});
        let written = |status: Value| {
            let mut new = json!({ "status": status });
            PersistentVolume.prepare_for_status_update(&mut new, &old);
            new["status"][SINCE].as_str().unwrap_or_default().to_owned()
        };
        let was = "2026-01-01T00:00:00Z";
        assert_eq!(written(json!({"phase": "Pending", SINCE: was})), was);
        for now in [
            json!({"phase": "Bound"}),
            json!({"phase": "Bound", SINCE: was}),
        ] {
            assert!(*written(now) > *was);
        }
        let said = "2025-01-01T00:00:00Z";
        assert_eq!(written(json!({"phase": "Bound", SINCE: said})), said);
    }

    #[test]
    fn a_volume_has_capacity_modes_and_one_source() {
        assert_eq!(
            lines(|e| PersistentVolume.validate(&json!({"spec": {}}), None, e)),
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
        assert!(lines(|e| PersistentVolume.validate(&good, None, e)).is_empty());
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
