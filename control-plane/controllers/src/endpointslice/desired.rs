//! The endpoints that a Service should have, from its spec and the pods it selects: pure.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone},
};

use super::plan::{Group, identity, ports_key};
use crate::{pods, services};

/// IP families as EndpointSlices name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressType {
    V4,
    V6,
}

impl AddressType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub(crate) fn of(address: &str) -> Option<Self> {
        match address.parse().ok()? {
            IpAddr::V4(_) => Some(Self::V4),
            IpAddr::V6(_) => Some(Self::V6),
        }
    }
}

/// The families of a Service; one that names none has the cluster's default.
pub(crate) fn address_types(service: &Service) -> Vec<AddressType> {
    let spec = service.spec.as_ref();
    let families: Vec<_> = spec
        .and_then(|spec| spec.ip_families.as_ref())
        .into_iter()
        .flatten()
        .map(|family| {
            if family == "IPv6" {
                AddressType::V6
            } else {
                AddressType::V4
            }
        })
        .collect();
    if !families.is_empty() {
        return families;
    }
    let address = spec
        .and_then(|spec| spec.cluster_ip.as_deref())
        .unwrap_or_default();
    vec![AddressType::of(address).unwrap_or(AddressType::V4)]
}

/// The wanted endpoints of one family, grouped by the ports that their pods resolve to. `zone_of` knows
/// the zone of a node.
pub(crate) fn groups(
    service: &Service,
    selected: &[Arc<Pod>],
    family: AddressType,
    zone_of: impl Fn(&str) -> Option<String>,
) -> Vec<Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for pod in selected {
        let Some(endpoint) = endpoint(service, pod, family, &zone_of) else {
            continue;
        };
        let ports = ports(service, pod);
        let group = groups.entry(ports_key(&ports)).or_insert_with(|| Group {
            ports,
            endpoints: BTreeMap::new(),
        });
        group.endpoints.insert(identity(&endpoint), endpoint);
    }
    groups.into_values().collect()
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    ports
        .into_iter()
        .flatten()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(services::target_port(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    family: AddressType,
    zone_of: &impl Fn(&str) -> Option<String>,
) -> Option<Endpoint> {
    if pods::is_finished(pod) {
        return None;
    }
    let address = services::addresses(pod)
        .into_iter()
        .find(|ip| AddressType::of(ip) == Some(family))?;
    let node = pods::node_name(pod);
    let zone = node.and_then(zone_of);
    let serving = pods::is_ready(pod);
    let terminating = pods::is_terminating(pod);
    // With publishNotReadyAddresses a pod counts as ready whatever its state (field doc of Service).
    let ready = services::publishes_not_ready(service) || (serving && !terminating);
    Some(Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: services::hostname(pod, service),
        hints: hints(service, node, zone.as_deref()),
        node_name: node.map(ToOwned::to_owned),
        zone,
        target_ref: Some(services::target_ref(pod)),
        ..Default::default()
    })
}

/// Where traffic for this endpoint should come from (KEP-4444, KEP-3015).
fn hints(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let for_zones = zone.map(|zone| {
        vec![ForZone {
            name: zone.to_owned(),
        }]
    });
    match distribution {
        "PreferClose" | "PreferSameZone" => for_zones.map(|zones| EndpointHints {
            for_zones: Some(zones),
            for_nodes: None,
        }),
        "PreferSameNode" => node.map(|node| EndpointHints {
            for_zones,
            for_nodes: Some(vec![ForNode {
                name: node.to_owned(),
            }]),
        }),
        _ => None,
    }
}

/// When the newest change of the pods happened that `since` does not cover: what programming latency is
/// measured from.
pub(crate) fn trigger_time(selected: &[Arc<Pod>], since: Timestamp) -> Option<Timestamp> {
    let transition = |pod: &Pod| {
        let ready = pods::condition(pod, "Ready")?;
        ready.last_transition_time.as_ref().map(|time| time.0)
    };
    selected
        .iter()
        .filter_map(|pod| transition(pod))
        .filter(|at| *at > since)
        .min()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, status: serde_json::Value, deleted: bool) -> Arc<Pod> {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"nodeName": "n1", "hostname": "h", "subdomain": "web",
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": status,
        }))
        .unwrap();
        if deleted {
            pod.metadata.deletion_timestamp = Some(
                k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH),
            );
        }
        Arc::new(pod)
    }

    fn status(ready: &str, phase: &str) -> serde_json::Value {
        json!({"phase": phase, "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "conditions": [{"type": "Ready", "status": ready}]})
    }

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec}),
        )
        .unwrap()
    }

    fn conditions(service: &Service, pod: Arc<Pod>) -> Option<(bool, bool, bool)> {
        let groups = groups(service, &[pod], AddressType::V4, |_| None);
        let endpoint = groups.first()?.endpoints.values().next()?.clone();
        let conditions = endpoint.conditions?;
        Some((
            conditions.ready?,
            conditions.serving?,
            conditions.terminating?,
        ))
    }

    #[test]
    fn conditions_follow_readiness_deletion_and_publishing() {
        let plain = service(json!({"ports": [{"port": 80}]}));
        let publishing =
            service(json!({"ports": [{"port": 80}], "publishNotReadyAddresses": true}));
        let cases = [
            (
                &plain,
                status("True", "Running"),
                false,
                Some((true, true, false)),
            ),
            (
                &plain,
                status("False", "Running"),
                false,
                Some((false, false, false)),
            ),
            (
                &plain,
                status("True", "Running"),
                true,
                Some((false, true, true)),
            ),
            (
                &publishing,
                status("False", "Running"),
                false,
                Some((true, false, false)),
            ),
            (
                &publishing,
                status("True", "Running"),
                true,
                Some((true, true, true)),
            ),
            (&plain, status("True", "Succeeded"), false, None),
            (&plain, json!({"phase": "Pending"}), false, None),
        ];
        for (service, status, deleted, expected) in cases {
            assert_eq!(
                conditions(service, pod("a", status.clone(), deleted)),
                expected,
                "{status}"
            );
        }
    }

    #[test]
    fn an_endpoint_names_its_pod_node_zone_host_and_ports() {
        let service = service(
            json!({"ipFamilies": ["IPv6"], "trafficDistribution": "PreferClose",
            "ports": [{"name": "web", "port": 80, "targetPort": "http"},
                      {"name": "none", "port": 81, "targetPort": "missing"}]}),
        );
        let pods = [pod("a", status("True", "Running"), false)];
        assert_eq!(address_types(&service), [AddressType::V6]);
        let groups = groups(&service, &pods, AddressType::V6, |node| {
            Some(format!("zone-{node}"))
        });
        let ports: Vec<_> = groups[0].ports.iter().map(|port| port.port).collect();
        assert_eq!(ports, [Some(8080)]);
        let endpoint = groups[0].endpoints.values().next().unwrap();
        assert_eq!(endpoint.addresses, ["fd00::1"]);
        assert_eq!(endpoint.zone.as_deref(), Some("zone-n1"));
        assert_eq!(endpoint.hostname.as_deref(), Some("h"));
        assert_eq!(
            endpoint.target_ref.as_ref().unwrap().uid.as_deref(),
            Some("a")
        );
        let hints = endpoint.hints.as_ref().unwrap();
        assert_eq!(hints.for_zones.as_ref().unwrap()[0].name, "zone-n1");
    }
}
