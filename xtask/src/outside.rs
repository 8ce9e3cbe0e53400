//! A network namespace that plays the world outside of the cluster, joined to the node by a veth pair whose
//! host end is an uplink of the agent like a real card.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use nix::mount::{MntFlags, umount2};

use crate::layout::{self, OUTSIDE_LINK, OUTSIDE_NETNS};
use crate::process;

/// The documentation networks of RFC 5737: no public network has these addresses, but a private one may.
const NETWORKS: [[u8; 3]; 3] = [[198, 51, 100], [203, 0, 113], [192, 0, 2]];
const PREFIX: u8 = 24;
const NETNS_FOLDER: &str = "/run/netns";
const FAR_LINK: &str = "outside0";

/// The addresses of the two ends.
pub struct Addresses {
    pub host: Ipv4Addr,
    pub outside: Ipv4Addr,
}

/// Takes the first network in which this machine has no address yet.
pub fn free_addresses() -> Result<Addresses> {
    remove();
    let used = process::output(Command::new("ip").args(["-j", "-4", "address", "show"]))?;
    let network = NETWORKS
        .into_iter()
        .find(|network| !is_used(*network, &used));
    let [a, b, c] = network.context("this machine uses all documentation networks (RFC 5737)")?;
    Ok(Addresses {
        host: Ipv4Addr::new(a, b, c, 1),
        outside: Ipv4Addr::new(a, b, c, 2),
    })
}

/// Whether an address in what `ip -j address` says lies in the network.
fn is_used([a, b, c]: [u8; 3], addresses: &str) -> bool {
    addresses.contains(&format!("\"local\":\"{a}.{b}.{c}."))
}

pub fn create(addresses: &Addresses) -> Result<()> {
    remove();
    if !is_mount_point(NETNS_FOLDER) {
        // `ip netns add` makes it one; `remove` undoes that.
        fs::write(mark(), "").with_context(|| format!("writing {}", mark().display()))?;
    }
    let (host, outside) = (
        format!("{}/{PREFIX}", addresses.host),
        format!("{}/{PREFIX}", addresses.outside),
    );
    let gateway = addresses.host.to_string();
    ip(&["netns", "add", OUTSIDE_NETNS])?;
    ip(&[
        "link",
        "add",
        OUTSIDE_LINK,
        "type",
        "veth",
        "peer",
        "name",
        FAR_LINK,
        "netns",
        OUTSIDE_NETNS,
    ])?;
    ip(&["address", "add", &host, "dev", OUTSIDE_LINK])?;
    ip(&["link", "set", OUTSIDE_LINK, "up"])?;
    ip(&["-n", OUTSIDE_NETNS, "link", "set", "lo", "up"])?;
    ip(&[
        "-n",
        OUTSIDE_NETNS,
        "address",
        "add",
        &outside,
        "dev",
        FAR_LINK,
    ])?;
    ip(&["-n", OUTSIDE_NETNS, "link", "set", FAR_LINK, "up"])?;
    ip(&[
        "-n",
        OUTSIDE_NETNS,
        "route",
        "add",
        "default",
        "via",
        &gateway,
    ])
}

/// Removes what is there; that nothing is there is no error.
pub fn remove() {
    // The pair lives in the namespace too, but that is taken apart in the background: the host's end would
    // still be there for a moment after the namespace's name is gone.
    process::succeeds(Command::new("ip").args(["link", "delete", OUTSIDE_LINK]));
    process::succeeds(Command::new("ip").args(["netns", "delete", OUTSIDE_NETNS]));
    let unused = fs::read_dir(NETNS_FOLDER).is_ok_and(|mut entries| entries.next().is_none());
    if unused && mark().exists() {
        umount2(NETNS_FOLDER, MntFlags::empty()).ok();
        fs::remove_file(mark()).ok();
    }
}

/// Stands while it was `up` that made the folder a mount point.
fn mark() -> PathBuf {
    layout::run().join("mounted-netns")
}

fn is_mount_point(folder: &str) -> bool {
    fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| {
        mounts
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(folder))
    })
}

fn ip(arguments: &[&str]) -> Result<()> {
    process::output(Command::new("ip").args(arguments))
        .map(drop)
        .context("could not make the namespace that plays the outside")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_used_when_an_interface_has_an_address_in_it() {
        let shown = r#"[{"ifname":"eth0","addr_info":[{"local":"192.0.2.7","prefixlen":24}]}]"#;
        assert!(is_used([192, 0, 2], shown));
        assert!(!is_used([192, 0, 20], shown));
        assert!(!is_used([198, 51, 100], shown));
    }
}
