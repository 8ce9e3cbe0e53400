//! A pod's volumes: names, and exactly one source each.

use std::collections::BTreeMap;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::{Context, volume_source};
use crate::tree::Tree;
use crate::validate::{named, sentences};

/// Volumes by name, for the mounts of containers; those that have faults are not among them.
pub type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

/// In the order in which upstream looks for them: each that is set after the first is one too many.
const SOURCES: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// Claims that the pod's ephemeral volumes will make are named after both.
fn made_claim(pod: &str, volume: &str) -> String {
    format!("{pod}-{volume}")
}

pub fn volumes<'a>(
    spec: &'a Value,
    context: &Context<'_>,
    path: &Path,
    errors: &mut Errors,
) -> Volumes<'a> {
    let path = path.child("volumes");
    let made: Vec<_> = spec
        .list("volumes")
        .iter()
        .filter(|volume| !context.pod_name.is_empty() && volume.has("ephemeral"))
        .map(|volume| made_claim(context.pod_name, volume.text("name")))
        .collect();
    let mut seen = Volumes::new();
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        let path = path.index(i);
        let before = errors.len();
        source(volume, context, &path, errors);
        named(volume, "name", names::is_dns1123_label, &path, errors);
        let name = volume.text("name");
        if seen.contains_key(name) {
            errors.duplicate(&path.child("name"), name);
        }
        if errors.len() == before {
            seen.insert(name, volume);
        }
        let claim = volume.text("persistentVolumeClaim.claimName");
        if made.iter().any(|made| made == claim) {
            let path = path.child("persistentVolumeClaim").child("claimName");
            let detail = "must not reference a PVC that gets created for an ephemeral volume";
            errors.invalid(&path, claim, detail);
        }
    }
    seen
}

fn source(volume: &Value, context: &Context<'_>, path: &Path, errors: &mut Errors) {
    let mut set = SOURCES
        .iter()
        .copied()
        .filter(|kind| volume.at(kind).is_object());
    let name = volume.text("name");
    match set.next() {
        None => errors.required(path, "must specify a volume type"),
        Some(kind) => {
            // Upstream's path of this one has another name than the field.
            let field = match kind {
                "gcePersistentDisk" => "persistentDisk",
                other => other,
            };
            volume_source::validate(kind, volume.at(kind), context, &path.child(field), errors);
            if kind == "ephemeral" && !context.pod_name.is_empty() && !name.is_empty() {
                let claim = made_claim(context.pod_name, name);
                let problems = names::is_dns1123_subdomain(&claim)
                    .into_iter()
                    .map(|problem| format!("PVC name {claim:?}: {problem}"));
                sentences(problems.collect(), &path.child("name"), name, errors);
            }
        }
    }
    for surplus in set {
        let field = match surplus {
            "cephfs" => "cephFS",
            "downwardAPI" => "downwarAPI",
            other => other,
        };
        errors.forbidden(
            &path.child(field),
            "may not specify more than 1 volume type",
        );
    }
    let portal = volume.text("iscsi.targetPortal");
    if volume.has("iscsi.initiatorName")
        && name.len() + 1 + portal.len() > volume_source::MAX_TARGET
    {
        errors.invalid(&path.child("name"), name, volume_source::LONG_TARGET);
    }
}
