//! A network namespace that plays the world outside of the cluster, joined to the machine by a veth pair whose
//! host end is an uplink of the agent like a real card.
//!
//! With several nodes the outside is also the switch between them: a bridge in its namespace, into which each
//! further node's namespace has a cable. Nothing of that is in the machine's own network.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use nix::mount::{MntFlags, umount2};

use crate::layout::{self, NETNS_FOLDER, NODE_LINK, NodeLayout, OUTSIDE_LINK, OUTSIDE_NETNS};
use crate::process;
use crate::sweep::unescape;

/// The documentation networks of RFC 5737: no public network has these addresses, but a private one may.
const NETWORKS: [[u8; 3]; 3] = [[198, 51, 100], [203, 0, 113], [192, 0, 2]];
const PREFIX: u8 = 24;
/// A unique local network (RFC 4193) for the same segment, when it has both families.
const NETWORK_V6: [u16; 4] = [0xfd00, 0x57, 0x37, 0];
const PREFIX_V6: u8 = 64;
/// The outside's own interface: the far end of the machine's link, or the bridge.
const FAR_LINK: &str = "outside0";
/// The far end of the machine's link, when it is a port of the bridge.
const FIRST_PORT: &str = "port1";

/// The addresses on the segment.
pub struct Addresses {
    pub host: Ipv4Addr,
    pub outside: Ipv4Addr,
}

impl Addresses {
    pub fn node(&self, node: NodeLayout) -> Ipv4Addr {
        let [a, b, c, host] = self.host.octets();
        let last = if node.is_the_machine() {
            host
        } else {
            10 + node.number() as u8
        };
        Ipv4Addr::new(a, b, c, last)
    }
}

/// The second address of whoever has `address` on the segment: with the same last part.
pub fn v6(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = NETWORK_V6;
    Ipv6Addr::new(a, b, c, d, 0, 0, 0, address.octets()[3].into())
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

/// `dual_stack`: every address has one of IPv6 beside it.
pub fn create(addresses: &Addresses, nodes: usize, dual_stack: bool) -> Result<()> {
    remove();
    if !is_mount_point(Path::new(NETNS_FOLDER)) {
        // `ip netns add` makes it one; `remove` undoes that.
        fs::write(mark(), "").with_context(|| format!("writing {}", mark().display()))?;
    }
    ip(&["netns", "add", OUTSIDE_NETNS])?;
    let far_end = if nodes > 1 {
        outside(&["link", "add", FAR_LINK, "type", "bridge"])?;
        FIRST_PORT
    } else {
        FAR_LINK
    };
    ip(&[
        "link",
        "add",
        OUTSIDE_LINK,
        "type",
        "veth",
        "peer",
        "name",
        far_end,
        "netns",
        OUTSIDE_NETNS,
    ])?;
    let host = format!("{}/{PREFIX}", addresses.host);
    ip(&["address", "add", &host, "dev", OUTSIDE_LINK])?;
    if dual_stack {
        let host = format!("{}/{PREFIX_V6}", v6(addresses.host));
        ip(&["address", "add", &host, "dev", OUTSIDE_LINK, "nodad"])?;
    }
    ip(&["link", "set", OUTSIDE_LINK, "up"])?;
    if nodes > 1 {
        plug_in(FIRST_PORT)?;
    }
    let outside_world = Ends {
        link: FAR_LINK,
        address: addresses.outside,
        gateway: addresses.host,
        dual_stack,
    };
    configure(OUTSIDE_NETNS, &outside_world)?;
    for node in layout::nodes(nodes) {
        let Some(netns) = node.netns() else { continue };
        let port = format!("port{}", node.number());
        ip(&["netns", "add", &netns])?;
        ip(&[
            "-n",
            &netns,
            "link",
            "add",
            NODE_LINK,
            "type",
            "veth",
            "peer",
            "name",
            &port,
            "netns",
            OUTSIDE_NETNS,
        ])?;
        plug_in(&port)?;
        let node = Ends {
            link: NODE_LINK,
            address: addresses.node(node),
            ..outside_world
        };
        configure(&netns, &node)?;
    }
    Ok(())
}

/// Makes an interface in the outside a port of the bridge.
fn plug_in(port: &str) -> Result<()> {
    outside(&["link", "set", port, "master", FAR_LINK, "up"])
}

/// What a namespace has of the segment.
#[derive(Clone, Copy)]
struct Ends<'a> {
    link: &'a str,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
    dual_stack: bool,
}

/// Gives a namespace its loopback, its addresses and its way to everywhere else.
fn configure(netns: &str, ends: &Ends<'_>) -> Result<()> {
    let inside = |arguments: &[&str]| ip(&[&["-n", netns], arguments].concat());
    let link = ends.link;
    let address = format!("{}/{PREFIX}", ends.address);
    inside(&["link", "set", "lo", "up"])?;
    inside(&["address", "add", &address, "dev", link])?;
    inside(&["link", "set", link, "up"])?;
    let gateway = ends.gateway.to_string();
    inside(&["route", "add", "default", "via", &gateway])?;
    if ends.dual_stack {
        // The addresses are known to be nobody else's; looking for them would take a second.
        let address = format!("{}/{PREFIX_V6}", v6(ends.address));
        let gateway = v6(ends.gateway).to_string();
        inside(&["address", "add", &address, "dev", link, "nodad"])?;
        inside(&["-6", "route", "add", "default", "via", &gateway])?;
    }
    Ok(())
}

fn outside(arguments: &[&str]) -> Result<()> {
    ip(&[&["-n", OUTSIDE_NETNS], arguments].concat())
}

/// Removes what is there; that nothing is there is no error.
pub fn remove() {
    // The pair lives in the namespace too, but that is taken apart in the background: the host's end would
    // still be there for a moment after the namespace's name is gone.
    process::succeeds(Command::new("ip").args(["link", "delete", OUTSIDE_LINK]));
    for netns in existing() {
        process::succeeds(Command::new("ip").args(["netns", "delete", &netns]));
    }
    let unused = fs::read_dir(NETNS_FOLDER).is_ok_and(|mut entries| entries.next().is_none());
    if unused && mark().exists() {
        umount2(NETNS_FOLDER, MntFlags::empty()).ok();
        fs::remove_file(mark()).ok();
    }
}

/// Our namespaces that have their names.
pub fn existing() -> Vec<String> {
    let nodes = layout::all_nodes().filter_map(NodeLayout::netns);
    std::iter::once(OUTSIDE_NETNS.to_owned())
        .chain(nodes)
        .filter(|netns| Path::new(NETNS_FOLDER).join(netns).exists())
        .collect()
}

/// Stands while it was `up` that made the folder a mount point.
fn mark() -> PathBuf {
    layout::run().join("mounted-netns")
}

/// Whether something is mounted right on the folder.
pub fn is_mount_point(folder: &Path) -> bool {
    let real = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| {
        let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        points.any(|point| Path::new(&unescape(point)) == real)
    })
}

fn ip(arguments: &[&str]) -> Result<()> {
    process::output(Command::new("ip").args(arguments))
        .map(drop)
        .context("could not make the namespaces of the outside and the nodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_an_address_of_its_own() {
        let addresses = Addresses {
            host: Ipv4Addr::new(198, 51, 100, 1),
            outside: Ipv4Addr::new(198, 51, 100, 2),
        };
        let mut all: Vec<Ipv4Addr> = layout::all_nodes()
            .map(|node| addresses.node(node))
            .chain([addresses.outside])
            .collect();
        assert_eq!(all[0], addresses.host);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), layout::MOST_NODES + 1);
    }

    #[test]
    fn a_network_is_used_when_an_interface_has_an_address_in_it() {
        let shown = r#"[{"ifname":"eth0","addr_info":[{"local":"192.0.2.7","prefixlen":24}]}]"#;
        assert!(is_used([192, 0, 2], shown));
        assert!(!is_used([192, 0, 20], shown));
        assert!(!is_used([198, 51, 100], shown));
    }
}
