//! Kernel settings that a pod may have changed for itself.

use k8s_openapi::api::core::v1::Pod;

use crate::model::{host_network, spec};

/// Those that are the pod's own and can do no harm to others (the API's documentation of
/// "safe sysctls").
const SAFE: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// The error is for the user.
pub(super) fn check(pod: &Pod, allowed: &[String]) -> Result<(), String> {
    let security = spec(pod).security_context.as_ref();
    for sysctl in security.iter().flat_map(|it| it.sysctls.iter().flatten()) {
        let name = normalized(&sysctl.name);
        let listed = SAFE.contains(&name.as_str()) || allowed.iter().any(|it| covers(it, &name));
        if !listed {
            return Err(format!(
                "forbidden sysctl: {:?} not allowlisted",
                sysctl.name
            ));
        }
        if name.starts_with("net.") && host_network(pod) {
            let name = &sysctl.name;
            return Err(format!(
                "forbidden sysctl: {name:?} not allowed with host net enabled"
            ));
        }
        let of_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
        if of_ipc.iter().any(|prefix| name.starts_with(prefix)) && spec(pod).host_ipc == Some(true)
        {
            let name = &sysctl.name;
            return Err(format!(
                "forbidden sysctl: {name:?} not allowed with host ipc enabled"
            ));
        }
    }
    Ok(())
}

/// With dots between the parts, whichever way it was written: the first separator decides
/// which one it is.
fn normalized(name: &str) -> String {
    let first = name.find(['.', '/']).and_then(|at| name.as_bytes().get(at));
    match first {
        Some(b'/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn covers(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}
