//! StatefulSets.

use std::borrow::Cow;

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use super::deployment::validate_status;
use crate::core::{persistent_volume_claim, template};
use crate::resource::Strategy;
use crate::table::{age, cells, containers};
use crate::tree::{self, Tree, each};
use crate::validate::numbers::{
    at_most_100_percent, count_or_percent, is_zero, non_negative, not_decremented,
};
use crate::validate::same;

pub struct StatefulSet;

/// What may change about a StatefulSet.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

impl Strategy for StatefulSet {
    fn default(&self, object: &mut Value) {
        template::default(object, "spec.template");
        tree::fill(object, "spec.podManagementPolicy", "OrderedReady");
        tree::fill(object, "spec.updateStrategy.type", "RollingUpdate");
        if object.text("spec.updateStrategy.type") == "RollingUpdate" {
            tree::fill(object, "spec.updateStrategy.rollingUpdate.partition", 0);
            tree::fill(
                object,
                "spec.updateStrategy.rollingUpdate.maxUnavailable",
                1,
            );
        }
        tree::fill(
            object,
            "spec.persistentVolumeClaimRetentionPolicy.whenDeleted",
            "Retain",
        );
        tree::fill(
            object,
            "spec.persistentVolumeClaimRetentionPolicy.whenScaled",
            "Retain",
        );
        tree::fill(object, "spec.replicas", 1);
        tree::fill(object, "spec.revisionHistoryLimit", 10);
        for claim in each(object, "spec.volumeClaimTemplates") {
            tree::fill(claim, "apiVersion", "v1");
            tree::fill(claim, "kind", "PersistentVolumeClaim");
            persistent_volume_claim::default_spec(claim);
            tree::fill(claim, "status.phase", "Pending");
        }
        tree::fill(object, "status.replicas", 0);
        tree::fill(object, "status.availableReplicas", 0);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(
            object,
            "status",
            json!({"replicas": 0, "availableReplicas": 0}),
        );
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let policy = spec.text("podManagementPolicy");
        if !["OrderedReady", "Parallel"].contains(&policy) {
            let path = path.child("podManagementPolicy");
            errors.invalid(&path, policy, "must be 'OrderedReady' or 'Parallel'");
        }
        update_strategy(
            spec.at("updateStrategy"),
            &path.child("updateStrategy"),
            errors,
        );
        let retention = spec.at("persistentVolumeClaimRetentionPolicy");
        let retention_path = path.child("persistentVolumeClaimRetentionPolicy");
        for field in ["whenDeleted", "whenScaled"] {
            let policy = retention.text(field);
            if !["Retain", "Delete"].contains(&policy) {
                errors.not_supported(&retention_path.child(field), policy, &["Retain", "Delete"]);
            }
        }
        non_negative(spec, "replicas", &path, errors);
        non_negative(spec, "minReadySeconds", &path, errors);
        non_negative(
            spec.at("ordinals"),
            "start",
            &path.child("ordinals"),
            errors,
        );
        // The claims that will be made are volumes of its pods, and hide those of the same name.
        let (object, old) = (with_claims(object), old.map(with_claims));
        template::validate_running(&object, old.as_deref(), "StatefulSet", errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let (mut new_spec, mut old_spec) = (new.at("spec").clone(), old.at("spec").clone());
        for spec in [&mut new_spec, &mut old_spec] {
            for field in MUTABLE {
                tree::remove(spec, field);
            }
        }
        if !same(&new_spec, &old_spec) {
            let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', \
                          'template', 'updateStrategy', 'revisionHistoryLimit', \
                          'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
            errors.forbidden(&Path::new("spec"), detail);
        }
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        validate_status(new, "status.readyReplicas", errors);
        let path = Path::new("status");
        let (status, old_status) = (new.at("status"), old.at("status"));
        not_decremented(status, old_status, "collisionCount", &path, errors);
        let total = new.int("status.replicas").unwrap_or_default();
        non_negative(new.at("status"), "currentReplicas", &path, errors);
        let current = new
            .int("status.currentReplicas")
            .filter(|count| *count > total);
        if let Some(count) = current {
            let detail = "cannot be greater than status.replicas";
            errors.invalid(&path.child("currentReplicas"), count, detail);
        }
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
            age(object, now),
            names,
            images,
        ]
    }
}

fn with_claims(object: &Value) -> Cow<'_, Value> {
    let claims = object.list("spec.volumeClaimTemplates");
    if claims.is_empty() {
        return Cow::Borrowed(object);
    }
    let is_hidden = |volume: &Value| {
        let mut claims = claims.iter();
        claims.any(|claim| claim.text("metadata.name") == volume.text("name"))
    };
    let mut volumes = object.list("spec.template.spec.volumes").to_vec();
    volumes.retain(|volume| !is_hidden(volume));
    volumes.extend(claims.iter().map(|claim| {
        let name = claim.text("metadata.name");
        json!({"name": name, "persistentVolumeClaim": {"claimName": name}})
    }));
    let mut object = object.clone();
    tree::set(&mut object, "spec.template.spec.volumes", volumes);
    Cow::Owned(object)
}

fn update_strategy(strategy: &Value, path: &Path, errors: &mut Errors) {
    let rolling = strategy.at("rollingUpdate");
    let rolling_path = path.child("rollingUpdate");
    match strategy.text("type") {
        "" => errors.required(path, ""),
        "OnDelete" => {
            if !rolling.is_null() {
                let detail = "only allowed for updateStrategy 'RollingUpdate'";
                errors.invalid(&rolling_path, rolling.clone(), detail);
            }
        }
        "RollingUpdate" => {
            non_negative(rolling, "partition", &rolling_path, errors);
            let unavailable = rolling.at("maxUnavailable");
            if !unavailable.is_null() {
                let path = rolling_path.child("maxUnavailable");
                count_or_percent(unavailable, &path, errors);
                if is_zero(unavailable) {
                    errors.invalid(&path, unavailable.clone(), "cannot be 0");
                }
                at_most_100_percent(unavailable, &path, errors);
            }
        }
        _ => {
            let detail = "must be 'RollingUpdate' or 'OnDelete'";
            errors.invalid(path, strategy.clone(), detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn the_identity_of_its_pods_is_fixed() {
        let old = json!({"spec": {"serviceName": "a", "replicas": 1, "template": {}}});
        let mut new = old.clone();
        new["spec"]["replicas"] = 5.into();
        new["spec"]["minReadySeconds"] = 5.into();
        assert!(lines(|e| StatefulSet.validate_update(&new, &old, e)).is_empty());
        new["spec"]["serviceName"] = "b".into();
        assert!(
            lines(|e| StatefulSet.validate_update(&new, &old, e))[0]
                .starts_with("spec: Forbidden: updates to statefulset spec for fields other than")
        );
    }

    #[test]
    fn claim_templates_are_claims() {
        let mut object =
            json!({"spec": {"volumeClaimTemplates": [{"metadata": {"name": "data"}}]}});
        StatefulSet.default(&mut object);
        assert_eq!(
            object["spec"]["volumeClaimTemplates"][0],
            json!({
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "data"},
                "spec": {"volumeMode": "Filesystem", "resources": {}},
                "status": {"phase": "Pending"},
            })
        );
    }

    #[test]
    fn a_status_does_not_count_more_than_there_is() {
        let object = json!({"status": {"replicas": 1, "currentReplicas": 2, "readyReplicas": 1}});
        assert_eq!(
            lines(|e| StatefulSet.validate_status_update(&object, &object, e)),
            ["status.currentReplicas: Invalid value: 2: cannot be greater than status.replicas"]
        );
    }
}
