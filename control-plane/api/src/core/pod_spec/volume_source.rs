//! The sources of volumes, one function each where it has rules. PersistentVolumes share most of them.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::Context;
use super::env::{VOLUME_FIELDS, field_ref, resource_field_ref};
use super::projected::projected;
use crate::core::persistent_volume_claim;
use crate::storage::csi::driver_name;
use crate::tree::Tree;
use crate::validate::labels::labels;
use crate::validate::quantities::is_negative;
use crate::validate::{one_of, optional_one_of, required, sentences};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// The longest `<volume name>:<portal>` of an iSCSI volume whose initiator is named.
pub const MAX_TARGET: usize = 64;
pub const LONG_TARGET: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                               iscsi.initiatorName is specified.";

/// Fields that must be set, for sources that need no more than that.
const REQUIRED: &[(&str, &[&str])] = &[
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cinder", &["volumeID"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("gitRepo", &["repository"]),
    ("glusterfs", &["endpoints", "path"]),
    ("local", &["path"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("storageos", &["volumeName"]),
    ("vsphereVolume", &["volumePath"]),
];

/// One source under its field name; `path` is its own.
pub fn validate(
    kind: &str,
    source: &Value,
    context: &Context<'_>,
    path: &Path,
    errors: &mut Errors,
) {
    if let Some((_, fields)) = REQUIRED.iter().find(|(name, _)| *name == kind) {
        for field in *fields {
            required(source, field, path, errors);
        }
    }
    match kind {
        "emptyDir" if is_negative(source.at("sizeLimit")) => errors.forbidden(
            &path.child("sizeLimit"),
            "SizeLimit field must be a valid resource quantity",
        ),
        "hostPath" => host_path(source, path, errors),
        "gitRepo" => descending_path(source.text("directory"), &path.child("directory"), errors),
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
            downward_items(source, path, errors);
        }
        "projected" => projected(source, context, path, errors),
        "nfs" => {
            required(source, "server", path, errors);
            required(source, "path", path, errors);
            let directory = source.text("path");
            if !directory.starts_with('/') {
                errors.invalid(&path.child("path"), directory, "must be an absolute path");
            }
        }
        "iscsi" => iscsi(
            source,
            "must be valid format starting with iqn, eui, or naa",
            path,
            errors,
        ),
        "fc" => fibre_channel(source, path, errors),
        "awsElasticBlockStore" | "gcePersistentDisk" => {
            let partition = source.int("partition").unwrap_or_default();
            if !(0..=255).contains(&partition) {
                let detail = names::inclusive_range(1, 255);
                errors.invalid(&path.child("partition"), partition, detail);
            }
        }
        "quobyte" => quobyte(source, path, errors),
        "flocker" => flocker(source, path, errors),
        "cephfs" | "rbd" => {
            if source.list("monitors").is_empty() {
                errors.required(&path.child("monitors"), "");
            }
            if kind == "rbd" {
                required(source, "image", path, errors);
            }
        }
        "cinder" => secret(source, &["name"], path, errors),
        "flexVolume" => reserved_options(source, path, errors),
        "azureDisk" => azure_disk(source, path, errors),
        "storageos" => {
            storageos_names(source, path, errors);
            secret(source, &["name"], path, errors);
        }
        "ephemeral" => ephemeral(source, path, errors),
        "image" => {
            if context.is_pod() {
                required(source, "reference", path, errors);
            }
            let policies = &["Always", "IfNotPresent", "Never"];
            one_of(source, "pullPolicy", policies, path, errors);
        }
        "csi" => {
            driver_name(source.text("driver"), &path.child("driver"), errors);
            if source.has("nodePublishSecretRef") {
                let name = source.text("nodePublishSecretRef.name");
                if name.is_empty() {
                    let path = path.child("nodePublishSecretRef").child("name");
                    errors.required(&path, "");
                } else {
                    let problems = names::is_dns1123_subdomain(name);
                    sentences(problems, &path.child("name"), name, errors);
                }
            }
        }
        _ => {}
    }
}

/// A reference to a Secret that, if it is there, must have these fields.
pub fn secret(source: &Value, fields: &[&str], path: &Path, errors: &mut Errors) {
    if source.has("secretRef") {
        for field in fields {
            required(
                source.at("secretRef"),
                field,
                &path.child("secretRef"),
                errors,
            );
        }
    }
}

/// `wrong` is what upstream says of a name without one of the three beginnings.
pub fn iscsi(source: &Value, wrong: &str, path: &Path, errors: &mut Errors) {
    required(source, "targetPortal", path, errors);
    if let Some(iqn) = required(source, "iqn", path, errors) {
        initiator(iqn, wrong, &path.child("iqn"), errors);
    }
    let lun = source.int("lun").unwrap_or_default();
    if !(0..=255).contains(&lun) {
        errors.invalid(&path.child("lun"), lun, names::inclusive_range(0, 255));
    }
    let with_chap = source.flag("chapAuthDiscovery") || source.flag("chapAuthSession");
    if with_chap && !source.has("secretRef") {
        errors.required(&path.child("secretRef"), "");
    }
    if let Some(name) = source.at("initiatorName").as_str() {
        initiator(name, wrong, &path.child("initiatorname"), errors);
    }
}

fn initiator(name: &str, wrong: &str, path: &Path, errors: &mut Errors) {
    let word = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    // What upstream's pattern has as a dot stands for any character.
    let rest = name.char_indices().nth(4).map_or("", |(at, _)| &name[at..]);
    let valid = match name.get(..3) {
        Some("iqn") => is_iqn(name),
        Some("eui") => word(rest, 16),
        Some("naa") => word(rest, 32),
        _ => return errors.invalid(path, name, wrong),
    };
    if !valid {
        errors.invalid(path, name, "must be valid format");
    }
}

/// `iqn.2001-04.com.example:storage`, of which upstream looks for the end only.
fn is_iqn(name: &str) -> bool {
    let Some((_, rest)) = name.split_once("iqn.") else {
        return false;
    };
    let Some((date, rest)) = rest.split_once('.') else {
        return false;
    };
    let bytes = date.as_bytes();
    let is_date = bytes.len() == 7
        && bytes.iter().enumerate().all(|(i, b)| match i {
            4 => *b == b'-',
            _ => b.is_ascii_digit(),
        });
    let Some((authority, target)) = rest.split_once(':') else {
        return false;
    };
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    is_date
        && !authority.is_empty()
        && authority.bytes().all(legal)
        && !target.is_empty()
        && !target.contains(|c: char| c.is_whitespace() || ",;*&$|".contains(c))
}

fn fibre_channel(source: &Value, path: &Path, errors: &mut Errors) {
    let (names, ids) = (source.list("targetWWNs"), source.list("wwids"));
    let targets = path.child("targetWWNs");
    if names.is_empty() && ids.is_empty() {
        let detail = "must specify either targetWWNs or wwids, but not both";
        errors.required(&targets, detail);
    }
    if names.is_empty() {
        return;
    }
    if !ids.is_empty() {
        let detail = "targetWWNs and wwids can not be specified simultaneously";
        errors.invalid(&targets, source.at("targetWWNs").clone(), detail);
    }
    match source.int("lun") {
        None => errors.required(
            &path.child("lun"),
            "lun is required if targetWWNs is specified",
        ),
        Some(lun) if !(0..=255).contains(&lun) => {
            errors.invalid(&path.child("lun"), lun, names::inclusive_range(0, 255));
        }
        Some(_) => {}
    }
}

fn quobyte(source: &Value, path: &Path, errors: &mut Errors) {
    let registry = source.text("registry");
    let detail = "must be a host:port pair or multiple pairs separated by commas";
    if registry.is_empty() {
        errors.required(&path.child("registry"), detail);
    } else if source.text("tenant").len() >= 65 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errors.required(&path.child("tenant"), detail);
    } else {
        let is_pair = |pair: &str| match pair.rsplit_once(':') {
            Some((host, _)) => {
                !host.contains(':') || (host.starts_with('[') && host.ends_with(']'))
            }
            None => false,
        };
        for _ in registry.split(',').filter(|pair| !is_pair(pair)) {
            errors.invalid(&path.child("registry"), registry, detail);
        }
    }
    required(source, "volume", path, errors);
}

fn flocker(source: &Value, path: &Path, errors: &mut Errors) {
    let (name, id) = (source.text("datasetName"), source.text("datasetUUID"));
    match (name.is_empty(), id.is_empty()) {
        (true, true) => errors.required(path, "one of datasetName and datasetUUID is required"),
        (false, false) => errors.invalid(
            path,
            "resource",
            "datasetName and datasetUUID can not be specified simultaneously",
        ),
        _ => {}
    }
    if name.contains('/') {
        errors.invalid(&path.child("datasetName"), name, "must not contain '/'");
    }
}

fn reserved_options(source: &Value, path: &Path, errors: &mut Errors) {
    for (key, _) in source.entries("options") {
        let domain = key.split_once('/').map_or(key, |(domain, _)| domain);
        let domain = format!(".{}", domain.to_lowercase());
        if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
            errors.invalid(
                &path.child("options").key(key),
                key,
                "kubernetes.io and k8s.io namespaces are reserved",
            );
        }
    }
}

fn azure_disk(source: &Value, path: &Path, errors: &mut Errors) {
    required(source, "diskName", path, errors);
    required(source, "diskURI", path, errors);
    let modes = &["None", "ReadOnly", "ReadWrite"];
    optional_one_of(source, "cachingMode", modes, path, errors);
    let kinds = &["Dedicated", "Managed", "Shared"];
    optional_one_of(source, "kind", kinds, path, errors);
    let (kind, uri) = (source.text("kind"), source.text("diskURI"));
    if kind == "Managed" && !uri.starts_with("/subscriptions/") {
        let form = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
        errors.not_supported(&path.child("diskURI"), uri, &[form]);
    }
    if !kind.is_empty() && kind != "Managed" && !uri.starts_with("https://") {
        let form = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
        errors.not_supported(&path.child("diskURI"), uri, &[form]);
    }
}

pub fn storageos_names(source: &Value, path: &Path, errors: &mut Errors) {
    for field in ["volumeName", "volumeNamespace"] {
        let name = source.text(field);
        if !name.is_empty() {
            sentences(
                names::is_dns1123_label(name),
                &path.child(field),
                name,
                errors,
            );
        }
    }
}

fn ephemeral(source: &Value, path: &Path, errors: &mut Errors) {
    let template = source.at("volumeClaimTemplate");
    let path = path.child("volumeClaimTemplate");
    if template.is_null() {
        return errors.required(&path, "");
    }
    template_metadata(template.at("metadata"), &path.child("metadata"), errors);
    let spec = path.child("spec");
    persistent_volume_claim::validate_spec(template.at("spec"), &spec, errors);
}

/// The metadata of what is made of a template, which gets its name and all else when it is made.
pub fn template_metadata(metadata: &Value, path: &Path, errors: &mut Errors) {
    let annotations = metadata.map("annotations");
    windlass_machinery::meta::validate_annotations(annotations, &path.child("annotations"), errors);
    labels(metadata.at("labels"), &path.child("labels"), errors);
    for (field, value) in metadata.as_object().into_iter().flatten() {
        let is_allowed = ["annotations", "labels", "creationTimestamp"].contains(&field.as_str());
        if !is_allowed && !value.is_null() {
            errors.forbidden(&path.child(field), "cannot be set");
        }
    }
}

/// A directory or file of the node.
pub fn host_path(source: &Value, path: &Path, errors: &mut Errors) {
    let Some(text) = required(source, "path", path, errors) else {
        return;
    };
    no_backsteps(text, &path.child("path"), errors);
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

/// Keys and the files that they become.
pub fn items(source: &Value, path: &Path, errors: &mut Errors) {
    for (i, item) in source.list("items").iter().enumerate() {
        let path = path.child("items").index(i);
        required(item, "key", &path, errors);
        required(item, "path", &path, errors);
        file_path(item.text("path"), &path.child("path"), errors);
        mode(item, "mode", &path, errors);
    }
}

pub fn mode(holder: &Value, field: &str, path: &Path, errors: &mut Errors) {
    if let Some(mode) = holder.int(field).filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(&path.child(field), mode, MODE);
    }
}

/// Upstream's paths of these leave the list and the index out.
pub fn downward_items(source: &Value, path: &Path, errors: &mut Errors) {
    for item in source.list("items") {
        downward_item(item, path, errors);
    }
}

fn downward_item(item: &Value, path: &Path, errors: &mut Errors) {
    required(item, "path", path, errors);
    file_path(item.text("path"), &path.child("path"), errors);
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

/// A relative path without `..`.
pub fn descending_path(text: &str, path: &Path, errors: &mut Errors) {
    if text.starts_with('/') {
        errors.invalid(path, text, "must be a relative path");
    }
    no_backsteps(text, path, errors);
}

pub fn no_backsteps(text: &str, path: &Path, errors: &mut Errors) {
    if text.split('/').any(|part| part == "..") {
        errors.invalid(path, text, "must not contain '..'");
    }
}

/// A path of a file inside a volume; names that start with `..` belong to the atomic writer.
pub fn file_path(text: &str, path: &Path, errors: &mut Errors) {
    descending_path(text, path, errors);
    if text.starts_with("..") && !text.starts_with("../") {
        errors.invalid(path, text, "must not start with '..'");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn initiators_have_one_of_three_forms() {
        for (name, fault) in [
            ("iqn.2001-04.com.example:storage.disk1", ""),
            ("eui.0123456789ABCDEF", ""),
            ("naa.0123456789abcdef0123456789abcdef", ""),
            ("iqn.2001-4.com.example:storage", "must be valid format"),
            ("iqn.2001-04.com.example", "must be valid format"),
            ("eui.0123", "must be valid format"),
            ("x", "wrong"),
        ] {
            let found = lines(|e| initiator(name, "wrong", &Path::new("iqn"), e));
            let expected: Vec<_> = Some(format!("iqn: Invalid value: {name:?}: {fault}"))
                .filter(|_| !fault.is_empty())
                .into_iter()
                .collect();
            assert_eq!(found, expected);
        }
    }
}
