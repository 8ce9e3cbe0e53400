//! The controls of the Pod Security Standards, in the order in which upstream reports them.

use serde_json::Value;

use super::Level;

pub(super) struct Check {
    pub level: Level,
    pub reason: &'static str,
    /// A stricter control of the restricted level takes this one's place.
    pub overridden: bool,
    /// The detail of the violation, if there is one.
    pub run: fn(metadata: &Value, spec: &Value) -> Option<String>,
}

const fn baseline(reason: &'static str, run: fn(&Value, &Value) -> Option<String>) -> Check {
    Check {
        level: Level::Baseline,
        reason,
        overridden: false,
        run,
    }
}

const fn restricted(reason: &'static str, run: fn(&Value, &Value) -> Option<String>) -> Check {
    Check {
        level: Level::Restricted,
        reason,
        overridden: false,
        run,
    }
}

/// Sorted by control id, as upstream evaluates them.
pub(super) const ALL: &[Check] = &[
    restricted(
        "allowPrivilegeEscalation != false",
        allow_privilege_escalation,
    ),
    baseline("forbidden AppArmor profile", app_armor),
    Check {
        overridden: true,
        ..baseline("non-default capabilities", capabilities_baseline)
    },
    restricted("unrestricted capabilities", capabilities_restricted),
    baseline("host namespaces", host_namespaces),
    Check {
        overridden: true,
        ..baseline("hostPath volumes", host_path_volumes)
    },
    baseline("hostPort", host_ports),
    baseline("privileged", privileged),
    baseline("procMount", proc_mount),
    restricted("restricted volume types", volume_types),
    restricted("runAsNonRoot != true", run_as_non_root),
    restricted("runAsUser=0", run_as_user),
    baseline("seLinuxOptions", se_linux),
    Check {
        overridden: true,
        ..baseline("seccompProfile", seccomp_baseline)
    },
    restricted("seccompProfile", seccomp_restricted),
    baseline("forbidden sysctls", sysctls),
    baseline("hostProcess", host_process),
];

const DEFAULT_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

const VOLUME_TYPES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn items<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn name(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_default()
}

/// Init, regular and ephemeral containers.
fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|key| items(spec, key))
}

/// Names of the containers that `bad` picks.
fn bad_containers(spec: &Value, bad: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(spec).filter(|c| bad(c)).map(name).collect()
}

fn quoted<S: AsRef<str>>(names: &[S]) -> String {
    names
        .iter()
        .map(|n| format!("{:?}", n.as_ref()))
        .collect::<Vec<_>>()
        .join(", ")
}

fn plural<'t>(count: usize, one: &'t str, many: &'t str) -> &'t str {
    if count == 1 { one } else { many }
}

/// `container "a"` or `containers "a", "b"`.
fn the_containers(names: &[&str]) -> String {
    format!(
        "{} {}",
        plural(names.len(), "container", "containers"),
        quoted(names)
    )
}

/// The pod and the containers that `bad` picks, in words; `None` where it picks nothing.
fn offenders(spec: &Value, bad: impl Fn(&Value) -> bool) -> Option<String> {
    let mut who = Vec::new();
    if bad(spec) {
        who.push("pod".to_owned());
    }
    let names = bad_containers(spec, bad);
    if !names.is_empty() {
        who.push(the_containers(&names));
    }
    (!who.is_empty()).then(|| who.join(" and "))
}

fn must(spec: &Value, sentence: &str, bad: impl Fn(&Value) -> bool) -> Option<String> {
    let names = bad_containers(spec, bad);
    (!names.is_empty()).then(|| format!("{} must {sentence}", the_containers(&names)))
}

fn allow_privilege_escalation(_: &Value, spec: &Value) -> Option<String> {
    must(
        spec,
        "set securityContext.allowPrivilegeEscalation=false",
        |c| c["securityContext"]["allowPrivilegeEscalation"] != false,
    )
}

fn app_armor(metadata: &Value, spec: &Value) -> Option<String> {
    let allowed =
        |kind: &Value| matches!(kind.as_str(), None | Some("RuntimeDefault" | "Localhost"));
    let profile = |holder: &Value| holder["securityContext"]["appArmorProfile"]["type"].clone();
    let mut bad = Vec::new();
    if !allowed(&profile(spec)) {
        bad.push("pod".to_owned());
    }
    let names = bad_containers(spec, |c| !allowed(&profile(c)));
    if !names.is_empty() {
        bad.push(the_containers(&names));
    }
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        let fine =
            value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !fine {
            bad.push(format!("annotation {key:?}"));
        }
    }
    (!bad.is_empty()).then(|| format!("{} must not set AppArmor profile type", bad.join(" and ")))
}

fn added_capabilities<'v>(spec: &'v Value, allowed: &[&str]) -> (Vec<&'v str>, Vec<&'v str>) {
    let mut names = Vec::new();
    let mut forbidden = Vec::new();
    for container in containers(spec) {
        let added = items(&container["securityContext"]["capabilities"], "add");
        let bad: Vec<_> = added
            .iter()
            .filter_map(Value::as_str)
            .filter(|c| !allowed.contains(c))
            .collect();
        if !bad.is_empty() {
            names.push(name(container));
            forbidden.extend(bad);
        }
    }
    forbidden.sort_unstable();
    forbidden.dedup();
    (names, forbidden)
}

fn not_include(names: &[&str], forbidden: &[&str]) -> String {
    format!(
        "{} must not include {} in securityContext.capabilities.add",
        the_containers(names),
        quoted(forbidden)
    )
}

fn capabilities_baseline(_: &Value, spec: &Value) -> Option<String> {
    let (names, forbidden) = added_capabilities(spec, DEFAULT_CAPABILITIES);
    (!names.is_empty()).then(|| not_include(&names, &forbidden))
}

fn capabilities_restricted(_: &Value, spec: &Value) -> Option<String> {
    let mut parts = Vec::new();
    let undropped = must(
        spec,
        "set securityContext.capabilities.drop=[\"ALL\"]",
        |c| {
            !items(&c["securityContext"]["capabilities"], "drop")
                .iter()
                .any(|d| d == "ALL")
        },
    );
    parts.extend(undropped);
    let (names, forbidden) = added_capabilities(spec, &["NET_BIND_SERVICE"]);
    if !names.is_empty() {
        parts.push(not_include(&names, &forbidden));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn host_namespaces(_: &Value, spec: &Value) -> Option<String> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|key| spec[key] == true)
        .map(|key| format!("{key}=true"))
        .collect();
    (!set.is_empty()).then(|| set.join(", "))
}

fn host_path_volumes(_: &Value, spec: &Value) -> Option<String> {
    let bad: Vec<&str> = items(spec, "volumes")
        .iter()
        .filter(|v| v["hostPath"].is_object())
        .map(name)
        .collect();
    (!bad.is_empty()).then(|| {
        format!(
            "{} {}",
            plural(bad.len(), "volume", "volumes"),
            quoted(&bad)
        )
    })
}

fn host_ports(_: &Value, spec: &Value) -> Option<String> {
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for container in containers(spec) {
        let used: Vec<i64> = items(container, "ports")
            .iter()
            .filter_map(|p| p["hostPort"].as_i64())
            .filter(|p| *p != 0)
            .collect();
        if !used.is_empty() {
            names.push(name(container));
            ports.extend(used);
        }
    }
    ports.sort_unstable();
    ports.dedup();
    let list = ports
        .iter()
        .map(i64::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    (!names.is_empty()).then(|| {
        format!(
            "{} {} {} {list}",
            the_containers(&names),
            plural(names.len(), "uses", "use"),
            plural(ports.len(), "hostPort", "hostPorts")
        )
    })
}

fn privileged(_: &Value, spec: &Value) -> Option<String> {
    must(spec, "not set securityContext.privileged=true", |c| {
        c["securityContext"]["privileged"] == true
    })
}

fn proc_mount(_: &Value, spec: &Value) -> Option<String> {
    // With hostUsers=false /proc of the pod belongs to its own user namespace.
    if spec["hostUsers"] == false {
        return None;
    }
    must(
        spec,
        "not set securityContext.procMount to \"Unmasked\"",
        |c| {
            !matches!(
                c["securityContext"]["procMount"].as_str(),
                None | Some("Default")
            )
        },
    )
}

fn volume_types(_: &Value, spec: &Value) -> Option<String> {
    let mut names = Vec::new();
    let mut types: Vec<&str> = Vec::new();
    for volume in items(spec, "volumes") {
        let source = volume
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, _)| k.as_str());
        let source = source
            .filter(|key| *key != "name")
            .find(|key| !VOLUME_TYPES.contains(key));
        if let Some(kind) = source {
            names.push(name(volume));
            types.push(kind);
        }
    }
    types.sort_unstable();
    types.dedup();
    (!names.is_empty()).then(|| {
        format!(
            "{} {} {} restricted volume {} {}",
            plural(names.len(), "volume", "volumes"),
            quoted(&names),
            plural(names.len(), "uses", "use"),
            plural(types.len(), "type", "types"),
            quoted(&types)
        )
    })
}

fn run_as_non_root(_: &Value, spec: &Value) -> Option<String> {
    if spec["hostUsers"] == false {
        return None;
    }
    let pod = &spec["securityContext"]["runAsNonRoot"];
    let own = |c: &Value| c["securityContext"]["runAsNonRoot"].clone();
    let explicit = bad_containers(spec, |c| own(c) == false);
    let implicit = bad_containers(spec, |c| own(c).is_null() && pod != true);
    let mut parts = Vec::new();
    if *pod == false {
        parts.push("pod must not set securityContext.runAsNonRoot=false".to_owned());
    }
    if !explicit.is_empty() {
        let who = the_containers(&explicit);
        parts.push(format!(
            "{who} must not set securityContext.runAsNonRoot=false"
        ));
    }
    if parts.is_empty() && !implicit.is_empty() {
        let who = the_containers(&implicit);
        parts.push(format!(
            "pod or {who} must set securityContext.runAsNonRoot=true"
        ));
    }
    (!parts.is_empty()).then(|| parts.join(" and "))
}

fn run_as_user(_: &Value, spec: &Value) -> Option<String> {
    if spec["hostUsers"] == false {
        return None;
    }
    offenders(spec, |c| c["securityContext"]["runAsUser"] == 0)
        .map(|who| format!("{} must not set runAsUser=0", who))
}

fn se_linux(_: &Value, spec: &Value) -> Option<String> {
    const TYPES: &[&str] = &[
        "",
        "container_t",
        "container_init_t",
        "container_kvm_t",
        "container_engine_t",
    ];
    let bad = |holder: &Value| {
        let options = &holder["securityContext"]["seLinuxOptions"];
        let text = |key: &str| options[key].as_str().unwrap_or_default();
        !TYPES.contains(&text("type")) || !text("user").is_empty() || !text("role").is_empty()
    };
    offenders(spec, bad).map(|who| format!("{} set forbidden securityContext.seLinuxOptions", who))
}

fn seccomp_type(holder: &Value) -> Option<&str> {
    holder["securityContext"]["seccompProfile"]["type"].as_str()
}

fn seccomp_allowed(kind: &str) -> bool {
    matches!(kind, "RuntimeDefault" | "Localhost")
}

fn seccomp_baseline(_: &Value, spec: &Value) -> Option<String> {
    let bad = |holder: &Value| seccomp_type(holder).is_some_and(|kind| !seccomp_allowed(kind));
    offenders(spec, bad).map(|who| {
        format!(
            "{} must not set securityContext.seccompProfile.type to \"Unconfined\"",
            who
        )
    })
}

fn seccomp_restricted(metadata: &Value, spec: &Value) -> Option<String> {
    let explicit = seccomp_baseline(metadata, spec);
    if explicit.is_some() {
        return explicit;
    }
    if seccomp_type(spec).is_some_and(seccomp_allowed) {
        return None;
    }
    let names = bad_containers(spec, |c| seccomp_type(c).is_none());
    (!names.is_empty()).then(|| {
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            the_containers(&names)
        )
    })
}

fn sysctls(_: &Value, spec: &Value) -> Option<String> {
    let mut bad: Vec<&str> = items(&spec["securityContext"], "sysctls")
        .iter()
        .map(name)
        .filter(|sysctl| !SAFE_SYSCTLS.contains(sysctl))
        .collect();
    bad.sort_unstable();
    (!bad.is_empty()).then(|| bad.join(", "))
}

fn host_process(_: &Value, spec: &Value) -> Option<String> {
    let set = |holder: &Value| holder["securityContext"]["windowsOptions"]["hostProcess"] == true;
    offenders(spec, set).map(|who| {
        format!(
            "{} must not set securityContext.windowsOptions.hostProcess=true",
            who
        )
    })
}
