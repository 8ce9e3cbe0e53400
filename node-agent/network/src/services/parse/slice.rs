//! An EndpointSlice, as far as packets are concerned.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::{
    ServiceName, is_excluded,
    text::{parse_address, parse_protocol},
};

/// Label that names the Service of a slice.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Whose slices the agents' DNS servers are in, by the label that says who manages a slice.
const DNS_MANAGER: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "dns.windlass.dev");

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
            .filter(|endpoint| is_of_type(slice, endpoint.address))
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
    pub(in crate::services) fn unfit_addresses(slice: &EndpointSlice) -> Vec<IpAddr> {
        let first = |endpoint: &Endpoint| parse_address(endpoint.addresses.first()?);
        let addresses = slice.endpoints.iter().filter_map(first);
        addresses
            .filter(|address| is_of_type(slice, *address) && is_unfit(*address))
            .collect()
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

/// A slice of type `FQDN` holds names, which may look like addresses.
fn is_of_type(slice: &EndpointSlice, address: IpAddr) -> bool {
    slice.address_type == if address.is_ipv4() { "IPv4" } else { "IPv6" }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use windlass_datapath::types::protocol;

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
        for (kind, expected) in [("IPv4", 3), ("IPv6", 0), ("FQDN", 0)] {
            let slice = EndpointSlice {
                address_type: kind.to_owned(),
                ..slice.clone()
            };
            assert_eq!(
                SliceSpec::parse(&slice, "n1").endpoints.len(),
                expected,
                "{kind}"
            );
        }
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
