//! Containers, init containers and ephemeral containers.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::volume::Volumes;
use super::{Context, compute, env, probe, security, volume_source};
use crate::tree::Tree;
use crate::validate::numbers::port;
use crate::validate::{named, one_of, optional_one_of, required, sentences};

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// The lists of a spec that hold containers.
pub const LISTS: &[&str] = &["initContainers", "containers", "ephemeralContainers"];

/// Shows every container with its path, in the order in which upstream walks through them.
pub fn visit(spec: &Value, path: &Path, mut see: impl FnMut(&Value, &Path)) {
    for list in LISTS {
        for (i, container) in spec.list(list).iter().enumerate() {
            see(container, &path.child(list).index(i));
        }
    }
}

/// What containers share with the pod that they are in.
struct Surroundings<'a> {
    spec: &'a Value,
    volumes: &'a Volumes<'a>,
    claims: Vec<&'a str>,
    /// In seconds.
    grace: i64,
    context: &'a Context<'a>,
}

pub fn containers(
    spec: &Value,
    context: &Context<'_>,
    volumes: &Volumes<'_>,
    path: &Path,
    errors: &mut Errors,
) {
    let around = Surroundings {
        spec,
        volumes,
        claims: spec
            .list("resourceClaims")
            .iter()
            .map(|claim| claim.text("name"))
            .filter(|name| !name.is_empty())
            .collect(),
        grace: spec
            .int("terminationGracePeriodSeconds")
            .unwrap_or_default(),
        context,
    };
    let mut names = HashSet::new();
    let list_path = path.child("containers");
    if spec.list("containers").is_empty() {
        errors.required(&list_path, "");
    }
    for (i, container) in spec.list("containers").iter().enumerate() {
        let path = list_path.index(i);
        any(container, &around, &path, errors);
        unique_name(container, &mut names, &path, errors);
        probe::probes(container, around.grace, &path, errors);
        restart_policy(container, &path, errors);
    }
    host_ports(spec.list("containers"), &list_path, errors);
    init_containers(
        &around,
        names.clone(),
        &path.child("initContainers"),
        errors,
    );
    ephemeral_containers(&around, names, &path.child("ephemeralContainers"), errors);
}

fn unique_name<'a>(
    container: &'a Value,
    names: &mut HashSet<&'a str>,
    path: &Path,
    errors: &mut Errors,
) {
    let name = container.text("name");
    if !names.insert(name) {
        errors.duplicate(&path.child("name"), name);
    }
}

fn init_containers<'a>(
    around: &Surroundings<'a>,
    mut names: HashSet<&'a str>,
    list_path: &Path,
    errors: &mut Errors,
) {
    for (i, container) in around.spec.list("initContainers").iter().enumerate() {
        let path = list_path.index(i);
        any(container, around, &path, errors);
        restart_policy(container, &path, errors);
        let name = container.text("name");
        if names.contains(name) {
            errors.duplicate(&path.child("name"), name);
        } else if !name.is_empty() {
            names.insert(name);
        }
        // They run one by one, so that two of them may take the same port.
        host_ports(std::slice::from_ref(container), list_path, errors);
        if container.text("restartPolicy") == "Always" {
            probe::probes(container, around.grace, &path, errors);
            if !container.list("restartPolicyRules").is_empty() {
                let detail = "may not be set for restartable init containers";
                errors.forbidden(&path.child("restartPolicyRules"), detail);
            }
            continue;
        }
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
}

/// `names` are those of the ordinary containers.
fn ephemeral_containers<'a>(
    around: &Surroundings<'a>,
    mut names: HashSet<&'a str>,
    list_path: &Path,
    errors: &mut Errors,
) {
    let of_init = around.spec.list("initContainers").iter();
    names.extend(of_init.map(|container| container.text("name")));
    let others = names.clone();
    let list = around.spec.list("ephemeralContainers");
    for (i, container) in list.iter().enumerate() {
        let path = list_path.index(i);
        any(container, around, &path, errors);
        trimmed_image(container, &path, errors);
        unique_name(container, &mut names, &path, errors);
        let target = container.text("targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(&path.child("targetContainerName"), target);
        }
        only_ephemeral_fields(container, &path, errors);
    }
}

/// What only Pods ask of an image, since templates have stood with such ones.
pub fn trimmed_image(container: &Value, path: &Path, errors: &mut Errors) {
    let image = container.text("image");
    if image.trim().len() != image.len() {
        let detail = "must not have leading or trailing whitespace";
        errors.invalid(&path.child("image"), image, detail);
    }
}

/// The rules of containers of all kinds.
fn any(container: &Value, around: &Surroundings<'_>, path: &Path, errors: &mut Errors) {
    named(container, "name", names::is_dns1123_label, path, errors);
    required(container, "image", path, errors);
    let policies = &["File", "FallbackToLogsOnError"];
    one_of(
        container,
        "terminationMessagePolicy",
        policies,
        path,
        errors,
    );
    ports(container, path, errors);
    env::env(container, path, errors);
    mounts(container, around.volumes, path, errors);
    devices(container, around.volumes, path, errors);
    one_of(container, "imagePullPolicy", PULL_POLICIES, path, errors);
    let resources = path.child("resources");
    compute::requirements(
        container.at("resources"),
        &around.claims,
        &around.context.kept,
        &resources,
        errors,
    );
    resize_policy(container, around.spec, path, errors);
    security::container(container, around.spec, path, errors);
}

/// A container's own restart policy, and exceptions from it by exit code (KEP-5307).
fn restart_policy(container: &Value, path: &Path, errors: &mut Errors) {
    const MAX_RULES: usize = 20;
    const MAX_CODES: usize = 255;
    let rules = container.list("restartPolicyRules");
    let policies = &["Always", "Never", "OnFailure"];
    if container.has("restartPolicy") {
        let policy = container.text("restartPolicy");
        if !policies.contains(&policy) {
            errors.not_supported(&path.child("restartPolicy"), policy, policies);
        }
    } else if !rules.is_empty() {
        let detail = "must specify restartPolicy when restart rules are used";
        errors.required(&path.child("restartPolicy"), detail);
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > MAX_RULES {
        errors.too_many(&path, rules.len(), MAX_RULES);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let action = rule.text("action");
        if action != "Restart" {
            errors.not_supported(&path.child("action"), action, &["Restart"]);
        }
        let (codes, codes_path) = (rule.at("exitCodes"), path.child("exitCodes"));
        if codes.is_null() {
            errors.required(&codes_path, "must be specified");
            continue;
        }
        let operator = codes.text("operator");
        if !["In", "NotIn"].contains(&operator) {
            errors.not_supported(&codes_path.child("operator"), operator, &["In", "NotIn"]);
        }
        let count = codes.list("values").len();
        if count > MAX_CODES {
            errors.too_many(&codes_path.child("values"), count, MAX_CODES);
        }
    }
}

/// Ephemeral containers may use only what an allow-list upstream names.
fn only_ephemeral_fields(container: &Value, path: &Path, errors: &mut Errors) {
    const DETAIL: &str = "cannot be set for an Ephemeral Container";
    for field in [
        "ports",
        "resources",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
    ] {
        let is_set = match container.at(field) {
            Value::Null => false,
            Value::Object(fields) => field != "resources" || !fields.is_empty(),
            _ => true,
        };
        if is_set {
            errors.forbidden(&path.child(field), DETAIL);
        }
    }
    for (i, mount) in container.list("volumeMounts").iter().enumerate() {
        let path = path.child("volumeMounts").index(i);
        for field in ["subPath", "subPathExpr"] {
            if !mount.text(field).is_empty() {
                errors.forbidden(&path.child(field), DETAIL);
            }
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

/// No two of these containers take one port of the host.
fn host_ports(containers: &[Value], path: &Path, errors: &mut Errors) {
    let mut taken = HashSet::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, entry) in container.list("ports").iter().enumerate() {
            let host_port = entry.int("hostPort").unwrap_or_default();
            let key = format!(
                "{}/{}/{host_port}",
                entry.text("protocol"),
                entry.text("hostIP")
            );
            if host_port == 0 {
                continue;
            }
            if taken.contains(&key) {
                let path = path.index(i).child("ports").index(j).child("hostPort");
                errors.duplicate(&path, key);
            } else {
                taken.insert(key);
            }
        }
    }
}

/// On the host's network a container's port is the host's.
pub fn host_network_ports(spec: &Value, is_pod: bool, path: &Path, errors: &mut Errors) {
    if !spec.flag("hostNetwork") {
        return;
    }
    for (i, container) in spec.list("containers").iter().enumerate() {
        for (j, entry) in container.list("ports").iter().enumerate() {
            let host_port = entry.int("hostPort").unwrap_or_default();
            // A template's ports are filled in when the Pod is made.
            let counts = is_pod || host_port != 0;
            if counts && host_port != entry.int("containerPort").unwrap_or_default() {
                let path = path.child("containers").index(i).child("ports").index(j);
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid(&path.child("hostPort"), host_port, detail);
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
        let (sub, expression) = (mount.text("subPath"), mount.text("subPathExpr"));
        // Upstream's paths of these and of the propagation leave the index out.
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
        propagation(mount, container, &list_path, errors);
    }
}

fn propagation(mount: &Value, container: &Value, list_path: &Path, errors: &mut Errors) {
    let modes = &["Bidirectional", "HostToContainer", "None"];
    optional_one_of(mount, "mountPropagation", modes, list_path, errors);
    let mode = mount.text("mountPropagation");
    if mode == "Bidirectional" && !container.flag("securityContext.privileged") {
        errors.forbidden(
            &list_path.child("mountPropagation"),
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
    let path = list_path.child("recursiveReadOnly");
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
    let mounted = |field: &str, value: &str| {
        let mut mounts = container.list("volumeMounts").iter();
        mounts.any(|mount| mount.text(field) == value)
    };
    for (i, device) in container.list("volumeDevices").iter().enumerate() {
        let path = path.child("volumeDevices").index(i);
        let (name_path, device_path) = (path.child("name"), path.child("devicePath"));
        let (name, at) = (device.text("name"), device.text("devicePath"));
        if name.is_empty() {
            errors.required(&name_path, "");
        } else if !seen.insert(name) {
            errors.invalid(&name_path, name, "must be unique");
        }
        match volumes.get(name) {
            None => errors.not_found(&name_path, name),
            Some(volume) if !volume.has("persistentVolumeClaim") && !volume.has("ephemeral") => {
                let detail = "can only use volume source type of PersistentVolumeClaim or \
                              Ephemeral for block mode";
                errors.invalid(&name_path, name, detail);
            }
            Some(_) => {}
        }
        if at.is_empty() {
            errors.required(&device_path, "");
        }
        if paths.contains(at) {
            errors.invalid(&device_path, at, "must be unique");
        }
        if at.split('/').any(|part| part == "..") {
            errors.invalid(&device_path, at, "can not contain backsteps ('..')");
        } else {
            paths.insert(at);
        }
        if mounted("name", name) {
            let detail = "must not already exist in volumeMounts";
            errors.invalid(&name_path, name, detail);
        }
        if mounted("mountPath", at) {
            let detail = "must not already exist as a path in volumeMounts";
            errors.invalid(&device_path, at, detail);
        }
    }
}

/// Upstream's paths of what is wrong with one of them are the list's.
fn resize_policy(container: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("resizePolicy");
    let check = |value: &str, allowed: &[&str], errors: &mut Errors| match value {
        "" => errors.required(&path, ""),
        other if !allowed.contains(&other) => errors.not_supported(&path, other, allowed),
        _ => {}
    };
    let mut seen = HashSet::new();
    for (i, entry) in container.list("resizePolicy").iter().enumerate() {
        let (name, policy) = (entry.text("resourceName"), entry.text("restartPolicy"));
        if !seen.insert(name) {
            errors.duplicate(&path.index(i), name);
        }
        check(name, &["cpu", "memory"], errors);
        check(policy, &["NotRequired", "RestartContainer"], errors);
        if spec.text("restartPolicy") == "Never" && policy != "NotRequired" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.invalid(&path, policy, detail);
        }
    }
}
