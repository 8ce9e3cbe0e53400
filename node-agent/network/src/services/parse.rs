//! The parts of a Service and an EndpointSlice that decide where packets go, in a compact
//! form: it is kept for every object, while the objects themselves are dropped.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::{Endpoint, EndpointSlice},
};
use windlass_datapath::types::protocol;

/// Label by which a Service asks for another proxy (the upstream name of the label).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// Label of what has no virtual address, whatever else it says.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The same two as a selector: what the watches need not even be sent.
pub(super) const SELECTOR: &str =
    "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
/// Label that names the Service of a slice.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Whose slices the agents' DNS servers are in, by the label that says who manages a slice.
const DNS_MANAGER: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "dns.windlass.dev");

/// The loadBalancerClass of balancers that the nodes themselves are; none at all is as well.
const OWN_CLASS: &str = "windlass.dev/pool";

/// How clients inside the cluster choose a backend.
const BALANCING: &str = "windlass.dev/load-balancing";

/// Session affinity without a timeout lasts three hours, as the API defaults it.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    // Shared: a name stands in many places.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ServiceName {
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
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
    pub(super) fn of(service: &Service) -> Result<Self, String> {
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceSpec {
    /// (name, protocol, port)
    pub ports: Box<[(Arc<str>, u8, u16)]>,
    pub endpoints: Box<[EndpointSpec]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    pub address: IpAddr,
    pub on_this_node: bool,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node_hint: NodeHint,
    /// The zones whose clients it is meant for; `None`: no zone was named.
    pub zone_hints: Option<Arc<ZoneHints>>,
}

/// Names of zones; endpoints of a slice share them, and a thin pointer is what an endpoint has room for.
#[derive(Debug, PartialEq, Eq)]
pub struct ZoneHints(pub Box<[String]>);

/// Whether an endpoint is meant for the clients of this node (trafficDistribution).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeHint {
    #[default]
    Absent,
    ThisNode,
    OtherNodes,
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

impl SliceSpec {
    /// The Service that the slice, of this namespace, belongs to.
    pub fn service_of(slice: &EndpointSlice, namespace: &Arc<str>) -> Option<ServiceName> {
        let labels = slice.metadata.labels.as_ref()?;
        if is_excluded(Some(labels)) {
            return None;
        }
        let name = labels.get(SERVICE_NAME_LABEL)?;
        (!name.is_empty()).then(|| ServiceName::new(namespace.clone(), name.as_str()))
    }

    /// `node` is this node's name.
    pub fn parse(slice: &EndpointSlice, node: &str) -> Self {
        let ports = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some((
                    port.name.as_deref().unwrap_or_default().into(),
                    parse_protocol(port.protocol.as_deref())?,
                    // No port means "all ports", which a proxy of ports cannot serve; 0 is none.
                    port.port?.try_into().ok().filter(|port| *port != 0)?,
                ))
            })
            .collect();
        let labels = slice.metadata.labels.as_ref();
        let is_dns = labels
            .and_then(|labels| labels.get(DNS_MANAGER.0))
            .is_some_and(|manager| manager == DNS_MANAGER.1);
        let mut zones = Vec::new();
        let endpoints = slice
            .endpoints
            .iter()
            .filter_map(|endpoint| parse_endpoint(endpoint, node, &mut zones))
            .map(|mut endpoint| {
                // No controller writes hints into slices that are not its own. These mean their own node, whose
                // agent learns what names are from its own server.
                if is_dns && endpoint.node_hint == NodeHint::Absent {
                    endpoint.node_hint = match endpoint.on_this_node {
                        true => NodeHint::ThisNode,
                        false => NodeHint::OtherNodes,
                    };
                }
                endpoint
            })
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

    /// Addresses of a slice that [`Self::parse`] refuses.
    pub(super) fn unfit_addresses(slice: &EndpointSlice) -> Vec<IpAddr> {
        let first = |endpoint: &Endpoint| parse_address(endpoint.addresses.first()?);
        let addresses = slice.endpoints.iter().filter_map(first);
        addresses.filter(|address| is_unfit(*address)).collect()
    }
}

/// An endpoint's addresses are interchangeable; the first one is used (field doc).
fn parse_endpoint(
    endpoint: &Endpoint,
    node: &str,
    zones: &mut Vec<Arc<ZoneHints>>,
) -> Option<EndpointSpec> {
    let address = parse_address(endpoint.addresses.first()?)?;
    let conditions = endpoint.conditions.as_ref();
    // "nil … should be interpreted as true" for ready and serving; terminating is false
    // (field docs of EndpointConditions).
    let ready = conditions
        .and_then(|conditions| conditions.ready)
        .unwrap_or(true);
    Some(EndpointSpec {
        address,
        on_this_node: endpoint.node_name.as_deref() == Some(node),
        ready,
        serving: conditions
            .and_then(|conditions| conditions.serving)
            .unwrap_or(true),
        terminating: conditions
            .and_then(|conditions| conditions.terminating)
            .unwrap_or(false),
        node_hint: node_hint(endpoint, node),
        zone_hints: zone_hints(endpoint, zones),
    })
}

fn node_hint(endpoint: &Endpoint, node: &str) -> NodeHint {
    let hints = endpoint.hints.as_ref();
    match hints.and_then(|hints| hints.for_nodes.as_deref()) {
        None | Some([]) => NodeHint::Absent,
        Some(nodes) if nodes.iter().any(|hint| hint.name == node) => NodeHint::ThisNode,
        Some(_) => NodeHint::OtherNodes,
    }
}

/// `known`: those of the slice's other endpoints.
fn zone_hints(endpoint: &Endpoint, known: &mut Vec<Arc<ZoneHints>>) -> Option<Arc<ZoneHints>> {
    let zones = endpoint.hints.as_ref()?.for_zones.as_ref()?;
    let names = || zones.iter().map(|hint| &hint.name);
    if zones.is_empty() {
        return None;
    }
    if let Some(hints) = known.iter().find(|hints| hints.0.iter().eq(names())) {
        return Some(hints.clone());
    }
    let hints = Arc::new(ZoneHints(names().cloned().collect()));
    known.push(hints.clone());
    Some(hints)
}

/// In order, each once, and in no more memory than that takes.
fn sorted<T: Ord>(values: impl Iterator<Item = T>) -> Box<[T]> {
    values.collect::<BTreeSet<T>>().into_iter().collect()
}

/// What another proxy serves, or none.
fn is_excluded(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.is_some_and(|labels| {
        labels.contains_key(PROXY_NAME_LABEL) || labels.contains_key(HEADLESS_LABEL)
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

/// An address as the API server lets it pass: numbers of IPv4 may begin with zeros, and are decimal all the same.
fn parse_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let is_number = part.bytes().all(|digit| digit.is_ascii_digit());
        *octet = part.parse().ok().filter(|_| is_number)?;
    }
    parts.next().is_none().then(|| octets.into())
}

fn parse_network(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    IpNet::new(parse_address(address)?, length.parse().ok()?).ok()
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

    /// There are a quarter of a million of them.
    #[test]
    fn an_endpoint_takes_little_room_and_shares_its_hints_with_its_slice() {
        assert!(size_of::<EndpointSpec>() <= 32);
        let hints = |zone: &str| json!({"forZones": [{"name": zone}]});
        let slice: EndpointSlice = serde_json::from_value(json!({
            "addressType": "IPv4", "metadata": {}, "ports": [],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "hints": hints("a")},
                {"addresses": ["10.0.0.2"], "hints": hints("b")},
                {"addresses": ["10.0.0.3"], "hints": hints("a")},
            ],
        }))
        .unwrap();
        let parsed = SliceSpec::parse(&slice, "n1");
        let [one, two, three] = &*parsed.endpoints else {
            panic!("{parsed:?}");
        };
        let shared = |a: &EndpointSpec, b: &EndpointSpec| {
            let (a, b) = (a.zone_hints.as_ref(), b.zone_hints.as_ref());
            a.zip(b).is_some_and(|(a, b)| Arc::ptr_eq(a, b))
        };
        assert!(shared(one, three) && !shared(one, two));
    }

    #[test]
    fn a_dns_server_of_the_agents_is_for_its_own_node() {
        let slice = |manager: &str| {
            let slice: EndpointSlice = serde_json::from_value(json!({
                "addressType": "IPv4", "ports": [], "metadata": {
                    "labels": {"endpointslice.kubernetes.io/managed-by": manager}},
                "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n1"}],
            }))
            .unwrap();
            ["n1", "n2"].map(|node| SliceSpec::parse(&slice, node).endpoints[0].node_hint)
        };
        let own = [NodeHint::ThisNode, NodeHint::OtherNodes];
        assert_eq!(slice("dns.windlass.dev"), own);
        assert_eq!(
            slice("endpointslice-controller.k8s.io"),
            [NodeHint::Absent; 2]
        );
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
    fn what_another_proxy_serves_is_left_to_it() {
        for label in [PROXY_NAME_LABEL, HEADLESS_LABEL] {
            let mut labelled = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
            assert!(ServiceSpec::parse(&labelled).is_some());
            labelled.metadata.labels = Some([(label.to_owned(), String::new())].into());
            assert_eq!(ServiceSpec::parse(&labelled), None, "{label}");
        }
        assert_eq!(SELECTOR, format!("!{HEADLESS_LABEL},!{PROXY_NAME_LABEL}"));
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

    /// Go's parser of old, which upstream keeps for what is stored.
    #[test]
    fn numbers_that_begin_with_zeros_are_decimal() {
        for (text, expected) in [
            ("10.96.0.011", Some("10.96.0.11")),
            ("010.096.000.0001", Some("10.96.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("10.96.0.+1", None),
            ("10.96.0.256", None),
            ("10.96.0", None),
            ("10.96.0.1.1", None),
            ("", None),
        ] {
            let parsed = parse_address(text).map(|address| address.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
        let network = parse_network("010.0.0.0/08").map(|network| network.to_string());
        assert_eq!(network.as_deref(), Some("10.0.0.0/8"));
    }

    #[test]
    fn missing_conditions_mean_ready_and_unfit_addresses_are_refused() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "addressType": "IPv4",
            "metadata": {"name": "web-x", "namespace": "d", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "", "port": 8080}, {"name": "none", "port": 0}, {"name": "all"}],
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
            SliceSpec::service_of(&slice, &"d".into()),
            Some(ServiceName::new("d", "web"))
        );
        let parsed = SliceSpec::parse(&slice, "n1");
        assert_eq!(*parsed.ports, [("".into(), protocol::TCP, 8080)]);
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
                ("10.0.0.2".to_owned(), false, false, true, false),
                ("10.0.0.3".to_owned(), false, false, true, true),
            ]
        );
    }
}
