//! What the watches and this node's interfaces have told.

use std::{borrow::Cow, net::IpAddr};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ahash::AHashSet;
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use kube::{ResourceExt as _, core::DynamicObject, runtime::watcher::Event};

use super::{
    cluster::{Cluster, LocalPod, NodeSpec, PodKey, PodSpec},
    labels::Labels,
    spec::{PolicyName, PolicySpec},
};
use crate::{
    attachments::{OWN, PodInterface},
    ipam::AttachmentKey,
    source::Source,
};

pub(super) type Interfaces = Arc<BTreeMap<AttachmentKey, PodInterface>>;

#[allow(
    clippy::large_enum_variant,
    reason = "short-lived: read from one watch, taken at once"
)]
pub(super) enum Change {
    Pod(Event<Pod>),
    Namespace(Event<Namespace>),
    Node(Event<Node>),
    Policy(Event<NetworkPolicy>),
    ClusterPolicy(Event<DynamicObject>),
    /// The cluster has no such kind.
    NoClusterPolicies,
    DnsServer(Event<EndpointSlice>),
    Interfaces(Interfaces),
}

pub(super) struct Observed {
    pods: Source<PodKey, PodSpec>,
    namespaces: Source<String, Labels>,
    nodes: Source<String, NodeSpec>,
    policies: Source<PolicyName, PolicySpec>,
    cluster_policies: Source<PolicyName, PolicySpec>,
    dns_servers: Source<String, PodSpec>,
    interfaces: Interfaces,
    /// What local pods were when their objects were last seen.
    remembered: HashMap<AttachmentKey, PodSpec>,
    dirty: bool,
}

impl Observed {
    pub(super) fn new() -> Self {
        Self {
            pods: Source::new(),
            namespaces: Source::new(),
            nodes: Source::new(),
            policies: Source::new(),
            cluster_policies: Source::new(),
            dns_servers: Source::new(),
            interfaces: Arc::default(),
            remembered: HashMap::new(),
            dirty: true,
        }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.pods.is_synced()
            && self.namespaces.is_synced()
            && self.nodes.is_synced()
            && self.policies.is_synced()
            && self.cluster_policies.is_synced()
            && self.dns_servers.is_synced()
    }

    pub(super) fn is_settled(&self) -> bool {
        !self.dirty
    }

    pub(super) fn settle(&mut self) {
        self.dirty = false;
    }

    pub(super) fn take(&mut self, change: Change) {
        self.dirty |= match change {
            Change::Pod(event) => self.pods.take(event, |pod| {
                let key = PodKey {
                    namespace: pod.namespace().unwrap_or_default(),
                    name: pod.name_any(),
                };
                (key, PodSpec::parse(pod))
            }),
            Change::Namespace(event) => self.namespaces.take(event, |namespace| {
                let labels = namespace.metadata.labels.clone();
                (namespace.name_any(), Some(labels.unwrap_or_default()))
            }),
            Change::Node(event) => self
                .nodes
                .take(event, |node| (node.name_any(), Some(NodeSpec::parse(node)))),
            Change::Policy(event) => self.policies.take(event, |policy| {
                let name = PolicyName {
                    namespace: policy.namespace(),
                    name: policy.name_any(),
                };
                (name, PolicySpec::parse(policy))
            }),
            Change::ClusterPolicy(event) => self.cluster_policies.take(event, |policy| {
                let name = PolicyName {
                    namespace: None,
                    name: policy.name_any(),
                };
                (name, PolicySpec::parse_cluster(policy))
            }),
            Change::NoClusterPolicies => {
                self.cluster_policies.begin_list();
                let first = !self.cluster_policies.is_synced();
                !self.cluster_policies.end_list().is_empty() || first
            }
            Change::DnsServer(event) => self.dns_servers.take(event, |slice| {
                (slice.name_any(), Some(PodSpec::dns_server(slice)))
            }),
            Change::Interfaces(interfaces) => {
                self.interfaces = interfaces;
                true
            }
        };
    }

    /// The cluster as it is known now, and the local interfaces whose pods are known.
    pub(super) fn cluster(
        &mut self,
        pod_networks: &[IpNet],
    ) -> (Cluster<'_>, AHashSet<AttachmentKey>) {
        let mut local = Vec::new();
        let mut orphans: Vec<IpAddr> = Vec::new();
        let mut known = AHashSet::new();
        let interfaces = self.interfaces.clone();
        self.remembered
            .retain(|key, _| interfaces.contains_key(key));
        for (key, interface) in interfaces.iter() {
            if is_own(key) {
                known.insert(key.clone());
                continue;
            }
            let pod = PodKey {
                namespace: interface.pod.namespace.clone(),
                name: interface.pod.name.clone(),
            };
            // Another pod may have taken the name while this one's interface is still there.
            let current = self
                .pods
                .current()
                .get(&pod)
                .filter(|spec| interface.pod.uid.is_empty() || spec.uid == interface.pod.uid);
            if let Some(spec) = current
                && self.remembered.get(key) != Some(spec)
            {
                self.remembered.insert(key.clone(), spec.clone());
            }
            match self.remembered.get(key) {
                Some(spec) => {
                    known.insert(key.clone());
                    local.push(LocalPod {
                        key: pod,
                        addresses: interface.link.addresses.clone(),
                        spec: spec.clone(),
                    });
                }
                None => orphans.extend(&interface.link.addresses),
            }
        }
        let of_nodes = self.nodes.current().values();
        let of_nodes = of_nodes.flat_map(|node| node.pod_networks.iter().copied());
        let cluster = Cluster {
            policies: Cow::Borrowed(self.policies.current()),
            cluster_policies: Cow::Borrowed(self.cluster_policies.current()),
            namespaces: Cow::Borrowed(self.namespaces.current()),
            pods: Cow::Borrowed(self.pods.current()),
            dns_servers: Cow::Borrowed(self.dns_servers.current()),
            pod_networks: pod_networks.iter().copied().chain(of_nodes).collect(),
            nodes: Cow::Borrowed(self.nodes.current()),
            local,
            orphans,
        };
        (cluster, known)
    }
}

/// The agent's own interfaces are no pods: no policy can select them.
pub(super) fn is_own(key: &AttachmentKey) -> bool {
    key.container_id.starts_with(OWN)
}
