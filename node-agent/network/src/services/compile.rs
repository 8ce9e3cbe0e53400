//! From a Service and its slices to what the datapath must offer: pure, one Service at a
//! time, so that a change costs only what changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use windlass_datapath::types::{Addr, BackendValue, ServiceKey};

use super::parse::{EndpointSpec, PortSpec, ServiceName, ServiceSpec, SliceSpec};

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
    pub port: String,
    pub protocol: u8,
    pub is_v4: bool,
    pub policy: Policy,
}

/// What an endpoint may do, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointState {
    /// Listed, but not serving: what TCP connections it has may go on.
    Known,
    /// Terminating and serving while others are ready: keeps its conversations.
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
    pub frontends: BTreeSet<ServiceKey>,
    pub endpoints: BTreeMap<BackendValue, EndpointState>,
    pub affinity_seconds: u32,
}

/// Compiles one Service. Ports without any frontend are left out; ports without endpoints
/// are not: their clients must be refused, not forgotten.
pub fn compile(
    name: &ServiceName,
    service: &ServiceSpec,
    slices: &[&SliceSpec],
) -> Vec<DesiredPort> {
    let mut compiled = Vec::new();
    for port in &service.ports {
        for is_v4 in [true, false] {
            for policy in [Policy::Cluster, Policy::Local] {
                let frontends = frontends(service, port, is_v4, policy);
                if frontends.is_empty() {
                    continue;
                }
                compiled.push(DesiredPort {
                    key: PortKey {
                        service: name.clone(),
                        port: port.name.clone(),
                        protocol: port.protocol,
                        is_v4,
                        policy,
                    },
                    frontends,
                    endpoints: endpoints(port, slices, is_v4, policy),
                    affinity_seconds: service.affinity_seconds,
                });
            }
        }
    }
    compiled
}

fn frontends(
    service: &ServiceSpec,
    port: &PortSpec,
    is_v4: bool,
    policy: Policy,
) -> BTreeSet<ServiceKey> {
    let of_family = |ip: &&IpAddr| ip.is_ipv4() == is_v4;
    let key = |ip: &IpAddr| ServiceKey::new(Addr::from(*ip), port.port, port.protocol);
    let mut keys = BTreeSet::new();
    if (policy == Policy::Local) == service.internal_local {
        keys.extend(service.cluster_ips.iter().filter(of_family).map(key));
    }
    if (policy == Policy::Local) == service.external_local {
        keys.extend(service.external_ips.iter().filter(of_family).map(key));
        let has_family = service.cluster_ips.iter().any(|ip| of_family(&ip));
        if let Some(node_port) = port.node_port.filter(|_| has_family) {
            keys.insert(ServiceKey::node_port(is_v4, node_port, port.protocol));
        }
    }
    keys
}

/// The endpoints of one port with what each may do. Upstream's rule (KEP-1669): the ready
/// ones serve; when there is none, those that are terminating but still serving do.
fn endpoints(
    port: &PortSpec,
    slices: &[&SliceSpec],
    is_v4: bool,
    policy: Policy,
) -> BTreeMap<BackendValue, EndpointState> {
    let mut found: BTreeMap<BackendValue, EndpointState> = BTreeMap::new();
    for slice in slices {
        for (_, _, target) in slice
            .ports
            .iter()
            .filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol)
        {
            let eligible = slice.endpoints.iter().filter(|endpoint| {
                endpoint.address.is_ipv4() == is_v4
                    && (policy == Policy::Cluster || endpoint.on_this_node)
            });
            for endpoint in eligible {
                let backend =
                    BackendValue::new(Addr::from(endpoint.address), *target, port.protocol);
                let state = state(endpoint);
                // Two slices may list one endpoint while it moves: the better word counts.
                let held = found.entry(backend).or_insert(state);
                *held = state.max(*held);
            }
        }
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
    use windlass_datapath::types::protocol::TCP;

    fn service() -> ServiceSpec {
        ServiceSpec {
            cluster_ips: ["10.96.0.1".parse().unwrap()].into(),
            ports: vec![PortSpec {
                name: "http".into(),
                port: 80,
                protocol: TCP,
                node_port: Some(30_080),
            }],
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
            })
            .collect();
        SliceSpec {
            ports: vec![("http".into(), TCP, 8080)],
            endpoints,
        }
    }

    fn states(service: &ServiceSpec, slices: &[&SliceSpec], policy: Policy) -> String {
        let compiled = compile(&ServiceName::new("d", "web"), service, slices);
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
        let compiled = compile(&ServiceName::new("d", "web"), &spec, &[]);
        let summary: Vec<_> = compiled
            .iter()
            .map(|port| (port.key.is_v4, port.key.policy, port.frontends.len()))
            .collect();
        assert_eq!(
            summary,
            [
                (true, Policy::Cluster, 1),
                (true, Policy::Local, 2),
                (false, Policy::Cluster, 1),
                (false, Policy::Local, 1),
            ]
        );
    }
}
