//! The parts of a Service and an EndpointSlice that decide where packets go, in a compact
//! form: it is kept for every object, while the objects themselves are dropped.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::{Endpoint, EndpointSlice},
};
use windlass_datapath::types::protocol;

/// Label by which a Service asks for another proxy (the upstream name of the label).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Label that names the Service of a slice.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Session affinity without a timeout lasts three hours, as the API defaults it.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl ServiceName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSpec {
    pub cluster_ips: BTreeSet<IpAddr>,
    /// External IPs and LoadBalancer addresses.
    pub external_ips: BTreeSet<IpAddr>,
    pub ports: Vec<PortSpec>,
    /// internalTrafficPolicy: Local
    pub internal_local: bool,
    /// externalTrafficPolicy: Local
    pub external_local: bool,
    /// 0: no session affinity.
    pub affinity_seconds: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSpec {
    pub name: String,
    pub port: u16,
    pub protocol: u8,
    pub node_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceSpec {
    /// (name, protocol, port)
    pub ports: Vec<(String, u8, u16)>,
    pub endpoints: Vec<EndpointSpec>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    pub address: IpAddr,
    pub on_this_node: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

impl ServiceSpec {
    /// `None`: nothing for a proxy to do (headless, ExternalName, another proxy's).
    pub fn parse(service: &Service) -> Option<Self> {
        let labels = service.metadata.labels.as_ref();
        if labels.is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL)) {
            return None;
        }
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let cluster_ips: BTreeSet<IpAddr> = listed.filter_map(|ip| ip.parse().ok()).collect();
        if cluster_ips.is_empty() {
            return None;
        }
        let ingress = service
            .status
            .iter()
            .flat_map(|status| &status.load_balancer)
            .flat_map(|balancer| balancer.ingress.iter().flatten())
            // Proxy: the balancer wants to see the traffic itself (KEP-1860).
            .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|ingress| ingress.ip.as_ref());
        let external_ips = spec
            .external_ips
            .iter()
            .flatten()
            .chain(ingress)
            .filter_map(|ip| ip.parse().ok())
            .collect();
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
                    name: port.name.clone().unwrap_or_default(),
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
            ports,
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            affinity_seconds,
        })
    }
}

impl SliceSpec {
    /// The Service that the slice belongs to.
    pub fn service_of(slice: &EndpointSlice) -> Option<ServiceName> {
        let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
        let namespace = slice.metadata.namespace.clone().unwrap_or_default();
        (!name.is_empty()).then(|| ServiceName::new(namespace, name))
    }

    /// `node` is this node's name.
    pub fn parse(slice: &EndpointSlice, node: &str) -> Self {
        let ports = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some((
                    port.name.clone().unwrap_or_default(),
                    parse_protocol(port.protocol.as_deref())?,
                    // No port means "all ports", which a proxy of ports cannot serve.
                    port.port?.try_into().ok()?,
                ))
            })
            .collect();
        let endpoints = slice
            .endpoints
            .iter()
            .flat_map(|endpoint| parse_endpoint(endpoint, node))
            .filter(|endpoint| {
                let refused = is_unfit(endpoint.address);
                if refused {
                    tracing::warn!(
                        namespace = slice.metadata.namespace,
                        slice = slice.metadata.name,
                        address = %endpoint.address,
                        "endpoint address refused"
                    );
                }
                !refused
            })
            .collect();
        Self { ports, endpoints }
    }
}

/// An endpoint's addresses are interchangeable; the first one is used (field doc).
fn parse_endpoint(endpoint: &Endpoint, node: &str) -> Option<EndpointSpec> {
    let address = endpoint.addresses.first()?.parse().ok()?;
    let conditions = endpoint.conditions.as_ref();
    // "nil … should be interpreted as true" for ready; serving follows ready; terminating
    // is false (field docs of EndpointConditions).
    let ready = conditions
        .and_then(|conditions| conditions.ready)
        .unwrap_or(true);
    Some(EndpointSpec {
        address,
        on_this_node: endpoint.node_name.as_deref() == Some(node),
        ready,
        serving: conditions
            .and_then(|conditions| conditions.serving)
            .unwrap_or(ready),
        terminating: conditions
            .and_then(|conditions| conditions.terminating)
            .unwrap_or(false),
    })
}

/// Addresses that would make the node talk to itself or to nobody: whoever may write a
/// slice must not reach what listens on a node's loopback.
fn is_unfit(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local
}

fn parse_protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(protocol::TCP),
        "UDP" => Some(protocol::UDP),
        "SCTP" => Some(protocol::SCTP),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
            "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
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
    fn missing_conditions_mean_ready_and_unfit_addresses_are_refused() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "addressType": "IPv4",
            "metadata": {"name": "web-x", "namespace": "d", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "nodeName": "n1"},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["127.0.0.1"]}, {"addresses": ["169.254.169.254"]}, {"addresses": ["::ffff:127.0.0.1"]},
                {"addresses": []}, {"addresses": ["not-an-ip"]},
            ],
        }))
        .unwrap();
        assert_eq!(
            SliceSpec::service_of(&slice),
            Some(ServiceName::new("d", "web"))
        );
        let parsed = SliceSpec::parse(&slice, "n1");
        let summary: Vec<_> = parsed
            .endpoints
            .iter()
            .map(|e| {
                (
                    e.address.to_string(),
                    e.on_this_node,
                    e.ready,
                    e.serving,
                    e.terminating,
                )
            })
            .collect();
        assert_eq!(
            summary,
            [
                ("10.0.0.1".to_owned(), true, true, true, false),
                ("10.0.0.2".to_owned(), false, false, false, false),
                ("10.0.0.3".to_owned(), false, false, true, true),
            ]
        );
    }
}
