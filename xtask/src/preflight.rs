//! What the machine must have before a cluster can start on it, and the facts about it that `up` needs.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::statfs;

use crate::layout::{self, NodeLayout};
use crate::setup::{self, Need};
use crate::up::families::Families;
use crate::{outside, process};

/// `SO_NETNS_COOKIE` of 5.14 is the newest that nothing stands in for; 5.15 is the oldest kernel that is kept up.
const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// The bit of CAP_SYS_RESOURCE in a capability set (linux/capability.h).
const CAP_SYS_RESOURCE: u32 = 24;
/// Build options without which the datapath or the runtime cannot work; each is a module or built in.
const KERNEL_OPTIONS: [&str; 9] = [
    "CONFIG_BPF_SYSCALL",
    "CONFIG_CGROUP_BPF",
    "CONFIG_NET_CLS_ACT",
    "CONFIG_NET_CLS_BPF",
    "CONFIG_NET_SCH_INGRESS",
    "CONFIG_NAMESPACES",
    "CONFIG_NET_NS",
    "CONFIG_VETH",
    "CONFIG_OVERLAY_FS",
];

/// A node of the cluster to be.
pub struct Node {
    pub layout: NodeLayout,
    pub name: String,
    /// Its InternalIP.
    pub address: IpAddr,
    /// Its second one, when the cluster has both families.
    pub address_v6: Option<Ipv6Addr>,
}

/// The machine that is to carry the nodes.
pub struct Host {
    /// The first is the machine itself.
    pub nodes: Vec<Node>,
    /// Where the API server is reached: the machine's address towards the rest of the world.
    pub address: IpAddr,
    pub outside: outside::Addresses,
    pub families: Families,
    /// The interface of the default route, if there is one.
    pub uplink: Option<String>,
    /// Where cgroup2 is mounted: at `/sys/fs/cgroup`, or beside the v1 hierarchies on a hybrid host.
    pub cgroup2: PathBuf,
    /// Without CAP_SYS_RESOURCE the runtime must not lower a process's OOM score.
    pub may_lower_oom_score: bool,
    /// `overlayfs`, or `native` where the repository lies on an overlay itself, which cannot be nested.
    pub snapshotter: &'static str,
}

pub fn require_root(command: &str) -> Result<()> {
    if !process::is_root() {
        bail!(
            "`cargo xtask {command}` needs root, for network namespaces, mounts and eBPF: \
             run `sudo -E env PATH=\"$PATH\" cargo xtask {command}`"
        );
    }
    Ok(())
}

/// Whether interfaces that are made here can have addresses of IPv6.
pub fn has_ipv6() -> bool {
    ["all", "default"].iter().all(|scope| {
        let switch = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
        fs::read_to_string(switch).is_ok_and(|disabled| disabled.trim() == "0")
    })
}

/// Looks at everything and lists all that is wrong, not only the first.
pub fn host(nodes: usize, families: Families) -> Result<Host> {
    let mut problems = Vec::new();
    let missing = setup::unsatisfied(&[Need::Cluster]);
    if !missing.is_empty() {
        problems.push(format!(
            "{} missing: run `cargo xtask setup`",
            missing.join(", ")
        ));
    }
    problems.extend(kernel_problems());
    let cgroup2 = cgroup2_mount(&fs::read_to_string("/proc/self/mountinfo")?);
    if cgroup2.is_none() {
        problems.push(
            "cgroup2 is not mounted: `mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none \
             /sys/fs/cgroup/unified`"
                .to_owned(),
        );
    }
    if families.has_ipv6() && !has_ipv6() {
        problems.push(
            "IPv6 is off: `sysctl net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0`, or leave \
             out --ip-families"
                .to_owned(),
        );
    }
    if let Err(error) = mount_bpffs() {
        problems.push(format!("{error:#}"));
    }
    problems.extend(
        [layout::API_PORT, layout::KUBELET_PORT]
            .into_iter()
            .filter_map(taken_port),
    );
    if !problems.is_empty() {
        bail!(
            "this machine cannot run the cluster yet:\n  - {}",
            problems.join("\n  - ")
        );
    }
    let outside = outside::free_addresses()?;
    let (uplink, address) = match default_route() {
        Some((uplink, address)) => (Some(uplink), address),
        // A machine without a network is still reached from the namespace that plays the outside.
        None => (None, outside.host),
    };
    let name = node_name(&fs::read_to_string("/proc/sys/kernel/hostname")?);
    let node = |layout: NodeLayout| {
        // The machine's own network need not have the family: here the segment is what nodes are known by.
        let v6 = outside::v6(outside.node(layout));
        Node {
            layout,
            name: layout.named(&name),
            address: match families {
                Families::Ipv6 => v6.into(),
                // Several nodes are neighbours: each is known by its address on the segment that they share.
                Families::Ipv4 | Families::Both if nodes > 1 => outside.node(layout).into(),
                Families::Ipv4 | Families::Both => address.into(),
            },
            address_v6: (families == Families::Both).then_some(v6),
        }
    };
    Ok(Host {
        nodes: layout::nodes(nodes).map(node).collect(),
        address: match families {
            Families::Ipv6 => outside::v6(outside.host).into(),
            Families::Ipv4 | Families::Both => address.into(),
        },
        outside,
        families,
        uplink,
        cgroup2: cgroup2.context("checked above")?,
        may_lower_oom_score: has_capability(CAP_SYS_RESOURCE)?,
        snapshotter: snapshotter(),
    })
}

fn kernel_problems() -> Vec<String> {
    let mut problems = Vec::new();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if kernel_version(&release).is_some_and(|version| version < OLDEST_KERNEL) {
        let (major, minor) = OLDEST_KERNEL;
        problems.push(format!(
            "kernel {} is too old: {major}.{minor} or later is needed",
            release.trim()
        ));
    }
    if let Some(config) = kernel_config(release.trim()) {
        let missing = missing_options(&config);
        if !missing.is_empty() {
            problems.push(format!(
                "the kernel was built without {}",
                missing.join(", ")
            ));
        }
    }
    problems
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The kernel's build options, where the kernel or the distribution shows them.
fn kernel_config(release: &str) -> Option<String> {
    if let Ok(packed) = fs::File::open("/proc/config.gz") {
        return std::io::read_to_string(flate2::read::GzDecoder::new(packed)).ok();
    }
    fs::read_to_string(format!("/boot/config-{release}")).ok()
}

fn missing_options(config: &str) -> Vec<&'static str> {
    let set = |option: &str| {
        config.lines().any(|line| {
            line.strip_prefix(option)
                .is_some_and(|rest| rest == "=y" || rest == "=m")
        })
    };
    KERNEL_OPTIONS
        .into_iter()
        .filter(|option| !set(option))
        .collect()
}

/// The mount point of cgroup2 in a `mountinfo` file.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2")
            .then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Most distributions mount it at boot; containers and small images do not.
fn mount_bpffs() -> Result<()> {
    let mount_point = Path::new(layout::BPFFS);
    let is_bpffs = || {
        statfs::statfs(mount_point).is_ok_and(|data| data.filesystem_type() == statfs::BPF_FS_MAGIC)
    };
    if is_bpffs() {
        return Ok(());
    }
    process::output(
        Command::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(mount_point),
    )
    .context("bpffs is not mounted at /sys/fs/bpf and could not be mounted")?;
    // `down` unmounts what `up` has mounted, and nothing else.
    fs::create_dir_all(layout::RUN)?;
    fs::write(layout::run().join("mounted-bpffs"), "")?;
    Ok(())
}

fn taken_port(port: u16) -> Option<String> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .err()
        .map(|error| format!("port {port} cannot be used ({error}): `ss -ltnp` shows who has it"))
}

/// The interface and source address that packets to the rest of the world leave with; sends nothing.
fn default_route() -> Option<(String, Ipv4Addr)> {
    let answer =
        process::output(Command::new("ip").args(["-j", "-4", "route", "get", "8.8.8.8"])).ok()?;
    let routes: serde_json::Value = serde_json::from_str(&answer).ok()?;
    let route = routes.get(0)?;
    Some((
        route.get("dev")?.as_str()?.to_owned(),
        route.get("prefsrc")?.as_str()?.parse().ok()?,
    ))
}

/// A host name as the name of a Node: an RFC 1123 subdomain.
fn node_name(hostname: &str) -> String {
    let allowed: String = hostname
        .trim()
        .to_ascii_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' || c == '-' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let trimmed = allowed.trim_matches(['.', '-']);
    if trimmed.is_empty() {
        "node".to_owned()
    } else {
        trimmed.to_owned()
    }
}

fn has_capability(bit: u32) -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .context("/proc/self/status names no effective capabilities")?;
    Ok(set >> bit & 1 == 1)
}

fn snapshotter() -> &'static str {
    let nested = statfs::statfs(layout::repository())
        .is_ok_and(|data| data.filesystem_type() == statfs::OVERLAYFS_SUPER_MAGIC);
    if nested { "native" } else { "overlayfs" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_on_pure_and_hybrid_hosts() {
        let pure = "28 22 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        let hybrid = "29 28 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      30 28 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(pure), Some("/sys/fs/cgroup".into()));
        assert_eq!(cgroup2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            cgroup2_mount("29 28 0:26 / /cpu rw - cgroup cgroup rw,cpu\n"),
            None
        );
    }

    #[test]
    fn kernel_versions_compare_by_number() {
        assert_eq!(kernel_version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("5.10-custom"), Some((5, 10)));
        assert!(kernel_version("5.4.0").unwrap() < OLDEST_KERNEL);
    }

    #[test]
    fn options_that_are_off_or_absent_are_missing() {
        let config = "CONFIG_BPF_SYSCALL=y\nCONFIG_VETH=m\n# CONFIG_CGROUP_BPF is not set\n";
        let missing = missing_options(config);
        assert!(missing.contains(&"CONFIG_CGROUP_BPF"));
        assert!(missing.contains(&"CONFIG_NET_NS"));
        assert!(!missing.contains(&"CONFIG_BPF_SYSCALL"));
        assert!(!missing.contains(&"CONFIG_VETH"));
    }

    #[test]
    fn a_host_name_becomes_a_valid_node_name() {
        assert_eq!(node_name("Build_Box.example\n"), "build-box.example");
        assert_eq!(node_name("(none)\n"), "none");
        assert_eq!(node_name("\n"), "node");
    }
}
