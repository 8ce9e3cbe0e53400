//! Environment variables of containers and the fields that they and volumes may refer to.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::volume_source::descending_path;
use crate::tree::Tree;
use crate::validate::quantities::{is_hugepages, show};
use crate::validate::{named, required, sentences};

/// Pod fields for environment variables, besides single labels and annotations.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Pod fields for files in volumes.
pub const VOLUME_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

pub fn env(container: &Value, path: &Path, errors: &mut Errors) {
    for (i, variable) in container.list("env").iter().enumerate() {
        let path = path.child("env").index(i);
        if let Some(name) = required(variable, "name", &path, errors) {
            sentences(
                names::is_env_var_name(name),
                &path.child("name"),
                name,
                errors,
            );
        }
        if variable.has("valueFrom") {
            value_from(variable, &path.child("valueFrom"), errors);
        }
    }
    for (i, source) in container.list("envFrom").iter().enumerate() {
        let list = path.child("envFrom");
        env_from(source, &list, &list.index(i), errors);
    }
}

fn value_from(variable: &Value, path: &Path, errors: &mut Errors) {
    let source = variable.at("valueFrom");
    let mut sources = 0;
    if source.has("fieldRef") {
        sources += 1;
        field_ref(
            source.at("fieldRef"),
            ENV_FIELDS,
            &path.child("fieldRef"),
            errors,
        );
    }
    if source.has("resourceFieldRef") {
        sources += 1;
        resource_field_ref(
            source.at("resourceFieldRef"),
            false,
            &path.child("resourceFieldRef"),
            errors,
        );
    }
    for field in ["configMapKeyRef", "secretKeyRef"] {
        if source.has(field) {
            sources += 1;
            key_ref(source.at(field), &path.child(field), errors);
        }
    }
    if source.has("fileKeyRef") {
        sources += 1;
        file_key(source.at("fileKeyRef"), &path.child("fileKeyRef"), errors);
    }
    if sources == 0 {
        errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !variable.text("value").is_empty() {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        errors.invalid(
            path,
            "",
            "may not have more than one field specified at a time",
        );
    }
}

/// A variable in a file that another container of the pod writes (KEP-3721).
fn file_key(file: &Value, path: &Path, errors: &mut Errors) {
    named(file, "volumeName", names::is_dns1123_label, path, errors);
    if let Some(text) = required(file, "path", path, errors) {
        descending_path(text, &path.child("path"), errors);
    }
    named(file, "key", names::is_env_var_name, path, errors);
}

/// The volume of such a file lives and dies with the pod.
pub fn file_volumes(container: &Value, volumes: &[Value], path: &Path, errors: &mut Errors) {
    for (i, variable) in container.list("env").iter().enumerate() {
        let file = variable.at("valueFrom.fileKeyRef");
        if file.is_null() {
            continue;
        }
        let name = file.text("volumeName");
        let path = path
            .child("env")
            .index(i)
            .child("valueFrom")
            .child("fileKeyRef")
            .child("volumeName");
        match volumes.iter().find(|volume| volume.text("name") == name) {
            None => errors.not_found(&path, name),
            Some(volume) if !volume.has("emptyDir") => {
                errors.invalid(&path, name, "referenced volume must be of type emptyDir");
            }
            Some(_) => {}
        }
    }
}

fn key_ref(reference: &Value, path: &Path, errors: &mut Errors) {
    let name = reference.text("name");
    sentences(
        names::is_dns1123_subdomain(name),
        &path.child("name"),
        name,
        errors,
    );
    named(reference, "key", names::is_config_map_key, path, errors);
}

/// `list` is the path of the whole list: faults about the number of sources are upstream's without an index.
fn env_from(source: &Value, list: &Path, path: &Path, errors: &mut Errors) {
    let prefix = source.text("prefix");
    if !prefix.is_empty() {
        sentences(
            names::is_env_var_name(prefix),
            &path.child("prefix"),
            prefix,
            errors,
        );
    }
    let mut sources = 0;
    for field in ["configMapRef", "secretRef"] {
        if source.has(field) {
            sources += 1;
            named(
                source.at(field),
                "name",
                names::is_dns1123_subdomain,
                &path.child(field),
                errors,
            );
        }
    }
    match sources {
        0 => errors.invalid(
            list,
            "",
            "must specify one of: `configMapRef` or `secretRef`",
        ),
        1 => {}
        _ => errors.invalid(
            list,
            "",
            "may not have more than one field specified at a time",
        ),
    }
}

/// A reference to a field of the pod.
pub fn field_ref(reference: &Value, allowed: &[&str], path: &Path, errors: &mut Errors) {
    if required(reference, "apiVersion", path, errors).is_none() {
        return;
    }
    let Some(field) = required(reference, "fieldPath", path, errors) else {
        return;
    };
    let field_path = path.child("fieldPath");
    if let Some((map, rest)) = field.split_once('[') {
        // Faults of a subscript are upstream's about the reference as a whole.
        let key = rest
            .strip_suffix(']')
            .map(|key| key.trim_matches(['\'', '"']));
        match (map, key) {
            ("metadata.annotations", Some(key)) => {
                sentences(
                    names::is_qualified_name(&key.to_ascii_lowercase()),
                    path,
                    key,
                    errors,
                );
            }
            ("metadata.labels", Some(key)) => {
                sentences(names::is_qualified_name(key), path, key, errors);
            }
            _ => errors.invalid(path, map, "does not support subscript"),
        }
    } else if !is_convertible(field) {
        let detail = format!("error converting fieldPath: field label not supported: {field}");
        errors.invalid(&field_path, field, detail);
    } else if !allowed.contains(&field) {
        errors.not_supported(&field_path, field, allowed);
    }
}

/// Fields that the pod's field labels know at all.
fn is_convertible(field: &str) -> bool {
    ENV_FIELDS.contains(&field)
        || VOLUME_FIELDS.contains(&field)
        || matches!(
            field,
            "spec.restartPolicy" | "spec.schedulerName" | "status.phase" | "spec.hostNetwork"
        )
}

/// A reference to a container's requests or limits; volumes must name the container.
pub fn resource_field_ref(reference: &Value, in_volume: bool, path: &Path, errors: &mut Errors) {
    let resource = reference.text("resource");
    let is_hugepages =
        resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if in_volume && reference.text("containerName").is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !RESOURCES.contains(&resource) && !is_hugepages {
        errors.not_supported(&path.child("resource"), resource, RESOURCES);
    }
    divisor(reference, resource, path, errors);
}

fn divisor(reference: &Value, resource: &str, path: &Path, errors: &mut Errors) {
    let divisor = show(reference.at("divisor"));
    if divisor.is_empty() || divisor == "0" {
        return;
    }
    let bytes = [
        "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
    ];
    let (supported, sentence): (&[&str], _) = match resource
        .split_once('.')
        .map_or("", |(_, name)| name)
    {
        "cpu" => (
            &["1m", "1"],
            "only divisor's values 1m and 1 are supported with the cpu resource",
        ),
        "memory" => (
            &bytes,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported \
             with the memory resource",
        ),
        "ephemeral-storage" => (
            &bytes,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported \
             with the local ephemeral storage resource",
        ),
        huge if is_hugepages(huge) => (
            &bytes,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported \
             with the hugepages resource",
        ),
        _ => return,
    };
    if !supported.contains(&divisor.as_str()) {
        errors.invalid(&path.child("divisor"), resource, sentence);
    }
}
