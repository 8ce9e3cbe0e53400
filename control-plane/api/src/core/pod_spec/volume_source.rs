//! The sources of volumes, one function each where it has rules.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::env::{VOLUME_FIELDS, field_ref, resource_field_ref};
use crate::tree::Tree;
use crate::validate::quantities::non_negative;
use crate::validate::{named, optional_one_of, required};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Fields that must be set, for sources that need no more than that. PersistentVolumes share the list.
const REQUIRED: &[(&str, &[&str])] = &[
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cinder", &["volumeID"]),
    ("csi", &["driver"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("gitRepo", &["repository"]),
    ("glusterfs", &["endpoints", "path"]),
    ("image", &["reference"]),
    ("local", &["path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("rbd", &["image"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("vsphereVolume", &["volumePath"]),
];

/// One source under its field name; `path` is its own.
pub fn validate(kind: &str, source: &Value, path: &Path, errors: &mut Errors) {
    if let Some((_, fields)) = REQUIRED.iter().find(|(name, _)| *name == kind) {
        for field in *fields {
            required(source, field, path, errors);
        }
    }
    match kind {
        "emptyDir" => non_negative(source.at("sizeLimit"), &path.child("sizeLimit"), errors),
        "hostPath" => host_path(source, path, errors),
        "secret" => {
            required(source, "secretName", path, errors);
            files(source, path, errors);
        }
        "configMap" => {
            required(source, "name", path, errors);
            files(source, path, errors);
        }
        "downwardAPI" => {
            mode(source, "defaultMode", path, errors);
            for (i, item) in source.list("items").iter().enumerate() {
                downward_item(item, &path.child("items").index(i), errors);
            }
        }
        "projected" => projected(source, path, errors),
        "nfs" => {
            required(source, "server", path, errors);
            if let Some(directory) = required(source, "path", path, errors)
                && !directory.starts_with('/')
            {
                errors.invalid(&path.child("path"), directory, "must be an absolute path");
            }
        }
        "iscsi" => iscsi(source, path, errors),
        "fc" if source.list("targetWWNs").is_empty() && source.list("wwids").is_empty() => {
            let detail = "must specify either targetWWNs or wwids, but not both";
            errors.required(&path.child("targetWWNs"), detail);
        }
        "cephfs" | "rbd" if source.list("monitors").is_empty() => {
            errors.required(&path.child("monitors"), "");
        }
        "ephemeral" => {
            let template = source.at("volumeClaimTemplate");
            if template.is_null() {
                errors.required(&path.child("volumeClaimTemplate"), "");
            } else {
                crate::core::persistent_volume_claim::validate_spec(
                    template.at("spec"),
                    &path.child("volumeClaimTemplate").child("spec"),
                    errors,
                );
            }
        }
        "image" => optional_one_of(
            source,
            "pullPolicy",
            &["Always", "IfNotPresent", "Never"],
            path,
            errors,
        ),
        "csi" => {
            named(source, "driver", names::is_dns1123_subdomain, path, errors);
        }
        _ => {}
    }
}

fn iscsi(source: &Value, path: &Path, errors: &mut Errors) {
    required(source, "targetPortal", path, errors);
    if let Some(iqn) = required(source, "iqn", path, errors)
        && !["iqn.", "eui.", "naa."]
            .iter()
            .any(|prefix| iqn.starts_with(prefix))
    {
        errors.invalid(
            &path.child("iqn"),
            iqn,
            "must be valid format starting with iqn, eui, or naa",
        );
    }
    let lun = source.int("lun").unwrap_or_default();
    if !(0..=255).contains(&lun) {
        errors.invalid(
            &path.child("lun"),
            lun,
            "must be between 0 and 255, inclusive",
        );
    }
}

/// A directory or file of the node.
pub fn host_path(source: &Value, path: &Path, errors: &mut Errors) {
    if let Some(text) = required(source, "path", path, errors) {
        no_backsteps(text, &path.child("path"), errors);
    }
    let kinds = [
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    optional_one_of(source, "type", &kinds, path, errors);
}

fn files(source: &Value, path: &Path, errors: &mut Errors) {
    mode(source, "defaultMode", path, errors);
    items(source, path, errors);
}

fn items(source: &Value, path: &Path, errors: &mut Errors) {
    for (i, item) in source.list("items").iter().enumerate() {
        let path = path.child("items").index(i);
        required(item, "key", &path, errors);
        if let Some(file) = required(item, "path", &path, errors) {
            file_path(file, &path.child("path"), errors);
        }
        mode(item, "mode", &path, errors);
    }
}

fn mode(holder: &Value, field: &str, path: &Path, errors: &mut Errors) {
    if let Some(mode) = holder.int(field).filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(&path.child(field), mode, MODE);
    }
}

fn downward_item(item: &Value, path: &Path, errors: &mut Errors) {
    if let Some(file) = required(item, "path", path, errors) {
        file_path(file, &path.child("path"), errors);
    }
    match (item.has("fieldRef"), item.has("resourceFieldRef")) {
        (true, both) => {
            field_ref(
                item.at("fieldRef"),
                VOLUME_FIELDS,
                &path.child("fieldRef"),
                errors,
            );
            if both {
                errors.invalid(
                    path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
        }
        (false, true) => {
            let path = path.child("resourceFieldRef");
            resource_field_ref(item.at("resourceFieldRef"), true, &path, errors);
        }
        (false, false) => {
            errors.required(path, "one of fieldRef and resourceFieldRef is required");
        }
    }
    mode(item, "mode", path, errors);
}

const PROJECTIONS: &[&str] = &[
    "secret",
    "configMap",
    "downwardAPI",
    "serviceAccountToken",
    "clusterTrustBundle",
    "podCertificate",
];

fn projected(source: &Value, path: &Path, errors: &mut Errors) {
    mode(source, "defaultMode", path, errors);
    let mut paths = HashSet::new();
    for (i, projection) in source.list("sources").iter().enumerate() {
        let path = path.child("sources").index(i);
        let set: Vec<_> = PROJECTIONS
            .iter()
            .copied()
            .filter(|name| projection.has(name))
            .collect();
        if set.is_empty() {
            errors.required(&path, "must specify a volume type");
        }
        for surplus in set.iter().skip(1) {
            errors.forbidden(
                &path.child(surplus),
                "may not specify more than 1 volume type per source",
            );
        }
        for name in set {
            let inner = projection.at(name);
            let path = path.child(name);
            projection_source(name, inner, &path, errors);
            for file in projected_paths(name, inner) {
                if !paths.insert(file.to_owned()) {
                    errors.invalid(
                        &path,
                        name,
                        format!("conflicting duplicate paths within a volume: {file}"),
                    );
                }
            }
        }
    }
}

fn projection_source(name: &str, source: &Value, path: &Path, errors: &mut Errors) {
    match name {
        "secret" | "configMap" => {
            required(source, "name", path, errors);
            items(source, path, errors);
        }
        "downwardAPI" => {
            for (i, item) in source.list("items").iter().enumerate() {
                downward_item(item, &path.child("items").index(i), errors);
            }
        }
        "serviceAccountToken" => token(source, path, errors),
        "clusterTrustBundle" => {
            required(source, "path", path, errors);
            if source.has("name") == source.has("signerName") {
                errors.required(path, "either name or signerName must be specified");
            }
        }
        _ => {
            required(source, "signerName", path, errors);
            required(source, "keyType", path, errors);
        }
    }
}

fn token(source: &Value, path: &Path, errors: &mut Errors) {
    let seconds = source.int("expirationSeconds").unwrap_or_default();
    if seconds < 600 {
        errors.invalid(
            &path.child("expirationSeconds"),
            seconds,
            "may not specify a duration less than 10 minutes",
        );
    }
    if seconds > 1 << 32 {
        errors.invalid(
            &path.child("expirationSeconds"),
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        );
    }
    if let Some(file) = required(source, "path", path, errors) {
        file_path(file, &path.child("path"), errors);
    }
}

fn projected_paths<'a>(name: &str, source: &'a Value) -> Vec<&'a str> {
    match name {
        "serviceAccountToken" | "clusterTrustBundle" => vec![source.text("path")],
        _ => source
            .list("items")
            .iter()
            .map(|item| item.text("path"))
            .collect(),
    }
    .into_iter()
    .filter(|path| !path.is_empty())
    .collect()
}

/// A relative path without `..`.
pub fn descending_path(text: &str, path: &Path, errors: &mut Errors) {
    if text.starts_with('/') {
        errors.invalid(path, text, "must be a relative path");
    }
    no_backsteps(text, path, errors);
}

fn no_backsteps(text: &str, path: &Path, errors: &mut Errors) {
    if text.split('/').any(|part| part == "..") {
        errors.invalid(path, text, "must not contain '..'");
    }
}

/// A path of a file inside a volume; names that start with `..` belong to the atomic writer.
fn file_path(text: &str, path: &Path, errors: &mut Errors) {
    descending_path(text, path, errors);
    if text.starts_with("..") && !text.starts_with("../") {
        errors.invalid(path, text, "must not start with '..'");
    }
}
