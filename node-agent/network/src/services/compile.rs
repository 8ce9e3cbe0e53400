//! From a Service and its slices to what the datapath must offer: pure, one Service at a
//! time, so that a change costs only what changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use windlass_datapath::types::{Addr, BackendValue, ServiceKey, service_flags};

use super::{
    parse::{Balancing, EndpointSpec, PortSpec, ServiceName, ServiceSpec, SliceSpec},
    topology::Topology,
};

/// Which endpoints a frontend chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Policy {
    /// Every node's.
    Cluster,
    /// Only this node's (internalTrafficPolicy and externalTrafficPolicy `Local`).
    Local,
}

/// The identity of one set of endpoints: what has a service id in the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    pub service: ServiceName,
    pub port: Arc<str>,
    pub protocol: u8,
    pub is_v4: bool,
    pub policy: Policy,
}

/// What an endpoint may do, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointState {
    /// Listed, but not serving: what TCP connections it has may go on.
    Known,
    /// Terminating and serving while others are ready, or ready but meant for clients of
    /// other nodes or zones: keeps its conversations.
    Draining,
    /// Terminating and serving, and there is none that is ready: gets new connections.
    Fallback,
    /// Gets new connections.
    Ready,
}

/// One set of endpoints and the addresses that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPort {
    pub key: PortKey,
    /// Each with its bits of [`service_flags`].
    pub frontends: BTreeMap<ServiceKey, u32>,
    pub endpoints: BTreeMap<BackendValue, EndpointState>,
    /// Addresses of this node's endpoints that are in a slot because they are ready.
    pub ready_here: BTreeSet<IpAddr>,
    pub affinity_seconds: u32,
    /// Who may dial the frontends that say `SOURCE_RANGES`.
    pub source_ranges: BTreeSet<IpNet>,
    /// Clients outside choose by a Maglev table.
    pub hashed: bool,
}

impl DesiredPort {
    /// Clients get no answer at all: there are endpoints, but on other nodes.
    pub fn is_silent(&self) -> bool {
        self.frontends
            .values()
            .any(|flags| flags & service_flags::DROP_EMPTY != 0)
            && !self
                .endpoints
                .values()
                .any(|state| *state >= EndpointState::Fallback)
    }
}

/// Compiles one Service for a node in `zone`. Ports without any frontend are left out; ports
/// without endpoints are not: their clients must be refused, not forgotten.
pub fn compile(
    name: &ServiceName,
    service: &ServiceSpec,
    slices: &[&SliceSpec],
    zone: Option<&str>,
) -> Vec<DesiredPort> {
    let mut compiled = Vec::new();
    for (number, port) in service.ports.iter().enumerate() {
        for is_v4 in [true, false] {
            let listed = Listed::new(port, slices, is_v4);
            for policy in [Policy::Local, Policy::Cluster] {
                let mut frontends =
                    frontends(service, port, is_v4, policy, listed.serves_anywhere());
                // Of all ports one says it.
                if number == 0 && service.internal_local == (policy == Policy::Local) {
                    frontends.extend(other_ports(service, is_v4));
                }
                if frontends.is_empty() {
                    continue;
                }
                let endpoints = listed.endpoints(policy, zone);
                compiled.push(DesiredPort {
                    key: PortKey {
                        service: name.clone(),
                        port: port.name.clone(),
                        protocol: port.protocol,
                        is_v4,
                        policy,
                    },
                    ready_here: listed.ready_here(&endpoints),
                    endpoints,
                    affinity_seconds: service.affinity_seconds,
                    source_ranges: source_ranges(service, is_v4),
                    hashed: service.balancing == Balancing::Maglev
                        || is_reachable_from_outside(&frontends, service),
                    frontends,
                });
            }
        }
    }
    compiled
}

/// Upstream's rules, for addresses that clients outside dial as well: with
/// externalTrafficPolicy `Local`, those clients get local endpoints, but pods and the node
/// itself all of them, since their source needs no preserving.
fn frontends(
    service: &ServiceSpec,
    port: &PortSpec,
    is_v4: bool,
    policy: Policy,
    serves_anywhere: bool,
) -> BTreeMap<ServiceKey, u32> {
    let of_family = |ip: &&IpAddr| ip.is_ipv4() == is_v4;
    let key = |ip: &IpAddr| ServiceKey::new(Addr::from(*ip), port.port, port.protocol);
    let local = policy == Policy::Local;
    // A node without endpoints is silent where another has some, so that a client or a
    // balancer tries that one.
    let base = if local && serves_anywhere {
        service_flags::DROP_EMPTY
    } else {
        0
    };
    let balancing = match service.balancing {
        Balancing::Random => 0,
        Balancing::RoundRobin => service_flags::ROUND_ROBIN,
        Balancing::LeastConnections => service_flags::LEAST_CONNECTIONS,
        Balancing::Maglev => service_flags::BY_CLIENT,
    };
    let mut found = BTreeMap::new();
    if local == service.internal_local {
        let ips = service.cluster_ips.iter().filter(of_family);
        found.extend(ips.map(|ip| (key(ip), base | balancing)));
    }
    if local && !service.external_local {
        return found;
    }
    let ranged = match source_ranges(service, is_v4).is_empty() {
        true => 0,
        false => service_flags::SOURCE_RANGES,
    };
    let balanced = service.load_balancer_ips.iter().filter(of_family);
    let external = service.external_ips.iter().filter(of_family);
    let has_family = service.cluster_ips.iter().any(|ip| of_family(&ip));
    let node_port = port
        .node_port
        .filter(|_| has_family)
        .map(|node_port| ServiceKey::node_port(is_v4, node_port, port.protocol));
    let outer = external
        .map(|ip| (key(ip), 0))
        .chain(balanced.map(|ip| (key(ip), ranged)))
        .chain(node_port.map(|key| (key, 0)));
    for (key, flags) in outer {
        let flags = flags | balancing;
        if local {
            found.insert(key.outside(), base | flags);
        } else if service.external_local {
            found.insert(key, flags | service_flags::OUTSIDE_APART);
        } else {
            found.insert(key, flags);
        }
    }
    found
}

/// What is refused: to everyone at the cluster's addresses, to clients outside at a balancer's, of which the nodes may
/// not be all that there is.
fn other_ports(service: &ServiceSpec, is_v4: bool) -> impl Iterator<Item = (ServiceKey, u32)> {
    let others = |ip: &IpAddr| ServiceKey::other_ports(Addr::from(*ip));
    let own = service.cluster_ips.iter();
    let balanced = service.load_balancer_ips.iter();
    own.map(move |ip| (ip, others(ip)))
        .chain(balanced.map(move |ip| (ip, others(ip).outside())))
        .filter(move |(ip, _)| ip.is_ipv4() == is_v4)
        .map(|(_, key)| (key, 0))
}

fn source_ranges(service: &ServiceSpec, is_v4: bool) -> BTreeSet<IpNet> {
    let ranges = service.source_ranges.iter().copied();
    ranges
        .filter(|range| range.addr().is_ipv4() == is_v4)
        .collect()
}

fn is_reachable_from_outside(frontends: &BTreeMap<ServiceKey, u32>, service: &ServiceSpec) -> bool {
    let mut dialled = frontends.iter().filter(|(key, _)| !key.is_other_ports());
    dialled.any(|(key, flags)| {
        // Where the outside has a set apart, this one is not for it.
        flags & service_flags::OUTSIDE_APART == 0
            && !service.cluster_ips.contains(&key.addr.to_ip())
    })
}

/// What the slices list for one port in one family.
struct Listed<'a> {
    endpoints: Vec<(BackendValue, &'a EndpointSpec)>,
}

impl<'a> Listed<'a> {
    fn new(port: &PortSpec, slices: &[&'a SliceSpec], is_v4: bool) -> Self {
        let mut endpoints = Vec::new();
        for slice in slices {
            let targets = slice
                .ports
                .iter()
                .filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
            for (_, _, target) in targets {
                for endpoint in &slice.endpoints {
                    if endpoint.address.is_ipv4() == is_v4 {
                        let address = Addr::from(endpoint.address);
                        let backend = BackendValue::new(address, *target, port.protocol);
                        endpoints.push((backend, endpoint));
                    }
                }
            }
        }
        Self { endpoints }
    }

    fn ready_here(&self, endpoints: &BTreeMap<BackendValue, EndpointState>) -> BTreeSet<IpAddr> {
        let here = self.endpoints.iter().filter(|(_, it)| it.on_this_node);
        here.filter(|(backend, _)| endpoints.get(backend) == Some(&EndpointState::Ready))
            .map(|(_, endpoint)| endpoint.address)
            .collect()
    }

    /// Whether a client on some node is served.
    fn serves_anywhere(&self) -> bool {
        self.endpoints
            .iter()
            .any(|(_, endpoint)| state(endpoint) >= EndpointState::Draining)
    }

    /// What each endpoint may do. Upstream's rule (KEP-1669): the ready ones serve; when
    /// there is none, those that are terminating but still serving do.
    fn endpoints(
        &self,
        policy: Policy,
        zone: Option<&str>,
    ) -> BTreeMap<BackendValue, EndpointState> {
        let all = self.endpoints.iter().map(|(_, endpoint)| *endpoint);
        let topology = match policy {
            Policy::Cluster => Topology::of(all, zone),
            Policy::Local => Topology::All,
        };
        let mut found: BTreeMap<BackendValue, EndpointState> = BTreeMap::new();
        for (backend, endpoint) in &self.endpoints {
            if policy == Policy::Local && !endpoint.on_this_node {
                continue;
            }
            let state = match state(endpoint) {
                // Meant for others: what it has from here it keeps.
                EndpointState::Ready if !topology.admits(endpoint) => EndpointState::Draining,
                state => state,
            };
            // Two slices may list one endpoint while it moves: the better word counts.
            let held = found.entry(*backend).or_insert(state);
            *held = state.max(*held);
        }
        if !found.values().any(|state| *state == EndpointState::Ready) {
            for state in found
                .values_mut()
                .filter(|state| **state == EndpointState::Draining)
            {
                *state = EndpointState::Fallback;
            }
        }
        found
    }
}

fn state(endpoint: &EndpointSpec) -> EndpointState {
    match endpoint {
        // Ready although terminating: publishNotReadyAddresses.
        EndpointSpec { ready: true, .. } => EndpointState::Ready,
        EndpointSpec {
            serving: true,
            terminating: true,
            ..
        } => EndpointState::Draining,
        _ => EndpointState::Known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::parse::NodeHint;
    use windlass_datapath::types::protocol::TCP;

    fn service() -> ServiceSpec {
        ServiceSpec {
            cluster_ips: ["10.96.0.1".parse().unwrap()].into(),
            ports: [PortSpec {
                name: "http".into(),
                port: 80,
                protocol: TCP,
                node_port: Some(30_080),
            }]
            .into(),
            ..Default::default()
        }
    }

    /// `r`eady, `t`erminating and serving, `d`ead (terminating, not serving), `n`ot ready;
    /// upper case: on this node.
    fn slice(states: &str) -> SliceSpec {
        let endpoints = states
            .chars()
            .zip(1..)
            .map(|(state, number): (char, u8)| EndpointSpec {
                address: [10, 0, 0, number].into(),
                on_this_node: state.is_uppercase(),
                ready: state.eq_ignore_ascii_case(&'r'),
                serving: "rt".contains(state.to_ascii_lowercase()),
                terminating: "td".contains(state.to_ascii_lowercase()),
                node_hint: NodeHint::Absent,
                zone_hints: None,
            })
            .collect();
        SliceSpec {
            ports: [("http".into(), TCP, 8080)].into(),
            endpoints,
        }
    }

    fn states(service: &ServiceSpec, slices: &[&SliceSpec], policy: Policy) -> String {
        let compiled = compile(&ServiceName::new("d", "web"), service, slices, None);
        let port = compiled
            .iter()
            .find(|port| port.key.policy == policy)
            .unwrap();
        port.endpoints
            .iter()
            .map(|(backend, state)| {
                let letter = match state {
                    EndpointState::Ready => 'R',
                    EndpointState::Fallback => 'F',
                    EndpointState::Draining => 'D',
                    EndpointState::Known => 'K',
                };
                format!("{}{letter} ", backend.addr.octets()[15])
            })
            .collect()
    }

    #[test]
    fn ready_endpoints_serve_and_terminating_ones_are_the_fallback() {
        for (given, expected) in [
            ("rr", "1R 2R "),
            ("rtnd", "1R 2D 3K 4K "),
            ("ttd", "1F 2F 3K "),
            ("nd", "1K 2K "),
            ("", ""),
        ] {
            assert_eq!(
                states(&service(), &[&slice(given)], Policy::Cluster),
                expected,
                "{given}"
            );
        }
    }

    #[test]
    fn a_local_policy_sees_this_nodes_endpoints_and_falls_back_among_them() {
        let service = ServiceSpec {
            external_local: true,
            ..service()
        };
        for (given, expected) in [("rR", "2R "), ("rT", "2F "), ("rN", "2K "), ("r", "")] {
            assert_eq!(
                states(&service, &[&slice(given)], Policy::Local),
                expected,
                "{given}"
            );
            assert!(states(&service, &[&slice(given)], Policy::Cluster).starts_with("1R"));
        }
    }

    #[test]
    fn an_endpoint_in_two_slices_counts_once_with_the_better_state() {
        assert_eq!(
            states(&service(), &[&slice("n"), &slice("r")], Policy::Cluster),
            "1R "
        );
    }

    #[test]
    fn frontends_follow_their_own_policy() {
        let spec = ServiceSpec {
            cluster_ips: ["10.96.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into(),
            external_ips: ["203.0.113.1".parse().unwrap()].into(),
            external_local: true,
            ..service()
        };
        let compiled = compile(&ServiceName::new("d", "web"), &spec, &[], None);
        let summary: Vec<_> = compiled
            .iter()
            .map(|port| (port.key.is_v4, port.key.policy, port.frontends.len()))
            .collect();
        assert_eq!(
            summary,
            [
                (true, Policy::Local, 2),
                (true, Policy::Cluster, 4),
                (false, Policy::Local, 1),
                (false, Policy::Cluster, 3),
            ]
        );
    }

    #[test]
    fn with_a_local_policy_pods_get_all_endpoints_and_the_outside_local_ones() {
        let spec = ServiceSpec {
            external_local: true,
            load_balancer_ips: ["203.0.113.1".parse().unwrap()].into(),
            source_ranges: ["198.51.100.0/24".parse().unwrap()].into(),
            ..service()
        };
        let slice = slice("r");
        let compiled = compile(&ServiceName::new("d", "web"), &spec, &[&slice], None);
        let balanced = ServiceKey::new(Addr::v4([203, 0, 113, 1]), 80, TCP);
        let (local, cluster) = (&compiled[0], &compiled[1]);
        assert_eq!(
            cluster.frontends[&balanced],
            service_flags::OUTSIDE_APART | service_flags::SOURCE_RANGES
        );
        assert_eq!(
            local.frontends[&balanced.outside()],
            service_flags::DROP_EMPTY | service_flags::SOURCE_RANGES,
            "another node serves: this one is silent"
        );
        let node_port = ServiceKey::node_port(true, 30_080, TCP);
        assert_eq!(cluster.frontends[&node_port], service_flags::OUTSIDE_APART);
        assert!(local.hashed && !cluster.hashed);
        assert_eq!((local.endpoints.len(), cluster.endpoints.len()), (0, 1));
        let nowhere = compile(&ServiceName::new("d", "web"), &spec, &[], None);
        assert_eq!(
            nowhere[0].frontends[&balanced.outside()],
            service_flags::SOURCE_RANGES,
            "nobody serves: refused at once"
        );
    }
}
