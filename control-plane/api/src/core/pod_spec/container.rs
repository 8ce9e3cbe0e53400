//! Containers, init containers and ephemeral containers.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::volume::Volumes;
use super::{Owner, compute, env, probe, security, volume_source};
use crate::tree::Tree;
use crate::validate::numbers::port;
use crate::validate::{named, one_of, optional_one_of, required, sentences};

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// What the list that a container stands in changes about its rules.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Ordinary,
    Init,
    Ephemeral,
}

pub fn containers(
    spec: &Value,
    owner: Owner,
    volumes: &Volumes<'_>,
    path: &Path,
    errors: &mut Errors,
) {
    let grace = spec
        .int("terminationGracePeriodSeconds")
        .unwrap_or_default();
    let mut names = HashSet::new();
    let list = spec.list("containers");
    if list.is_empty() {
        errors.required(&path.child("containers"), "");
    }
    for (role, field) in [
        (Role::Ordinary, "containers"),
        (Role::Init, "initContainers"),
        (Role::Ephemeral, "ephemeralContainers"),
    ] {
        let path = path.child(field);
        for (i, container) in spec.list(field).iter().enumerate() {
            let path = path.index(i);
            one(container, (role, owner), grace, volumes, &path, errors);
            let name = container.text("name");
            if !name.is_empty() && !names.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
    }
    host_ports(spec, owner, path, errors);
    ephemeral_targets(spec, path, errors);
}

fn one(
    container: &Value,
    (role, owner): (Role, Owner),
    grace: i64,
    volumes: &Volumes<'_>,
    path: &Path,
    errors: &mut Errors,
) {
    named(container, "name", names::is_dns1123_label, path, errors);
    let image = container.text("image");
    if image.is_empty() {
        errors.required(&path.child("image"), "");
    } else if owner == Owner::Pod && image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.invalid(&path.child("image"), image, detail);
    }
    one_of(
        container,
        "terminationMessagePolicy",
        &["FallbackToLogsOnError", "File"],
        path,
        errors,
    );
    one_of(container, "imagePullPolicy", PULL_POLICIES, path, errors);
    ports(container, path, errors);
    env::env(container, path, errors);
    mounts(container, volumes, path, errors);
    devices(container, volumes, path, errors);
    compute::requirements(container.at("resources"), &path.child("resources"), errors);
    security::container(container, path, errors);
    resize_policy(container, path, errors);
    let is_sidecar = role == Role::Init && container.text("restartPolicy") == "Always";
    optional_one_of(
        container,
        "restartPolicy",
        super::RESTART_POLICIES,
        path,
        errors,
    );
    restart_rules(container, path, errors);
    match role {
        Role::Ordinary => probe::probes(container, grace, path, errors),
        Role::Init if is_sidecar => probe::probes(container, grace, path, errors),
        Role::Init => {
            for field in [
                "lifecycle",
                "livenessProbe",
                "readinessProbe",
                "startupProbe",
            ] {
                if container.has(field) {
                    errors.forbidden(
                        &path.child(field),
                        "may not be set for init containers without restartPolicy=Always",
                    );
                }
            }
        }
        Role::Ephemeral => only_ephemeral_fields(container, path, errors),
    }
}

/// Exceptions from a container's own restart policy, by exit code (KEP-5307).
fn restart_rules(container: &Value, path: &Path, errors: &mut Errors) {
    const MAX_RULES: usize = 20;
    let rules = container.list("restartPolicyRules");
    if rules.is_empty() {
        return;
    }
    if container.text("restartPolicy").is_empty() {
        let detail = "must specify restartPolicy when restart rules are used";
        errors.required(&path.child("restartPolicy"), detail);
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > MAX_RULES {
        errors.too_many(&path, rules.len(), MAX_RULES);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        one_of(rule, "action", &["Restart"], &path, errors);
        let codes = path.child("exitCodes");
        if rule.has("exitCodes") {
            one_of(
                rule.at("exitCodes"),
                "operator",
                &["In", "NotIn"],
                &codes,
                errors,
            );
        } else {
            errors.required(&codes, "must be specified");
        }
    }
}

/// Ephemeral containers may use only what an allow-list upstream names.
fn only_ephemeral_fields(container: &Value, path: &Path, errors: &mut Errors) {
    for field in [
        "ports",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "resizePolicy",
    ] {
        if container.has(field) {
            errors.forbidden(
                &path.child(field),
                "cannot be set for an Ephemeral Container",
            );
        }
    }
    let resources = container.at("resources");
    if resources
        .as_object()
        .is_some_and(|fields| !fields.is_empty())
    {
        errors.forbidden(
            &path.child("resources"),
            "cannot be set for an Ephemeral Container",
        );
    }
    for (i, mount) in container.list("volumeMounts").iter().enumerate() {
        let path = path.child("volumeMounts").index(i);
        for field in ["subPath", "subPathExpr"] {
            if !mount.text(field).is_empty() {
                errors.forbidden(
                    &path.child(field),
                    "cannot be set for an Ephemeral Container",
                );
            }
        }
    }
}

fn ephemeral_targets(spec: &Value, path: &Path, errors: &mut Errors) {
    for (i, container) in spec.list("ephemeralContainers").iter().enumerate() {
        let target = container.text("targetContainerName");
        let known = ["containers", "initContainers"]
            .iter()
            .any(|list| spec.list(list).iter().any(|c| c.text("name") == target));
        if !target.is_empty() && !known {
            let path = path
                .child("ephemeralContainers")
                .index(i)
                .child("targetContainerName");
            errors.not_found(&path, target);
        }
    }
}

fn ports(container: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, entry) in container.list("ports").iter().enumerate() {
        let path = path.child("ports").index(i);
        let name = entry.text("name");
        if !name.is_empty() {
            let problems = names::is_valid_port_name(name);
            if problems.is_empty() {
                if !seen.insert(name) {
                    errors.duplicate(&path.child("name"), name);
                }
            } else {
                sentences(problems, &path.child("name"), name, errors);
            }
        }
        match entry.int("containerPort").unwrap_or_default() {
            0 => errors.required(&path.child("containerPort"), ""),
            number => port(number, &path.child("containerPort"), errors),
        }
        if let Some(number) = entry.int("hostPort").filter(|n| *n != 0) {
            port(number, &path.child("hostPort"), errors);
        }
        one_of(entry, "protocol", PROTOCOLS, &path, errors);
    }
}

/// No two containers take one port of the host; with `hostNetwork` host and container ports agree.
fn host_ports(spec: &Value, owner: Owner, path: &Path, errors: &mut Errors) {
    let path = path.child("containers");
    let mut taken = HashSet::new();
    for (i, container) in spec.list("containers").iter().enumerate() {
        for (j, entry) in container.list("ports").iter().enumerate() {
            let path = path.index(i).child("ports").index(j).child("hostPort");
            let host_port = entry.int("hostPort").unwrap_or_default();
            if host_port != 0 {
                let key = format!(
                    "{}/{}/{host_port}",
                    entry.text("protocol"),
                    entry.text("hostIP")
                );
                if taken.contains(&key) {
                    errors.duplicate(&path, key);
                } else {
                    taken.insert(key);
                }
            }
            // A template's ports are filled in when the Pod is made.
            let counts = owner == Owner::Pod || host_port != 0;
            if spec.flag("hostNetwork")
                && counts
                && host_port != entry.int("containerPort").unwrap_or_default()
            {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid(&path, host_port, detail);
            }
        }
    }
}

fn mounts(container: &Value, volumes: &Volumes<'_>, path: &Path, errors: &mut Errors) {
    let mut paths = HashSet::new();
    let list_path = path.child("volumeMounts");
    for (i, mount) in container.list("volumeMounts").iter().enumerate() {
        let path = list_path.index(i);
        let (name, mount_path) = (mount.text("name"), mount.text("mountPath"));
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        if !volumes.contains_key(name) {
            errors.not_found(&path.child("name"), name);
        }
        if mount_path.is_empty() {
            errors.required(&path.child("mountPath"), "");
        }
        if !paths.insert(mount_path) {
            errors.invalid(&path.child("mountPath"), mount_path, "must be unique");
        }
        let devices = container.list("volumeDevices");
        if devices.iter().any(|device| device.text("name") == name) {
            let detail = "must not already exist in volumeDevices";
            errors.invalid(&path.child("name"), name, detail);
        }
        if devices
            .iter()
            .any(|device| device.text("devicePath") == mount_path)
        {
            let detail = "must not already exist as a path in volumeDevices";
            errors.invalid(&path.child("mountPath"), mount_path, detail);
        }
        // Upstream's paths of these and of the propagation leave the index out.
        let (sub, expression) = (mount.text("subPath"), mount.text("subPathExpr"));
        if !sub.is_empty() {
            volume_source::descending_path(sub, &list_path.child("subPath"), errors);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(&path.child("subPathExpr"), expression, detail);
            }
            volume_source::descending_path(expression, &list_path.child("subPathExpr"), errors);
        }
        propagation(mount, container, &list_path, &path, errors);
    }
}

fn propagation(
    mount: &Value,
    container: &Value,
    list_path: &Path,
    path: &Path,
    errors: &mut Errors,
) {
    let modes = &["Bidirectional", "HostToContainer", "None"];
    optional_one_of(mount, "mountPropagation", modes, list_path, errors);
    let mode = mount.text("mountPropagation");
    if mode == "Bidirectional" && !container.flag("securityContext.privileged") {
        errors.forbidden(
            &list_path.child("mountPropagation"),
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
    let path = path.child("recursiveReadOnly");
    match mount.at("recursiveReadOnly").as_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.flag("readOnly") {
                errors.forbidden(&path, "may only be specified when readOnly is true");
            }
            if !matches!(mode, "" | "None") {
                errors.forbidden(
                    &path,
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        Some(other) => {
            errors.not_supported(&path, other, &["Disabled", "Enabled", "IfPossible"]);
        }
    }
}

fn devices(container: &Value, volumes: &Volumes<'_>, path: &Path, errors: &mut Errors) {
    let (mut seen, mut paths) = (HashSet::new(), HashSet::new());
    for (i, device) in container.list("volumeDevices").iter().enumerate() {
        let path = path.child("volumeDevices").index(i);
        if let Some(name) = required(device, "name", &path, errors) {
            match volumes.get(name) {
                None => errors.not_found(&path.child("name"), name),
                Some(volume) => {
                    if !volume.has("persistentVolumeClaim") && !volume.has("ephemeral") {
                        let detail = "can only use volume source type of PersistentVolumeClaim or \
                                      Ephemeral for block mode";
                        errors.invalid(&path.child("name"), name, detail);
                    }
                }
            }
            if !seen.insert(name) {
                errors.invalid(&path.child("name"), name, "must be unique");
            }
            if container
                .list("volumeMounts")
                .iter()
                .any(|mount| mount.text("name") == name)
            {
                let detail = "must not already exist in volumeMounts";
                errors.invalid(&path.child("name"), name, detail);
            }
        }
        if let Some(device_path) = required(device, "devicePath", &path, errors) {
            if !paths.insert(device_path) {
                errors.invalid(&path.child("devicePath"), device_path, "must be unique");
            }
            if device_path.split('/').any(|part| part == "..") {
                errors.invalid(
                    &path.child("devicePath"),
                    device_path,
                    "can not contain backsteps ('..')",
                );
            }
        }
    }
}

fn resize_policy(container: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, policy) in container.list("resizePolicy").iter().enumerate() {
        let path = path.child("resizePolicy").index(i);
        let name = policy.text("resourceName");
        if !seen.insert(name) {
            errors.duplicate(&path, name);
        }
        one_of(policy, "resourceName", &["cpu", "memory"], &path, errors);
        one_of(
            policy,
            "restartPolicy",
            &["NotRequired", "RestartContainer"],
            &path,
            errors,
        );
    }
}
