//! Where the cluster of `cargo xtask up` keeps its things.
//!
//! Everything a person or a script looks for lies in `.windlass/` of the repository. Sockets lie in
//! `/run/windlass`, because the path of a unix socket may not be longer than 107 bytes and a clone may lie deep.

use std::path::{Path, PathBuf};

/// Sockets, locks and the runtime's volatile state; gone after `down`.
pub const RUN: &str = "/run/windlass";
/// Where bpffs is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The most nodes on one machine: as many as `down` looks for.
pub const MOST_NODES: usize = 9;

pub const OUTSIDE_NETNS: &str = "wl-outside";
pub const OUTSIDE_LINK: &str = "wlout0";
/// Where `ip netns` gives namespaces their names.
pub const NETNS_FOLDER: &str = "/run/netns";
/// The uplink of every node but the first.
pub const NODE_LINK: &str = "eth0";

pub const API_PORT: u16 = 6443;
pub const KUBELET_PORT: u16 = 10250;
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
pub const CLUSTER_CIDR: &str = "10.244.0.0/16";
/// With both families, these are beside them.
pub const SERVICE_CIDR_V6: &str = "fd00:10:96::/112";
pub const CLUSTER_CIDR_V6: &str = "fd00:10:244::/56";
/// The tenth address of the range of Services.
pub const CLUSTER_DNS: &str = "10.96.0.10";
pub const CLUSTER_DNS_V6: &str = "fd00:10:96::a";
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

/// Where one node keeps its things. The first node is the machine itself; each further one is a network
/// namespace with a runtime, an agent, cgroups and pins of its own, under the same names with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLayout(usize);

/// The first `count` nodes.
pub fn nodes(count: usize) -> impl Iterator<Item = NodeLayout> {
    (1..=count).map(NodeLayout)
}

/// Every node that any `up` can have made.
pub fn all_nodes() -> impl Iterator<Item = NodeLayout> {
    nodes(MOST_NODES)
}

impl NodeLayout {
    pub fn number(self) -> usize {
        self.0
    }

    pub fn is_the_machine(self) -> bool {
        self.0 == 1
    }

    /// The name that something of the first node has, made this node's.
    pub fn named(self, name: &str) -> String {
        if self.is_the_machine() {
            name.to_owned()
        } else {
            format!("{name}-{}", self.0)
        }
    }

    /// The network namespace; the first node has the machine's own.
    pub fn netns(self) -> Option<String> {
        (!self.is_the_machine()).then(|| format!("wl-node{}", self.0))
    }

    /// A command line in the node's network namespace. Not by `ip netns exec`, which mounts a new /sys, without
    /// cgroups and bpffs.
    pub fn command(self, command: Vec<String>) -> Vec<String> {
        match self.netns() {
            Some(netns) => [
                "nsenter".to_owned(),
                format!("--net={}", Path::new(NETNS_FOLDER).join(netns).display()),
                "--".to_owned(),
            ]
            .into_iter()
            .chain(command)
            .collect(),
            None => command,
        }
    }

    pub fn kubeconfig(self) -> PathBuf {
        dot_windlass().join(format!("{}.kubeconfig", self.named("node")))
    }

    pub fn agent_data(self) -> PathBuf {
        data().join(self.named("agent"))
    }

    pub fn agent_socket(self) -> PathBuf {
        run().join(format!("{}.sock", self.named("agent")))
    }

    pub fn containerd_root(self) -> PathBuf {
        data().join(self.named("containerd"))
    }

    pub fn containerd_state(self) -> PathBuf {
        run().join(self.named("containerd"))
    }

    pub fn containerd_socket(self) -> PathBuf {
        run().join(format!("{}.sock", self.named("containerd")))
    }

    pub fn containerd_config(self) -> PathBuf {
        dot_windlass().join(format!("{}.toml", self.named("containerd")))
    }

    pub fn cni_conf(self) -> PathBuf {
        dot_windlass().join(self.named("cni")).join("conf")
    }

    pub fn cni_bin(self) -> PathBuf {
        dot_windlass().join(self.named("cni")).join("bin")
    }

    /// Where the node agent pins programs, links and maps.
    pub fn bpffs(self) -> PathBuf {
        Path::new(BPFFS).join(self.named("windlass"))
    }

    /// The parent of all its pods' cgroups in each hierarchy. Not the kubelet's `/kubepods`, which may be a
    /// neighbour's.
    pub fn pod_cgroups(self) -> String {
        format!("/{}", self.named("windlass"))
    }

    pub fn containerd_service(self) -> String {
        self.named("containerd")
    }

    pub fn agent_service(self) -> String {
        self.named("node-agent")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_share_no_path() {
        let places: Vec<Vec<PathBuf>> = nodes(3)
            .map(|node| {
                vec![
                    node.kubeconfig(),
                    node.agent_data(),
                    node.agent_socket(),
                    node.containerd_root(),
                    node.containerd_state(),
                    node.containerd_socket(),
                    node.containerd_config(),
                    node.cni_conf(),
                    node.bpffs(),
                    node.pod_cgroups().into(),
                    log(&node.agent_service()),
                    pid_file(&node.containerd_service()),
                ]
            })
            .collect();
        let distinct: std::collections::HashSet<_> = places.iter().flatten().collect();
        assert_eq!(distinct.len(), places.iter().flatten().count());
        assert_eq!(places[0][2], Path::new("/run/windlass/agent.sock"));
        assert_eq!(places[1][2], Path::new("/run/windlass/agent-2.sock"));
    }
}
