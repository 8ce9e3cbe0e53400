//! What the watches and this node's interfaces have told.

use std::{borrow::Cow, net::IpAddr};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
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
use tokio::sync::oneshot;

use super::{
    changes::Changes,
    cluster::{Cluster, LocalPod, NodeSpec, PodKey, PodSpec},
    kinds::Optional,
    labels::Labels,
    names::{LearnedNames, Lesson},
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
    Optional(Optional, Event<DynamicObject>),
    /// The cluster has no such kind.
    Absent(Optional),
    DnsServer(Event<EndpointSlice>),
    Interfaces(Interfaces),
    /// Answered when the kernel has it.
    Lesson(Lesson, oneshot::Sender<()>),
    /// Which of these addresses pods have.
    Question(HashSet<IpAddr>, oneshot::Sender<HashSet<IpAddr>>),
}

pub(super) struct Observed {
    pods: Source<PodKey, PodSpec>,
    namespaces: Source<String, Labels>,
    nodes: Source<String, NodeSpec>,
    policies: Source<PolicyName, PolicySpec>,
    cluster_policies: [Source<PolicyName, PolicySpec>; Optional::ALL.len()],
    dns_servers: Source<String, PodSpec>,
    interfaces: Interfaces,
    /// What local pods were when their objects were last seen.
    remembered: HashMap<AttachmentKey, PodSpec>,
    names: LearnedNames,
    /// Who waits for what they told to be in the kernel.
    taught: Vec<oneshot::Sender<()>>,
    pod_networks: Vec<IpNet>,
    changes: Changes,
}

impl Observed {
    /// `pod_networks`: where pods get their addresses from, beside what the Nodes say.
    pub(super) fn new(pod_networks: Vec<IpNet>, names: LearnedNames) -> Self {
        Self {
            pods: Source::new(),
            namespaces: Source::new(),
            nodes: Source::new(),
            policies: Source::new(),
            cluster_policies: Optional::ALL.map(|_| Source::new()),
            dns_servers: Source::new(),
            interfaces: Arc::default(),
            remembered: HashMap::new(),
            names,
            taught: Vec::new(),
            pod_networks,
            changes: Changes::everything(),
        }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.pods.is_synced()
            && self.namespaces.is_synced()
            && self.nodes.is_synced()
            && self.policies.is_synced()
            && self.cluster_policies.iter().all(Source::is_synced)
            && self.dns_servers.is_synced()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.changes.is_empty()
    }

    /// What changed since it was last asked.
    pub(super) fn take_changes(&mut self) -> Changes {
        // Their names all at once: what they ask for is the same for every node and rarely much.
        if self.changes.everything || !self.changes.policies.is_empty() {
            let patterns = self.all_policies().flat_map(|it| it.current().values());
            let patterns: BTreeSet<_> = patterns.flat_map(PolicySpec::domains).cloned().collect();
            if patterns != *self.names.patterns() {
                let unwanted = self.names.want(patterns);
                self.changes.names.extend(unwanted);
            }
        }
        std::mem::take(&mut self.changes)
    }

    pub(super) fn names(&self) -> &LearnedNames {
        &self.names
    }

    /// Lets go of names whose time is over and whose addresses are not in use.
    pub(super) fn expire_names(&mut self, in_use: &AHashSet<IpAddr>) {
        let gone = self.names.expire(in_use);
        self.changes.names.extend(gone);
    }

    /// The kernel has everything that was told.
    pub(super) fn brought(&mut self) {
        for taught in self.taught.drain(..) {
            // Whoever told it may have gone on without an answer.
            taught.send(()).ok();
        }
    }

    /// Nothing is known any more of what was brought to the kernel.
    pub(super) fn forget(&mut self) {
        self.changes = Changes::everything();
    }

    pub(super) fn take(&mut self, change: Change) {
        let changes = &mut self.changes;
        match change {
            Change::Pod(event) => {
                let read = |pod: &Pod| {
                    let key = PodKey {
                        namespace: pod.namespace().unwrap_or_default(),
                        name: pod.name_any(),
                    };
                    (key, PodSpec::parse(pod))
                };
                changes.pods.extend(self.pods.take_keys(event, read));
            }
            Change::Namespace(event) => {
                let read = |namespace: &Namespace| {
                    let labels = namespace.metadata.labels.clone();
                    (namespace.name_any(), Some(labels.unwrap_or_default()))
                };
                let names = self.namespaces.take_keys(event, read);
                changes.namespaces.extend(names);
            }
            Change::Node(event) => {
                let read = |node: &Node| (node.name_any(), Some(NodeSpec::parse(node)));
                changes.nodes.extend(self.nodes.take_keys(event, read));
            }
            Change::Policy(event) => {
                let read = |policy: &NetworkPolicy| {
                    let name = PolicyName {
                        namespace: policy.namespace(),
                        name: policy.name_any(),
                    };
                    (name, PolicySpec::parse(policy))
                };
                changes
                    .policies
                    .extend(self.policies.take_keys(event, read));
            }
            Change::Optional(kind, event) => {
                let read = |policy: &DynamicObject| {
                    let spec = match kind {
                        Optional::ClusterNetworkPolicy => PolicySpec::parse_cluster(policy),
                        Optional::AdminNetworkPolicy => PolicySpec::parse_admin(policy, "Admin"),
                        Optional::BaselineAdminNetworkPolicy => {
                            PolicySpec::parse_admin(policy, "Baseline")
                        }
                    };
                    (kind.policy_name(policy.name_any()), spec)
                };
                let names = self.cluster_policies[kind as usize].take_keys(event, read);
                changes.policies.extend(names);
            }
            Change::Absent(kind) => {
                let policies = &mut self.cluster_policies[kind as usize];
                policies.begin_list();
                changes.policies.extend(policies.end_list());
            }
            Change::DnsServer(event) => {
                let read =
                    |slice: &EndpointSlice| (slice.name_any(), Some(PodSpec::dns_server(slice)));
                let names = self.dns_servers.take_keys(event, read);
                changes.dns_servers.extend(names);
            }
            Change::Interfaces(interfaces) => {
                self.interfaces = interfaces;
                changes.local = true;
            }
            // Whoever asks before that is known gets no answer.
            Change::Question(..) if !self.pods.is_synced() => {}
            Change::Question(addresses, answer) => {
                let pods = self.pods.current().values();
                let pods = pods.flat_map(|pod| &pod.addresses);
                let here = self.interfaces.values();
                let here = here.flat_map(|interface| &interface.link.addresses);
                let living = pods.chain(here).filter(|it| addresses.contains(it));
                answer.send(living.copied().collect()).ok();
            }
            Change::Lesson(lesson, taught) => {
                let of_nodes = self.nodes.current().values();
                let of_nodes = of_nodes.flat_map(|node| &node.pod_networks);
                let networks: Vec<&IpNet> = self.pod_networks.iter().chain(of_nodes).collect();
                let own = |address| networks.iter().any(|network| network.contains(&address));
                changes.names.extend(self.names.learn(lesson, own));
                self.taught.push(taught);
            }
        }
    }

    fn all_policies(&self) -> impl Iterator<Item = &Source<PolicyName, PolicySpec>> {
        std::iter::once(&self.policies).chain(&self.cluster_policies)
    }

    pub(super) fn anybody_asks_for_events(&self) -> bool {
        self.all_policies()
            .any(|policies| policies.current().values().any(|spec| spec.events))
    }

    pub(super) fn asks_for_events(&self, name: &PolicyName) -> bool {
        self.all_policies()
            .any(|policies| policies.current().get(name).is_some_and(|spec| spec.events))
    }

    /// The cluster as it is known now, and the local interfaces whose pods are known.
    pub(super) fn cluster(&mut self) -> (Cluster<'_>, AHashSet<AttachmentKey>) {
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
            cluster_policies: self
                .cluster_policies
                .iter()
                .map(|it| Cow::Borrowed(it.current()))
                .collect(),
            namespaces: Cow::Borrowed(self.namespaces.current()),
            pods: Cow::Borrowed(self.pods.current()),
            dns_servers: Cow::Borrowed(self.dns_servers.current()),
            pod_networks: self.pod_networks.iter().copied().chain(of_nodes).collect(),
            nodes: Cow::Borrowed(self.nodes.current()),
            names: Cow::Borrowed(self.names.names()),
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
