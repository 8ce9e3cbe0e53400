//! Security contexts of pods and containers.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;
use crate::validate::numbers::user_id;
use crate::validate::optional_one_of;

pub fn pod(spec: &Value, path: &Path, errors: &mut Errors) {
    let context = spec.at("securityContext");
    let path_of_context = path.child("securityContext");
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
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
    sysctls(context, spec, &path_of_context.child("sysctls"), errors);
    optional_one_of(
        context,
        "fsGroupChangePolicy",
        &["Always", "OnRootMismatch"],
        &path_of_context,
        errors,
    );
    optional_one_of(
        context,
        "supplementalGroupsPolicy",
        &["Merge", "Strict"],
        &path_of_context,
        errors,
    );
    profiles(context, &path_of_context, errors);
    host_users(spec, path, errors);
}

/// A user namespace of the pod's own excludes sharing the host's other namespaces.
fn host_users(spec: &Value, path: &Path, errors: &mut Errors) {
    if spec.at("hostUsers").as_bool() != Some(false) {
        return;
    }
    for field in ["hostPID", "hostIPC"] {
        if spec.flag(field) {
            errors.forbidden(&path.child(field), "when `hostUsers` is false");
        }
    }
    if spec.flag("hostNetwork") {
        errors.forbidden(&path.child("hostNetwork"), "when `hostUsers` is false");
    }
}

fn sysctls(context: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, sysctl) in context.list("sysctls").iter().enumerate() {
        let path = path.index(i).child("name");
        let name = sysctl.text("name");
        if name.is_empty() {
            errors.required(&path, "");
            continue;
        }
        if !is_sysctl_name(name) {
            let detail = "must have at most 253 characters and match regex \
                          ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.invalid(&path, name, detail);
        } else if !seen.insert(name) {
            errors.duplicate(&path, name);
        }
        let dotted = name.replace('/', ".");
        if dotted.starts_with("net.") && spec.flag("hostNetwork") {
            errors.invalid(
                &path,
                name,
                "may not be specified when 'hostNetwork' is true",
            );
        }
        let is_ipc = dotted.starts_with("kernel.shm")
            || dotted.starts_with("kernel.msg")
            || dotted == "kernel.sem"
            || dotted.starts_with("fs.mqueue.");
        if is_ipc && spec.flag("hostIPC") {
            errors.invalid(&path, name, "may not be specified when 'hostIPC' is true");
        }
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

/// `seccompProfile` and `appArmorProfile` have the same shape.
fn profiles(context: &Value, path: &Path, errors: &mut Errors) {
    for (field, what) in [
        ("seccompProfile", "seccomp"),
        ("appArmorProfile", "AppArmor"),
    ] {
        let profile = context.at(field);
        if profile.is_null() {
            continue;
        }
        let path = path.child(field);
        let local = profile.text("localhostProfile");
        let local_path = path.child("localhostProfile");
        let kind = profile.text("type");
        match kind {
            "Localhost" | "RuntimeDefault" | "Unconfined" => {}
            "" => {
                errors.required(
                    &path.child("type"),
                    format!("type is required when {field} is set"),
                );
            }
            other => errors.not_supported(
                &path.child("type"),
                other,
                &["Localhost", "RuntimeDefault", "Unconfined"],
            ),
        }
        match (kind == "Localhost", local.is_empty()) {
            (true, true) => {
                errors.required(
                    &local_path,
                    format!("must be set when {what} type is Localhost"),
                );
            }
            (true, false) if what == "seccomp" => {
                super::volume_source::descending_path(local, &local_path, errors);
            }
            (false, false) => {
                let shown = if what == "seccomp" {
                    profile.clone()
                } else {
                    local.into()
                };
                let detail = format!("can only be set when {what} type is Localhost");
                errors.invalid(&local_path, shown, detail);
            }
            _ => {}
        }
    }
}

pub fn container(container: &Value, path: &Path, errors: &mut Errors) {
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
    profiles(context, &path, errors);
}
