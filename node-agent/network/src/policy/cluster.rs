//! What policies are judged by: the parts of pods, namespaces and nodes that they can speak of.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    discovery::v1::EndpointSlice,
};

use super::{
    labels::Labels,
    names::Names,
    spec::{PolicyName, PolicySpec, parse_protocol},
};

/// On a mirror pod: the uid under which its node runs it.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Where people expect the pods of cluster DNS.
pub(super) const DNS_NAMESPACE: &str = "kube-system";

/// A container port by its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    pub name: String,
    pub protocol: u8,
    pub port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSpec {
    pub uid: String,
    pub labels: Labels,
    pub ports: BTreeSet<NamedPort>,
    pub addresses: Vec<IpAddr>,
    /// Being deleted: its address may be given to another pod already.
    pub terminating: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSpec {
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
    /// Where its pods get their addresses from.
    pub pod_networks: Vec<IpNet>,
}

/// A pod by its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodKey {
    pub namespace: String,
    pub name: String,
}

/// A pod whose interface is on this node: known from the moment that it is made, before the
/// API knows its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    pub key: PodKey,
    pub addresses: Vec<IpAddr>,
    /// As the API had it last; kept while the interface is there, even after the object went.
    pub spec: PodSpec,
}

/// Everything that decides who may talk to whom.
#[derive(Clone, Debug, Default)]
pub struct Cluster<'a> {
    pub policies: Cow<'a, HashMap<PolicyName, PolicySpec>>,
    /// By the kinds that there are of them.
    pub cluster_policies: Vec<Cow<'a, HashMap<PolicyName, PolicySpec>>>,
    pub namespaces: Cow<'a, HashMap<String, Labels>>,
    pub pods: Cow<'a, HashMap<PodKey, PodSpec>>,
    /// Servers of cluster DNS, by their slices.
    pub dns_servers: Cow<'a, HashMap<String, PodSpec>>,
    pub nodes: Cow<'a, HashMap<String, NodeSpec>>,
    /// What names that rules speak of were said to be.
    pub names: Cow<'a, Names>,
    pub local: Vec<LocalPod>,
    /// Local addresses whose pods are unknown (the object went before this agent came): they
    /// keep what they have.
    pub orphans: Vec<IpAddr>,
    /// Where pods get their addresses from: an unlisted address in here is a pod's that is
    /// not known yet.
    pub pod_networks: BTreeSet<IpNet>,
}

impl PodSpec {
    /// None: not a pod for policies. Those on the host's network are the node, and those that
    /// have ended have no address any more, whatever their status says.
    pub fn parse(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        if spec.host_network == Some(true) || matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let containers = spec.init_containers.iter().flatten();
        let containers = containers.filter(|it| it.restart_policy.as_deref() == Some("Always"));
        let ports = containers
            .chain(&spec.containers)
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| {
                Some(NamedPort {
                    name: port.name.clone()?,
                    protocol: parse_protocol(port.protocol.as_deref().unwrap_or("TCP"))?,
                    port: u16::try_from(port.container_port).ok()?,
                })
            });
        let addresses = status
            .and_then(|status| status.pod_ips.as_ref())
            .into_iter()
            .flatten()
            .filter_map(|it| it.ip.parse().ok());
        let metadata = &pod.metadata;
        let config_hash = metadata
            .annotations
            .as_ref()
            .and_then(|it| it.get(CONFIG_HASH));
        Some(Self {
            uid: config_hash
                .or(metadata.uid.as_ref())
                .cloned()
                .unwrap_or_default(),
            labels: metadata.labels.clone().unwrap_or_default(),
            ports: ports.collect(),
            addresses: addresses.collect(),
            terminating: metadata.deletion_timestamp.is_some(),
        })
    }

    /// What a server of cluster DNS is to policies, although it is no pod: one of those that
    /// people write their rules for.
    pub(crate) fn dns_server(slice: &EndpointSlice) -> Self {
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            Some(NamedPort {
                name: port.name.clone()?,
                protocol: parse_protocol(port.protocol.as_deref().unwrap_or("TCP"))?,
                port: u16::try_from(port.port?).ok()?,
            })
        });
        let addresses = slice
            .endpoints
            .iter()
            .flat_map(|endpoint| &endpoint.addresses)
            .filter_map(|address| address.parse().ok());
        Self {
            labels: Labels::from([("k8s-app".to_owned(), "kube-dns".to_owned())]),
            ports: ports.collect(),
            addresses: addresses.collect(),
            ..Self::default()
        }
    }
}

impl NodeSpec {
    pub fn parse(node: &Node) -> Self {
        let addresses = node.status.iter();
        let addresses = addresses.flat_map(|status| status.addresses.iter().flatten());
        let addresses: BTreeSet<IpAddr> =
            addresses.filter_map(|it| it.address.parse().ok()).collect();
        let pod_networks = node.spec.iter();
        let pod_networks = pod_networks.flat_map(|spec| spec.pod_cidrs.iter().flatten());
        Self {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            addresses: addresses.into_iter().collect(),
            pod_networks: pod_networks.filter_map(|it| it.parse().ok()).collect(),
        }
    }
}
