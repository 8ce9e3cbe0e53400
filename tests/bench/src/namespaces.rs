//! What the measurements' worlds are made of: namespaces that are routed as pods are, and folders that go with them.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use windlass_tests::unnamed_netns::NetNs;

use crate::{machine, pause};

/// What a world leaves in file systems, gone with it.
pub struct RunFolder {
    path: PathBuf,
    pub bpffs: PathBuf,
    /// For the client alone: a socket hook on it is nobody else's.
    pub cgroup: Option<PathBuf>,
}

impl RunFolder {
    pub fn create() -> Result<Self> {
        let name = machine::unique_name();
        let path = Path::new("/run").join(&name);
        let bpffs = path.join("bpf");
        std::fs::create_dir_all(&bpffs).context("making a folder in /run")?;
        let cgroup = cgroup2_mount().map(|root| root.join(&name));
        if let Some(cgroup) = &cgroup {
            std::fs::create_dir_all(cgroup).context("making a cgroup for the client")?;
        }
        Ok(Self {
            path,
            bpffs,
            cgroup,
        })
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        for folder in self.cgroup.iter().chain([&self.path]) {
            // A process that has just ended leaves its cgroup a moment later.
            let deadline = Instant::now() + Duration::from_secs(2);
            while folder.exists()
                && std::fs::remove_dir(folder).is_err()
                && Instant::now() < deadline
            {
                let _ = std::fs::remove_dir(folder.join("bpf"));
                pause::between_looks(Duration::from_millis(2));
            }
        }
    }
}

/// Removes what a run that was killed has left behind: its namespaces are gone, its pins and folders are not.
pub fn sweep() {
    let roots = ["/run", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(PathBuf::from);
    for root in roots.into_iter().chain(cgroup2_mount()) {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name
                .strip_prefix("windlass-bench-")
                .and_then(|rest| rest.split('-').next());
            let Some(pid) = pid else { continue };
            if Path::new("/proc").join(pid).exists() {
                continue;
            }
            let bpffs = entry.path().join("bpf");
            if bpffs.exists()
                && let Err(error) = windlass_datapath::cleanup(&bpffs)
            {
                eprintln!("cleaning up {}: {error}", bpffs.display());
            }
            let _ = std::fs::remove_dir(&bpffs);
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .next()
}

/// A namespace behind a veth pair, routed as a pod is.
pub fn pod(node: &NetNs, host_side: &str, name: &str, addresses: &[Ipv4Addr]) -> NetNs {
    let netns = NetNs::new(name);
    node.ip(&format!(
        "link add {host_side} type veth peer name eth0 netns {}",
        netns.path().display()
    ));
    node.ip(&format!("link set {host_side} up"));
    netns.ip("link set eth0 up");
    let host_mac = node
        .mac(host_side)
        .map(|octet| format!("{octet:02x}"))
        .join(":");
    netns.ip("route add 169.254.1.1 dev eth0 scope link");
    netns.ip(&format!(
        "neigh add 169.254.1.1 lladdr {host_mac} nud permanent dev eth0"
    ));
    for address in addresses {
        netns.ip(&format!("addr add {address}/32 dev eth0"));
        node.ip(&format!("route add {address}/32 dev {host_side}"));
    }
    netns.ip("route add default via 169.254.1.1 dev eth0");
    netns
}
