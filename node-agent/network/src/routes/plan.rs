//! Which routes there shall be. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Peer, RouterConfig};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// A neighbour on an interface.
    Gateway { address: IpAddr, interface: u32 },
    /// A device that finds its way itself.
    Device { interface: u32 },
    /// Nobody: an address of this node's range that no pod has. Without that, the default route would
    /// send such packets to a gateway, which may send them back here.
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub destination: IpNet,
    pub next: NextHop,
    /// The source of what the host itself sends there.
    pub source: Option<IpAddr>,
    /// Of several routes to one destination the one with the lowest is taken.
    pub metric: u32,
}

/// Another CNI plugin may have the own range on a bridge whose pods still run: the kernel's own route to it stands, and
/// comes first.
const LAST: u32 = 1 << 16;
/// Before what the kernel makes of an IPv6 route without one (1,024), which another CNI plugin may have to the same pods.
const FIRST_V6: u32 = 512;

impl Route {
    /// Whether putting this one replaces the other in one step. The kernel does not replace a route that
    /// leads nowhere by one that leads somewhere.
    pub(super) fn replaces(&self, other: &Self) -> bool {
        let leads = |route: &Self| route.next != NextHop::Unreachable;
        self.destination == other.destination
            && self.metric == other.metric
            && leads(self) == leads(other)
    }
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) routes: Vec<Route>,
    /// Names of nodes that are no neighbours.
    pub(super) out_of_reach: BTreeSet<String>,
}

/// `networks`: the addresses of this node's interfaces with their prefixes, by interface index.
pub(super) fn plan(config: &RouterConfig, peers: &[Peer], networks: &[(u32, IpNet)]) -> Plan {
    let mut plan = Plan::default();
    for peer in peers {
        let is_self = peer.name == config.node_name;
        for cidr in &peer.pod_cidrs {
            let is_v4 = cidr.addr().is_ipv4();
            let next = if is_self {
                Some(NextHop::Unreachable)
            } else {
                next_hop(config, peer, is_v4, networks)
            };
            let Some(next) = next else {
                plan.out_of_reach.insert(peer.name.clone());
                continue;
            };
            let own = config.node_addresses.iter().copied();
            let source = (!is_self).then(|| own.clone().find(|ip| ip.is_ipv4() == is_v4));
            let route = Route {
                destination: *cidr,
                next,
                source: source.flatten(),
                metric: match (is_self, is_v4) {
                    (true, _) => LAST,
                    (false, true) => 0,
                    (false, false) => FIRST_V6,
                },
            };
            // Two Nodes may claim one CIDR for a moment, when a Node was made anew: the first stands.
            let claimed = |held: &Route| held.destination == route.destination;
            if !plan.routes.iter().any(claimed) {
                plan.routes.push(route);
            }
        }
    }
    plan
}

fn next_hop(
    config: &RouterConfig,
    peer: &Peer,
    is_v4: bool,
    networks: &[(u32, IpNet)],
) -> Option<NextHop> {
    if let Some(interface) = config.tunnel {
        // A node without an address cannot be the end of a tunnel.
        peer.address_for(is_v4)?;
        return Some(NextHop::Device { interface });
    }
    let mut addresses = peer.addresses.iter().filter(|ip| ip.is_ipv4() == is_v4);
    addresses.find_map(|address| {
        let shared = networks
            .iter()
            .filter(|(_, network)| network.contains(address) && network.addr() != *address);
        // The narrowest, as the kernel's own lookup would.
        let (interface, _) = shared.max_by_key(|(_, network)| network.prefix_len())?;
        Some(NextHop::Gateway {
            address: *address,
            interface: *interface,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, addresses: &[&str], cidrs: &[&str]) -> Peer {
        Peer {
            name: name.into(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        }
    }

    fn config(tunnel: Option<u32>) -> RouterConfig {
        RouterConfig {
            node_name: "a".into(),
            node_addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            tunnel,
        }
    }

    fn networks() -> Vec<(u32, IpNet)> {
        [
            (1, "127.0.0.1/8"),
            (2, "192.0.2.1/24"),
            (3, "192.0.2.65/26"),
            (2, "2001:db8::1/64"),
        ]
        .map(|(index, net)| (index, net.parse().unwrap()))
        .to_vec()
    }

    fn peers() -> Vec<Peer> {
        vec![
            peer("a", &["192.0.2.1"], &["10.1.0.0/24", "fd00:0::/64"]),
            peer(
                "b",
                &["192.0.2.2", "2001:db8::2"],
                &["10.1.1.0/24", "fd00:1::/64"],
            ),
            peer("c", &["192.0.2.66"], &["10.1.2.0/24"]),
            peer("far", &["198.51.100.9"], &["10.1.3.0/24"]),
            peer("new", &["192.0.2.9"], &[]),
        ]
    }

    #[test]
    fn neighbours_are_gateways_and_others_are_out_of_reach() {
        let plan = plan(&config(None), &peers(), &networks());
        let gateway = |address: &str, interface| NextHop::Gateway {
            address: address.parse().unwrap(),
            interface,
        };
        let found: Vec<(String, NextHop)> = plan
            .routes
            .iter()
            .map(|route| (route.destination.to_string(), route.next))
            .collect();
        assert_eq!(
            found,
            [
                ("10.1.0.0/24".to_owned(), NextHop::Unreachable),
                ("fd00::/64".to_owned(), NextHop::Unreachable),
                ("10.1.1.0/24".to_owned(), gateway("192.0.2.2", 2)),
                ("fd00:1::/64".to_owned(), gateway("2001:db8::2", 2)),
                // Both networks hold it; the narrower one is meant.
                ("10.1.2.0/24".to_owned(), gateway("192.0.2.66", 3)),
            ]
        );
        assert_eq!(plan.routes[0].source, None);
        assert_eq!(plan.routes[2].source, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(plan.routes[3].source, Some("2001:db8::1".parse().unwrap()));
        assert_eq!(plan.out_of_reach, BTreeSet::from(["far".to_owned()]));
    }

    #[test]
    fn a_tunnel_reaches_everyone() {
        let plan = plan(&config(Some(7)), &peers(), &networks());
        assert!(plan.out_of_reach.is_empty());
        let remote = plan.routes.iter().skip(2);
        assert!(
            remote
                .clone()
                .all(|route| route.next == NextHop::Device { interface: 7 })
        );
        assert_eq!(remote.count(), 4);
    }

    #[test]
    fn one_cidr_has_one_route() {
        let twice = [
            peer("b", &["192.0.2.2"], &["10.1.1.0/24"]),
            peer("c", &["192.0.2.3"], &["10.1.1.0/24"]),
        ];
        assert_eq!(plan(&config(None), &twice, &networks()).routes.len(), 1);
    }

    #[test]
    fn a_route_to_nowhere_is_not_replaced_in_place() {
        let route = |next| Route {
            destination: "10.1.1.0/24".parse().unwrap(),
            next,
            source: None,
            metric: 0,
        };
        let device = route(NextHop::Device { interface: 1 });
        assert!(device.replaces(&route(NextHop::Device { interface: 2 })));
        assert!(!device.replaces(&route(NextHop::Unreachable)));
    }
}
