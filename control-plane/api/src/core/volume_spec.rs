//! What a PersistentVolume is, and a volume that an attachment describes for itself.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::persistent_volume::access_modes;
use super::pod_spec::volume_source::{self, LONG_TARGET, MAX_TARGET, secret};
use super::pod_spec::{Context, node_selector};
use crate::storage::csi::driver_name;
use crate::tree::Tree;
use crate::validate::quantities::{is_negative, is_positive, parse, show};
use crate::validate::{named, optional_name, optional_one_of, required, sentences};

/// In the order in which upstream looks for them.
const SOURCES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

pub fn sources(spec: &Value) -> impl Iterator<Item = (&'static str, &Value)> {
    let set = SOURCES.iter().filter(|kind| spec.at(kind).is_object());
    set.map(|kind| (*kind, spec.at(kind)))
}

/// `name` is the volume's.
pub fn validate(spec: &Value, name: &str, path: &Path, errors: &mut Errors) {
    access_modes(spec, "", path, errors);
    capacity(spec, &path.child("capacity"), errors);
    let policies = &["Delete", "Recycle", "Retain"];
    optional_one_of(
        spec,
        "persistentVolumeReclaimPolicy",
        policies,
        path,
        errors,
    );
    if spec.has("nodeAffinity") {
        let path = path.child("nodeAffinity").child("required");
        match spec.at("nodeAffinity.required") {
            Value::Null => errors.required(&path, "must specify required node constraints"),
            required => node_selector(required, &path, errors),
        }
    }
    one_source(spec, name, path, errors);
    let subdomain = names::is_dns1123_subdomain;
    optional_name(spec, "storageClassName", subdomain, path, errors);
    optional_one_of(spec, "volumeMode", &["Block", "Filesystem"], path, errors);
    attributes_class(spec, path, errors);
}

/// The same for a volume that stands in a VolumeAttachment: a CSI volume, and nothing that is about claims.
pub fn validate_inline(spec: &Value, path: &Path, errors: &mut Errors) {
    const DETAIL: &str = "may not be specified in the context of inline volumes";
    let forbid = |field: &str, errors: &mut Errors| match spec.at(field) {
        Value::Null => {}
        Value::String(text) if text.is_empty() => {}
        Value::Object(fields) if field == "capacity" && fields.is_empty() => {}
        _ => errors.forbidden(&path.child(field), DETAIL),
    };
    forbid("claimRef", errors);
    forbid("capacity", errors);
    if !spec.has("csi") {
        let detail = "has to be specified in the context of inline volumes";
        errors.required(&path.child("csi"), detail);
    }
    access_modes(spec, "", path, errors);
    if !["", "Retain"].contains(&spec.text("persistentVolumeReclaimPolicy")) {
        let path = path.child("persistentVolumeReclaimPolicy");
        errors.forbidden(&path, "may only be Retain in the context of inline volumes");
    }
    forbid("nodeAffinity", errors);
    one_source(spec, "", path, errors);
    forbid("storageClassName", errors);
    if !["", "Filesystem"].contains(&spec.text("volumeMode")) {
        let detail =
            "may not specify volumeMode other than Filesystem in the context of inline volumes";
        errors.forbidden(&path.child("volumeMode"), detail);
    }
    attributes_class(spec, path, errors);
}

fn capacity(spec: &Value, path: &Path, errors: &mut Errors) {
    let amounts = spec.map("capacity").cloned().unwrap_or_default();
    if amounts.is_empty() {
        errors.required(path, "");
    }
    if !amounts.contains_key("storage") || amounts.len() > 1 {
        errors.not_supported(path, amounts.clone(), &["storage"]);
    }
    for (name, amount) in &amounts {
        basic(amount, &path.key(name), errors);
        if !is_positive(amount) {
            let detail = "must be greater than zero";
            errors.invalid(&path.key(name), show(amount), detail);
        }
    }
}

/// A quantity that is no less than nothing, which upstream says in its own way of some.
pub fn basic(amount: &Value, path: &Path, errors: &mut Errors) {
    if is_negative(amount) {
        let whole = parse(amount).map(|quantity| quantity.value());
        errors.invalid(path, whole, "must be a valid resource quantity");
    }
}

fn one_source(spec: &Value, name: &str, path: &Path, errors: &mut Errors) {
    let mut count = 0;
    for (kind, source) in sources(spec) {
        // Upstream does not ask whether this one is surplus.
        if count > 0 && kind != "flexVolume" {
            let field = match kind {
                "cephfs" => "cephFS",
                other => other,
            };
            errors.forbidden(
                &path.child(field),
                "may not specify more than 1 volume type",
            );
            continue;
        }
        count += 1;
        let field = match kind {
            "gcePersistentDisk" => "persistentDisk",
            other => other,
        };
        one(kind, source, name, &path.child(field), errors);
        if kind == "local" && !spec.has("nodeAffinity") {
            let detail = "Local volume requires node affinity";
            errors.required(&path.child("nodeAffinity"), detail);
        }
    }
    if count == 0 {
        errors.required(path, "must specify a volume type");
    }
    let is_root = spec.has("hostPath")
        && spec
            .text("hostPath.path")
            .split('/')
            .all(|part| matches!(part, "" | "."));
    if is_root && spec.text("persistentVolumeReclaimPolicy") == "Recycle" {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errors.forbidden(&path.child("persistentVolumeReclaimPolicy"), detail);
    }
}

fn one(kind: &str, source: &Value, name: &str, path: &Path, errors: &mut Errors) {
    match kind {
        "iscsi" => {
            let portal = source.text("targetPortal");
            if source.has("initiatorName") && name.len() + 1 + portal.len() > MAX_TARGET {
                errors.invalid(&path.child("targetportal"), portal, LONG_TARGET);
            }
            volume_source::iscsi(source, "must be valid format", path, errors);
            secret(source, &["name"], path, errors);
        }
        "csi" => csi(source, path, errors),
        "cinder" => {
            required(source, "volumeID", path, errors);
            secret(source, &["name", "namespace"], path, errors);
        }
        "storageos" => {
            required(source, "volumeName", path, errors);
            volume_source::storageos_names(source, path, errors);
            secret(source, &["name", "namespace"], path, errors);
        }
        _ => volume_source::validate(kind, source, &Context::template(), path, errors),
    }
    match kind {
        "local" => {
            let directory = source.text("path");
            volume_source::no_backsteps(directory, &path.child("path"), errors);
        }
        "glusterfs" => {
            if let Some(namespace) = source.at("endpointsNamespace").as_str() {
                let path = path.child("endpointsNamespace");
                if namespace.is_empty() {
                    let detail =
                        "if the endpointnamespace is set, it must be a valid namespace name";
                    errors.invalid(&path, namespace, detail);
                } else {
                    sentences(names::is_dns1123_label(namespace), &path, namespace, errors);
                }
            }
        }
        "azureFile" if source.at("secretNamespace") == "" => {
            errors.required(&path.child("secretNamespace"), "");
        }
        _ => {}
    }
}

fn csi(source: &Value, path: &Path, errors: &mut Errors) {
    driver_name(source.text("driver"), &path.child("driver"), errors);
    required(source, "volumeHandle", path, errors);
    for field in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        let (reference, path) = (source.at(field), path.child(field));
        if !reference.is_null() {
            named(
                reference,
                "name",
                names::is_dns1123_subdomain,
                &path,
                errors,
            );
            named(
                reference,
                "namespace",
                names::is_dns1123_label,
                &path,
                errors,
            );
        }
    }
}

fn attributes_class(spec: &Value, path: &Path, errors: &mut Errors) {
    let Some(class) = spec.at("volumeAttributesClassName").as_str() else {
        return;
    };
    let class_path = path.child("volumeAttributesClassName");
    if class.is_empty() {
        errors.required(&class_path, "an empty string is disallowed");
    } else {
        sentences(
            names::is_dns1123_subdomain(class),
            &class_path,
            class,
            errors,
        );
    }
    if !spec.has("csi") {
        let detail = "has to be specified when using volumeAttributesClassName";
        errors.required(&path.child("csi"), detail);
    }
}
