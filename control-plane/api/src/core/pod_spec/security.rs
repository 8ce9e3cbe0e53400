//! Security contexts of pods and containers.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use super::volume_source::descending_path;
use super::{Context, windows};
use crate::tree::Tree;
use crate::validate::numbers::user_id;
use crate::validate::optional_one_of;

pub fn pod(spec: &Value, context_of: &Context<'_>, path: &Path, errors: &mut Errors) {
    let context = spec.at("securityContext");
    let path_of_context = path.child("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        user_id(context, field, &path_of_context, errors);
    }
    for (i, group) in context.list("supplementalGroups").iter().enumerate() {
        if !group
            .as_i64()
            .is_some_and(|id| (0..=i64::from(i32::MAX)).contains(&id))
        {
            errors.invalid(
                &path_of_context.child("supplementalGroups").index(i),
                group.clone(),
                "must be between 0 and 2147483647, inclusive",
            );
        }
    }
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        errors.invalid(
            &path_of_context.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    let sysctls_path = path_of_context.child("sysctls");
    sysctls(
        context,
        spec,
        context_of.kept.host_sysctls,
        &sysctls_path,
        errors,
    );
    let optional = |field: &str, allowed: &[&str], errors: &mut Errors| {
        optional_one_of(context, field, allowed, &path_of_context, errors);
    };
    optional("fsGroupChangePolicy", &["Always", "OnRootMismatch"], errors);
    seccomp(context, &path_of_context, errors);
    let windows_path = path_of_context.child("windowsOptions");
    windows::options(context.at("windowsOptions"), &windows_path, errors);
    app_armor(context, &path_of_context, errors);
    optional("supplementalGroupsPolicy", &["Merge", "Strict"], errors);
    // The other one, MountOption, waits for a gate (SELinuxMount).
    optional("seLinuxChangePolicy", &["Recursive"], errors);
}

/// A user namespace of the pod's own excludes sharing the host's other namespaces, and devices.
pub fn host_users(spec: &Value, context: &Context<'_>, path: &Path, errors: &mut Errors) {
    const DETAIL: &str = "when `hostUsers` is false";
    if spec.at("hostUsers").as_bool() != Some(false) {
        return;
    }
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec.flag(field) {
            errors.forbidden(&path.child(field), DETAIL);
        }
    }
    if context.kept.user_namespace_devices {
        return;
    }
    super::container::visit(spec, path, |container, path| {
        if !container.list("volumeDevices").is_empty() {
            errors.forbidden(&path.child("volumeDevices"), DETAIL);
        }
    });
}

fn sysctls(context: &Value, spec: &Value, on_host: bool, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, sysctl) in context.list("sysctls").iter().enumerate() {
        let path = path.index(i).child("name");
        let name = sysctl.text("name");
        if name.is_empty() {
            errors.required(&path, "");
        } else if !is_sysctl_name(name) {
            let detail = "must have at most 253 characters and match regex \
                          ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.invalid(&path, name, detail);
        } else if seen.contains(name) {
            errors.duplicate(&path, name);
        }
        if !on_host {
            host_sysctl(name, spec, &path, errors);
        }
        seen.insert(name);
    }
}

/// A pod that shares one of the host's namespaces would set the host's own parameters.
pub fn host_sysctl(name: &str, spec: &Value, path: &Path, errors: &mut Errors) {
    let dotted = name.replace('/', ".");
    let is_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."]
        .iter()
        .any(|prefix| dotted.starts_with(prefix))
        || dotted == "kernel.sem";
    if dotted.starts_with("net.") && spec.flag("hostNetwork") {
        let detail = "may not be specified when 'hostNetwork' is true";
        errors.invalid(path, name, detail);
    } else if is_ipc && spec.flag("hostIPC") {
        errors.invalid(path, name, "may not be specified when 'hostIPC' is true");
    }
}

fn is_sysctl_name(name: &str) -> bool {
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(edge)
                && bytes.last().is_some_and(edge)
                && bytes.iter().all(|b| edge(b) || matches!(b, b'-' | b'_'))
        })
}

/// In the order in which upstream lists them.
const PROFILES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];

fn seccomp(context: &Value, path: &Path, errors: &mut Errors) {
    let profile = context.at("seccompProfile");
    if profile.is_null() {
        return;
    }
    let path = path.child("seccompProfile");
    let kind = profile.text("type");
    if kind.is_empty() {
        let detail = "type is required when seccompProfile is set";
        errors.required(&path.child("type"), detail);
    } else if !PROFILES.contains(&kind) {
        errors.not_supported(&path.child("type"), kind, PROFILES);
    }
    let local_path = path.child("localhostProfile");
    match (kind, profile.at("localhostProfile").as_str()) {
        ("Localhost", None) => {
            errors.required(&local_path, "must be set when seccomp type is Localhost");
        }
        ("Localhost", Some(file)) => descending_path(file, &local_path, errors),
        (_, Some(_)) => {
            let detail = "can only be set when seccomp type is Localhost";
            errors.invalid(&local_path, profile.clone(), detail);
        }
        (_, None) => {}
    }
}

fn app_armor(context: &Value, path: &Path, errors: &mut Errors) {
    const MAX: usize = 4095;
    const MUST: &str = "must be set when AppArmor type is Localhost";
    let profile = context.at("appArmorProfile");
    if profile.is_null() {
        return;
    }
    let path = path.child("appArmorProfile");
    let (kind, local_path) = (profile.text("type"), path.child("localhostProfile"));
    match (kind, profile.at("localhostProfile").as_str()) {
        ("Localhost", None | Some("")) => errors.required(&local_path, MUST),
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                let detail = "must not be padded with whitespace";
                errors.invalid(&local_path, name, detail);
            }
            if name.len() > MAX {
                errors.too_long(&local_path, MAX);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            let detail = "can only be set when AppArmor type is Localhost";
            errors.invalid(&local_path, name, detail);
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => {
            let detail = "type is required when appArmorProfile is set";
            errors.required(&path.child("type"), detail);
        }
        (other, _) => errors.not_supported(&path.child("type"), other, PROFILES),
    }
}

pub fn container(container: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let context = container.at("securityContext");
    let path = path.child("securityContext");
    for field in ["runAsUser", "runAsGroup"] {
        user_id(context, field, &path, errors);
    }
    optional_one_of(
        context,
        "procMount",
        &["Default", "Unmasked"],
        &path,
        errors,
    );
    let mount = context.text("procMount");
    if mount == "Unmasked" && spec.at("hostUsers").as_bool() != Some(false) {
        let detail = "`hostUsers` must be false to use `Unmasked`";
        errors.invalid(&path.child("procMount"), mount, detail);
    }
    seccomp(context, &path, errors);
    if context.at("allowPrivilegeEscalation").as_bool() == Some(false) {
        if context.flag("privileged") {
            errors.invalid(
                &path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        let adds_sys_admin = context
            .list("capabilities.add")
            .iter()
            .filter_map(Value::as_str)
            .any(|capability| capability == "CAP_SYS_ADMIN");
        if adds_sys_admin {
            errors.invalid(
                &path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    let windows_path = path.child("windowsOptions");
    windows::options(context.at("windowsOptions"), &windows_path, errors);
    app_armor(context, &path, errors);
}
