//! Identities, capabilities and profiles of sandboxes and containers.

use std::path::Path;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile,
    SecurityContext,
};
use windlass_cri::v1::security_profile::ProfileType;
use windlass_cri::v1::{
    Capability, Image, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy,
    UserNamespace,
};

use crate::model::{host_network, slots, spec};

/// What a container sees as empty, unless it asks for an unmasked `/proc`.
const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What a container may read and not write.
const READ_ONLY_PATHS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Of the sandbox.
pub(crate) fn sandbox(
    pod: &Pod,
    seccomp_root: &Path,
    users: UserNamespace,
) -> LinuxSandboxSecurityContext {
    let default = PodSecurityContext::default();
    let security = spec(pod).security_context.as_ref().unwrap_or(&default);
    let privileged = slots(pod).any(|slot| {
        let own = slot.container.security_context.as_ref();
        own.and_then(|own| own.privileged).unwrap_or(false)
    });
    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, Some(users))),
        selinux_options: security.se_linux_options.as_ref().map(selinux),
        run_as_user: security.run_as_user.map(|value| Int64Value { value }),
        // The runtime refuses a group without a user.
        run_as_group: security
            .run_as_group
            .filter(|_| security.run_as_user.is_some())
            .map(|value| Int64Value { value }),
        supplemental_groups: supplemental_groups(security),
        supplemental_groups_policy: groups_policy(security).into(),
        privileged,
        // The sandbox only holds namespaces: the runtime's own profile fits it always.
        seccomp: Some(seccomp(None, Some(&runtime_default()), seccomp_root)),
        ..LinuxSandboxSecurityContext::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        localhost_profile: None,
    }
}

/// Of a container; what it does not say itself, the pod says. Fails for the user's eyes
/// if it must not run as root and would.
pub(crate) fn container(
    pod: &Pod,
    container: &Container,
    image: &Image,
    seccomp_root: &Path,
    target: Option<&str>,
    users: Option<UserNamespace>,
) -> Result<LinuxContainerSecurityContext, String> {
    let (pod_default, own_default) = (PodSecurityContext::default(), SecurityContext::default());
    let pod_wide = spec(pod).security_context.as_ref().unwrap_or(&pod_default);
    let own = container.security_context.as_ref().unwrap_or(&own_default);
    let privileged = own.privileged.unwrap_or(false);

    let given_user = own.run_as_user.or(pod_wide.run_as_user);
    if own.run_as_non_root.or(pod_wide.run_as_non_root) == Some(true) {
        refuse_root(&container.name, given_user, image)?;
    }
    // Where nobody names a user, the image does.
    let image_user = image.uid.map(|uid| uid.value);
    let named = given_user.is_none() && image_user.is_none() && !image.username.is_empty();
    let run_as_user = match (given_user, named) {
        (Some(user), _) => Some(user),
        (None, true) => None,
        (None, false) => image_user,
    };
    let run_as_group = own.run_as_group.or(pod_wide.run_as_group);
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |paths: &[&str]| match unmasked || privileged {
        true => Vec::new(),
        false => paths.iter().map(|path| (*path).to_owned()).collect(),
    };
    let capabilities = own.capabilities.as_ref().map(|wanted| Capability {
        add_capabilities: wanted.add.clone().unwrap_or_default(),
        drop_capabilities: wanted.drop.clone().unwrap_or_default(),
        add_ambient_capabilities: Vec::new(),
    });
    let se_linux = own
        .se_linux_options
        .as_ref()
        .or(pod_wide.se_linux_options.as_ref());
    let app_armor = own
        .app_armor_profile
        .as_ref()
        .or(pod_wide.app_armor_profile.as_ref());
    let seccomp_profile = match privileged {
        true => None,
        false => own.seccomp_profile.as_ref(),
    };
    let mut namespaces = namespaces(pod, users);
    // One namespace for the whole pod is the target's already.
    if let Some(target) = target.filter(|_| namespaces.pid() == NamespaceMode::Container) {
        namespaces.set_pid(NamespaceMode::Target);
        namespaces.target_id = target.to_owned();
    }
    Ok(LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options: Some(namespaces),
        selinux_options: se_linux.map(selinux),
        run_as_group: run_as_group
            .filter(|_| run_as_user.is_some() || named)
            .map(|value| Int64Value { value }),
        run_as_user: run_as_user.map(|value| Int64Value { value }),
        run_as_username: if named {
            image.username.clone()
        } else {
            String::new()
        },
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: supplemental_groups(pod_wide),
        supplemental_groups_policy: groups_policy(pod_wide).into(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(MASKED_PATHS),
        readonly_paths: paths(READ_ONLY_PATHS),
        seccomp: Some(seccomp(
            seccomp_profile,
            pod_wide.seccomp_profile.as_ref(),
            seccomp_root,
        )),
        apparmor: app_armor.map(apparmor),
        ..LinuxContainerSecurityContext::default()
    })
}

fn refuse_root(name: &str, given_user: Option<i64>, image: &Image) -> Result<(), String> {
    match (given_user, image.uid.map(|uid| uid.value)) {
        (Some(0), _) => Err(format!(
            "container's runAsUser breaks non-root policy (container: {name})"
        )),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(format!(
            "container has runAsNonRoot and image will run as root (container: {name})"
        )),
        (None, Some(_)) => Ok(()),
        (None, None) if image.username.is_empty() => Err(format!(
            "container has runAsNonRoot and image will run as root (container: {name})"
        )),
        (None, None) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify \
             user is non-root (container: {name})",
            image.username
        )),
    }
}

fn namespaces(pod: &Pod, users: Option<UserNamespace>) -> NamespaceOption {
    let spec = spec(pod);
    let mode = |on_node: bool, otherwise: NamespaceMode| {
        if on_node {
            NamespaceMode::Node
        } else {
            otherwise
        }
    };
    let pid = match spec.share_process_namespace {
        Some(true) => NamespaceMode::Pod,
        _ => NamespaceMode::Container,
    };
    NamespaceOption {
        network: mode(host_network(pod), NamespaceMode::Pod).into(),
        pid: mode(spec.host_pid == Some(true), pid).into(),
        ipc: mode(spec.host_ipc == Some(true), NamespaceMode::Pod).into(),
        userns_options: users,
        ..NamespaceOption::default()
    }
}

fn supplemental_groups(security: &PodSecurityContext) -> Vec<i64> {
    let own = security.supplemental_groups.iter().flatten();
    own.chain(&security.fs_group).copied().collect()
}

fn groups_policy(security: &PodSecurityContext) -> SupplementalGroupsPolicy {
    match security.supplemental_groups_policy.as_deref() {
        Some("Strict") => SupplementalGroupsPolicy::Strict,
        _ => SupplementalGroupsPolicy::Merge,
    }
}

fn seccomp(
    own: Option<&SeccompProfile>,
    pod_wide: Option<&SeccompProfile>,
    root: &Path,
) -> SecurityProfile {
    let Some(profile) = own.or(pod_wide) else {
        return unconfined();
    };
    match profile.type_.as_str() {
        "RuntimeDefault" => profile_of(ProfileType::RuntimeDefault, String::new()),
        "Localhost" => {
            let path = root.join(profile.localhost_profile.as_deref().unwrap_or_default());
            profile_of(ProfileType::Localhost, path.to_string_lossy().into_owned())
        }
        _ => unconfined(),
    }
}

fn apparmor(profile: &AppArmorProfile) -> SecurityProfile {
    match profile.type_.as_str() {
        "RuntimeDefault" => profile_of(ProfileType::RuntimeDefault, String::new()),
        "Localhost" => {
            let name = profile.localhost_profile.clone().unwrap_or_default();
            profile_of(ProfileType::Localhost, name)
        }
        _ => unconfined(),
    }
}

fn unconfined() -> SecurityProfile {
    profile_of(ProfileType::Unconfined, String::new())
}

fn profile_of(profile_type: ProfileType, localhost_ref: String) -> SecurityProfile {
    SecurityProfile {
        profile_type: profile_type.into(),
        localhost_ref,
    }
}

fn selinux(options: &SELinuxOptions) -> SeLinuxOption {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(
        pod_wide: Value,
        own: Value,
        image: Image,
    ) -> Result<LinuxContainerSecurityContext, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "securityContext": pod_wide,
            "containers": [{"name": "c", "securityContext": own}],
        }}))
        .unwrap();
        container(
            &pod,
            &spec(&pod).containers[0],
            &image,
            Path::new("/seccomp"),
            None,
            None,
        )
    }

    fn image(uid: Option<i64>, username: &str) -> Image {
        let uid = uid.map(|value| Int64Value { value });
        Image {
            uid,
            username: username.into(),
            ..Image::default()
        }
    }

    #[test]
    fn the_container_goes_before_the_pod_and_the_pod_before_the_image() {
        let user = |pod_wide: Value, own: Value| {
            let context = of(pod_wide, own, image(Some(33), "")).unwrap();
            (
                context.run_as_user.unwrap().value,
                context.run_as_group.map(|group| group.value),
            )
        };
        assert_eq!(user(json!({}), json!({})), (33, None));
        assert_eq!(
            user(json!({"runAsUser": 5, "runAsGroup": 6}), json!({})),
            (5, Some(6))
        );
        assert_eq!(
            user(json!({"runAsUser": 5}), json!({"runAsUser": 7})),
            (7, None)
        );

        let named = of(json!({}), json!({}), image(None, "www")).unwrap();
        assert_eq!(named.run_as_username, "www");
        assert!(named.run_as_user.is_none());
    }

    #[test]
    fn a_container_that_must_not_be_root_is_refused_if_it_would_be() {
        let wish = || json!({"runAsNonRoot": true});
        assert!(
            of(wish(), json!({}), image(Some(0), ""))
                .unwrap_err()
                .contains("run as root")
        );
        assert!(of(wish(), json!({}), image(None, "")).is_err());
        assert!(
            of(wish(), json!({}), image(None, "www"))
                .unwrap_err()
                .contains("non-numeric")
        );
        assert!(of(wish(), json!({"runAsUser": 0}), image(Some(5), "")).is_err());
        assert!(of(wish(), json!({"runAsUser": 5}), image(Some(0), "")).is_ok());
        assert!(of(wish(), json!({"runAsNonRoot": false}), image(Some(0), "")).is_ok());
        assert!(of(wish(), json!({}), image(Some(65532), "")).is_ok());
    }

    #[test]
    fn privileges_profiles_and_groups_are_carried_over() {
        let context = of(
            json!({"fsGroup": 2000, "supplementalGroups": [3000],
                   "seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                   "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true}),
            image(Some(0), ""),
        )
        .unwrap();
        assert_eq!(context.supplemental_groups, [3000, 2000]);
        assert_eq!(context.capabilities.unwrap().drop_capabilities, ["ALL"]);
        assert!(context.no_new_privs && context.readonly_rootfs);
        assert_eq!(
            context.seccomp.unwrap().profile_type(),
            ProfileType::RuntimeDefault
        );
        assert!(!context.masked_paths.is_empty());

        let privileged = of(json!({}), json!({"privileged": true}), image(Some(0), "")).unwrap();
        assert!(privileged.privileged && privileged.masked_paths.is_empty());

        let localhost =
            json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}});
        let profile = of(json!({}), localhost, image(Some(0), ""))
            .unwrap()
            .seccomp
            .unwrap();
        assert_eq!(profile.localhost_ref, "/seccomp/p.json");
        let none = of(json!({}), json!({}), image(Some(0), ""))
            .unwrap()
            .seccomp
            .unwrap();
        assert_eq!(none.profile_type(), ProfileType::Unconfined);
    }
}
