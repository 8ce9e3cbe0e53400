//! A Service, as far as packets are concerned.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;

use super::{
    is_excluded,
    text::{parse_address, parse_network, parse_protocol},
};

/// The loadBalancerClass of balancers that the nodes themselves are; none at all is as well.
const OWN_CLASS: &str = "windlass.dev/pool";

/// How clients inside the cluster choose a backend.
const BALANCING: &str = "windlass.dev/load-balancing";

/// Session affinity without a timeout lasts three hours, as the API defaults it.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// How clients inside the cluster choose a backend for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balancing {
    #[default]
    Random,
    RoundRobin,
    LeastConnections,
    /// By the client's address, as clients outside do by their flow.
    Maglev,
}

impl Balancing {
    /// What an annotation says. `Err`: nothing that is known.
    pub(in crate::services) fn of(service: &Service) -> Result<Self, String> {
        let annotations = service.metadata.annotations.as_ref();
        match annotations
            .and_then(|annotations| annotations.get(BALANCING))
            .map(String::as_str)
        {
            None | Some("random") => Ok(Self::Random),
            Some("round-robin") => Ok(Self::RoundRobin),
            Some("least-connections") => Ok(Self::LeastConnections),
            Some("maglev") => Ok(Self::Maglev),
            Some(other) => Err(format!(
                "{BALANCING}: {other:?} is none of random, round-robin, least-connections, maglev; it is random"
            )),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSpec {
    pub cluster_ips: Box<[IpAddr]>,
    pub external_ips: Box<[IpAddr]>,
    /// The balancer's addresses whose traffic reaches the node as it is (ipMode `VIP`).
    pub load_balancer_ips: Box<[IpAddr]>,
    /// Its class does not make the balancer's addresses somebody else's.
    pub own_balancer: bool,
    /// Who may dial the balancer's addresses; nobody is listed: everyone.
    pub source_ranges: Box<[IpNet]>,
    /// Where a balancer asks whether this node has endpoints.
    pub health_check_port: Option<u16>,
    pub ports: Box<[PortSpec]>,
    /// internalTrafficPolicy: Local
    pub internal_local: bool,
    /// externalTrafficPolicy: Local
    pub external_local: bool,
    /// 0: no session affinity.
    pub affinity_seconds: u32,
    pub balancing: Balancing,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSpec {
    pub name: Arc<str>,
    pub port: u16,
    pub protocol: u8,
    pub node_port: Option<u16>,
}

impl ServiceSpec {
    /// `None`: nothing for a proxy to do (headless, ExternalName, another proxy's).
    pub fn parse(service: &Service) -> Option<Self> {
        if is_excluded(service.metadata.labels.as_ref()) {
            return None;
        }
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let cluster_ips: Box<[IpAddr]> = sorted(listed.filter_map(|ip| parse_address(ip)));
        if cluster_ips.is_empty() {
            return None;
        }
        let ingress = service
            .status
            .iter()
            .flat_map(|status| &status.load_balancer)
            .flat_map(|balancer| balancer.ingress.iter().flatten())
            // Proxy: the balancer wants to see the traffic itself (KEP-1860).
            .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
        let load_balancer_ips =
            sorted(ingress.filter_map(|ingress| parse_address(ingress.ip.as_ref()?)));
        let external = spec.external_ips.iter().flatten();
        let external_ips: Box<[IpAddr]> = sorted(external.filter_map(|ip| parse_address(ip)));
        let kind = spec.type_.as_deref();
        // The API server lets white space around a range pass.
        let ranges = spec.load_balancer_source_ranges.iter().flatten();
        let source_ranges = sorted(
            ranges
                .filter_map(|range| parse_network(range.trim()))
                .map(|range| range.trunc()),
        );
        let external_local = spec.external_traffic_policy.as_deref() == Some("Local")
            && (matches!(kind, Some("NodePort" | "LoadBalancer")) || !external_ips.is_empty());
        let health_check_port = spec
            .health_check_node_port
            .filter(|_| external_local && kind == Some("LoadBalancer"))
            .and_then(|port| port.try_into().ok())
            .filter(|port| *port != 0);
        let affinity_seconds = if spec.session_affinity.as_deref() == Some("ClientIP") {
            spec.session_affinity_config
                .as_ref()
                .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
                .and_then(|seconds| seconds.try_into().ok())
                .unwrap_or(DEFAULT_AFFINITY_SECONDS)
        } else {
            0
        };
        let ports = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some(PortSpec {
                    name: port.name.as_deref().unwrap_or_default().into(),
                    port: port.port.try_into().ok()?,
                    protocol: parse_protocol(port.protocol.as_deref())?,
                    node_port: port
                        .node_port
                        .and_then(|port| port.try_into().ok())
                        .filter(|port| *port != 0),
                })
            })
            .collect();
        Some(Self {
            cluster_ips,
            external_ips,
            load_balancer_ips,
            own_balancer: kind == Some("LoadBalancer")
                && spec
                    .load_balancer_class
                    .as_deref()
                    .is_none_or(|class| class == OWN_CLASS),
            source_ranges,
            health_check_port,
            ports,
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local,
            affinity_seconds,
            balancing: Balancing::of(service).unwrap_or_default(),
        })
    }
}

/// In order, each once, and in no more memory than that takes.
fn sorted<T: Ord>(values: impl Iterator<Item = T>) -> Box<[T]> {
    values.collect::<BTreeSet<T>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use windlass_datapath::types::protocol;

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_service_without_a_virtual_address_is_not_ours() {
        for spec in [
            json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}),
            json!({"type": "ExternalName", "externalName": "example.com"}),
            json!({"ports": [{"port": 80}]}),
        ] {
            assert_eq!(ServiceSpec::parse(&service(spec)), None);
        }
    }

    #[test]
    fn defaults_are_those_of_the_api() {
        let parsed = ServiceSpec::parse(&service(json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "type": "NodePort", "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
            "ports": [{"port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 0}],
        })))
        .unwrap();
        assert_eq!(parsed.cluster_ips.len(), 2);
        assert_eq!(parsed.affinity_seconds, 10_800);
        assert!(parsed.external_local && !parsed.internal_local);
        assert_eq!(parsed.ports[0].protocol, protocol::TCP);
        assert_eq!(parsed.ports[0].node_port, Some(30_080));
        assert_eq!(
            (parsed.ports[1].protocol, parsed.ports[1].node_port),
            (protocol::UDP, None)
        );
    }

    #[test]
    fn a_way_of_balancing_is_read_and_an_unknown_one_is_random() {
        for (text, expected) in [
            (None, Ok(Balancing::Random)),
            (Some("round-robin"), Ok(Balancing::RoundRobin)),
            (Some("least-connections"), Ok(Balancing::LeastConnections)),
            (Some("maglev"), Ok(Balancing::Maglev)),
            (Some("Round Robin"), Err(())),
        ] {
            let mut annotated = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
            annotated.metadata.annotations =
                text.map(|text| [(BALANCING.to_owned(), text.to_owned())].into());
            let spec = ServiceSpec::parse(&annotated).unwrap();
            assert_eq!(spec.balancing, expected.unwrap_or_default());
            assert_eq!(Balancing::of(&annotated).map_err(drop), expected);
        }
    }

    #[test]
    fn a_balancers_addresses_ranges_and_health_check_are_read() {
        let parse = |kind: &str, policy: &str| {
            let mut service = service(json!({
                "type": kind, "clusterIP": "10.96.0.1", "externalIPs": ["203.0.113.9"],
                "externalTrafficPolicy": policy, "healthCheckNodePort": 31_000,
                "loadBalancerSourceRanges": [" 198.51.100.7/24 ", "fd00::/8", "nonsense"],
                "ports": [{"port": 80}],
            }));
            service.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
                {"ip": "203.0.113.1", "ipMode": "VIP"}, {"ip": "203.0.113.2", "ipMode": "Proxy"},
                {"ip": "203.0.113.3"}, {"hostname": "lb.example"},
            ]}}))
            .unwrap();
            ServiceSpec::parse(&service).unwrap()
        };
        let spec = parse("LoadBalancer", "Local");
        let ips: Vec<String> = spec
            .load_balancer_ips
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(ips, ["203.0.113.1", "203.0.113.3"]);
        assert_eq!(spec.external_ips.len(), 1);
        let ranges: Vec<String> = spec.source_ranges.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["198.51.100.0/24", "fd00::/8"]);
        assert_eq!(spec.health_check_port, Some(31_000));
        assert_eq!(parse("LoadBalancer", "Cluster").health_check_port, None);
        assert_eq!(parse("NodePort", "Local").health_check_port, None);
        assert!(spec.own_balancer && !parse("NodePort", "Local").own_balancer);
    }
}
