//! Where the cluster of `cargo xtask up` keeps its things.
//!
//! Everything a person or a script looks for lies in `.windlass/` of the repository. Sockets lie in
//! `/run/windlass`, because the path of a unix socket may not be longer than 107 bytes and a clone may lie deep.

use std::path::{Path, PathBuf};

/// Sockets, locks and the runtime's volatile state; gone after `down`.
pub const RUN: &str = "/run/windlass";
/// Where the node agent pins programs, links and maps.
pub const BPFFS: &str = "/sys/fs/bpf/windlass";

/// The parent of all pods' cgroups in each hierarchy. Not the kubelet's `/kubepods`, which may be a neighbour's.
pub const POD_CGROUPS: &str = "/windlass";

pub const OUTSIDE_NETNS: &str = "wl-outside";
pub const OUTSIDE_LINK: &str = "wlout0";

pub const API_PORT: u16 = 6443;
pub const KUBELET_PORT: u16 = 10250;
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
pub const CLUSTER_CIDR: &str = "10.244.0.0/16";
pub const NODE_PORTS: &str = "30000-32767";

/// The root of the repository that this xtask was built from.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository's root")
}

pub fn dot_windlass() -> PathBuf {
    repository().join(".windlass")
}

pub fn kubeconfig() -> PathBuf {
    dot_windlass().join("kubeconfig")
}

pub fn node_kubeconfig() -> PathBuf {
    dot_windlass().join("node.kubeconfig")
}

pub fn environment_file() -> PathBuf {
    dot_windlass().join("env")
}

pub fn logs() -> PathBuf {
    dot_windlass().join("logs")
}

pub fn log(service: &str) -> PathBuf {
    logs().join(format!("{service}.log"))
}

pub fn pid_file(service: &str) -> PathBuf {
    dot_windlass().join("pids").join(format!("{service}.pid"))
}

pub fn supervisor_definition() -> PathBuf {
    dot_windlass().join("supervisor.json")
}

/// What outlives `down`: the store, the images and the volumes.
pub fn data() -> PathBuf {
    dot_windlass().join("data")
}

pub fn control_plane_data() -> PathBuf {
    data().join("control-plane")
}

pub fn agent_data() -> PathBuf {
    data().join("agent")
}

pub fn containerd_root() -> PathBuf {
    data().join("containerd")
}

pub fn containerd_state() -> PathBuf {
    run().join("containerd")
}

pub fn containerd_socket() -> PathBuf {
    run().join("containerd.sock")
}

pub fn containerd_config() -> PathBuf {
    dot_windlass().join("containerd.toml")
}

pub fn cni_conf() -> PathBuf {
    dot_windlass().join("cni/conf")
}

pub fn cni_bin() -> PathBuf {
    dot_windlass().join("cni/bin")
}

pub fn agent_socket() -> PathBuf {
    run().join("agent.sock")
}

pub fn run() -> &'static Path {
    Path::new(RUN)
}

/// Held by the supervisor for as long as it lives; its content is `<pid> <repository>`.
pub fn supervisor_lock() -> PathBuf {
    run().join("supervisor.lock")
}

/// Held by `up` and `down` while they work, so that two of them do not work against each other. It lies
/// outside of `/run/windlass`, which `down` removes.
pub fn command_lock() -> PathBuf {
    PathBuf::from("/run/windlass.lock")
}

/// Where `cargo xtask image` puts the archives.
pub fn images() -> PathBuf {
    crate::cargo::output()
        .parent()
        .unwrap_or(Path::new("target"))
        .join("images")
}
