//! From policies and pods to what the datapath's tables must hold: pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ahash::AHashMap;
use windlass_datapath::{
    PolicyPortPrefix,
    types::{
        Addr, PolicyDecision, PolicyNetwork, PolicyPeer, PolicyPod, PolicyVerdict, VerdictKey,
    },
};

use super::{
    class::{Class, ClassRule, Identity, Isolation, Judgement, Peers, content_id, resolve},
    cluster::{Cluster, NamedPort, PodSpec},
    identities::Identities,
    labels::Labels,
    spec::{Direction, PolicyName, PolicySpec, PortMatch, Tier},
};

/// Who is named for a drop: a policy whose rule denied it, or those that isolate the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decider {
    pub policies: Vec<PolicyName>,
    pub isolation: bool,
}

impl std::fmt::Display for Decider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, policy) in self.policies.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{policy}")?;
        }
        Ok(())
    }
}

/// What the tables must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub pods: AHashMap<Addr, PolicyPod>,
    pub peers: AHashMap<Addr, PolicyPeer>,
    pub networks: AHashMap<PolicyNetwork, PolicyPeer>,
    pub verdicts: AHashMap<VerdictKey, PolicyVerdict>,
    pub ports: AHashMap<PolicyPortPrefix, PolicyDecision>,
}

/// Classes by their ids, and the peers that they ask for.
#[derive(Clone, Debug, Default)]
pub struct Classes {
    by_id: HashMap<u64, Arc<Class>>,
    peers: Peers,
}

impl Classes {
    fn add(&mut self, class: Class, peers: Peers) -> u64 {
        let id = class.id();
        self.by_id.insert(id, Arc::new(class));
        self.peers.extend(peers);
        id
    }

    /// Whether `others` has a class that is not among these.
    pub(super) fn lack_any_of(&self, others: &Self) -> bool {
        others.by_id.keys().any(|id| !self.by_id.contains_key(id))
    }

    fn with(&self, others: &Self) -> Self {
        let mut all = self.clone();
        for (id, class) in &others.by_id {
            all.by_id.entry(*id).or_insert_with(|| class.clone());
        }
        all.peers
            .extend(others.peers.iter().map(|(id, peer)| (*id, peer.clone())));
        all
    }
}

pub struct Compiled {
    pub desired: Desired,
    /// The classes that pods have.
    pub classes: Classes,
    pub deciders: BTreeMap<u32, Decider>,
}

/// What was judged before. Classes and identities are known by their contents, so a
/// judgement never goes out of date; what was not asked for last time is forgotten.
#[derive(Debug, Default)]
pub struct Memo {
    judgements: AHashMap<VerdictKey, Judgement>,
}

/// `keep`: classes that pods may still have in the kernel. The tables answer for them as well,
/// so that pods can change from those to their new ones while packets pass.
pub fn compile(cluster: &Cluster<'_>, keep: &Classes, memo: &mut Memo) -> Compiled {
    let mut classes = Classes::default();
    let mut deciders = BTreeMap::new();
    let mut desired = Desired::default();
    let policies = Policies::new(cluster);
    let mut known: HashMap<(&str, &Labels, &BTreeSet<NamedPort>), PolicyPod> = HashMap::new();
    for pod in &cluster.local {
        let profile = (
            pod.key.namespace.as_str(),
            &pod.spec.labels,
            &pod.spec.ports,
        );
        let value = *known.entry(profile).or_insert_with(|| {
            let mut class_of = |direction| {
                policies
                    .class(profile.0, &pod.spec, direction, &mut deciders)
                    .map_or(0, |(class, peers)| classes.add(class, peers))
            };
            PolicyPod {
                ingress: class_of(Direction::Ingress),
                egress: class_of(Direction::Egress),
            }
        });
        if value != PolicyPod::default() {
            let addresses = pod.addresses.iter();
            desired
                .pods
                .extend(addresses.map(|address| (Addr::from(*address), value)));
        }
    }
    let answering = classes.with(keep);
    if !answering.by_id.is_empty() {
        let names = answering.by_id.values();
        let names = names.flat_map(|class| class.port_names()).collect();
        let identities = Identities::give(cluster, &answering.peers, &names, &mut desired);
        judge(&answering, &identities, memo, &mut desired);
    }
    Compiled {
        desired,
        classes,
        deciders,
    }
}

/// Policies in the order in which they decide, those of one namespace side by side.
struct Policies<'a> {
    cluster: &'a Cluster<'a>,
    cluster_wide: Vec<(&'a PolicyName, &'a PolicySpec)>,
    by_namespace: HashMap<&'a str, Vec<(&'a PolicyName, &'a PolicySpec)>>,
}

impl<'a> Policies<'a> {
    fn new(cluster: &'a Cluster<'a>) -> Self {
        let mut cluster_wide = Vec::new();
        let mut by_namespace: HashMap<&str, Vec<_>> = HashMap::new();
        for policy in cluster
            .policies
            .iter()
            .chain(cluster.cluster_policies.iter())
        {
            match &policy.0.namespace {
                None => cluster_wide.push(policy),
                Some(namespace) => by_namespace.entry(namespace).or_default().push(policy),
            }
        }
        // Of equal priority: any order will do, but always the same.
        cluster_wide.sort_by_key(|(name, spec)| (spec.tier, spec.priority, *name));
        for policies in by_namespace.values_mut() {
            policies.sort_by_key(|(name, _)| *name);
        }
        Self {
            cluster,
            cluster_wide,
            by_namespace,
        }
    }

    /// The class of a pod; None: nothing restricts it in this direction.
    fn class(
        &self,
        namespace: &str,
        pod: &PodSpec,
        direction: Direction,
        deciders: &mut BTreeMap<u32, Decider>,
    ) -> Option<(Class, Peers)> {
        let nothing = Labels::new();
        let namespace_labels = self.cluster.namespaces.get(namespace).unwrap_or(&nothing);
        let of_namespace = self.by_namespace.get(namespace).into_iter().flatten();
        let selecting = self
            .cluster_wide
            .iter()
            .chain(of_namespace)
            .filter(|(_, spec)| {
                spec.rules(direction).is_some()
                    && spec
                        .subject
                        .matches(namespace, namespace_labels, &pod.labels)
            });
        let mut class = Class::default();
        let mut peers = Peers::new();
        let mut isolating: Vec<(&PolicyName, bool)> = Vec::new();
        for (name, spec) in selecting {
            if spec.tier == Tier::Namespace {
                isolating.push((name, spec.audit));
            }
            let decider = Decider {
                policies: vec![(*name).clone()],
                isolation: false,
            };
            let decider = decider_id(decider, deciders);
            for rule in spec.rules(direction).into_iter().flatten() {
                let ports = rule.ports.as_ref().map(|ports| match direction {
                    // The names are those of the pod itself.
                    Direction::Ingress => numbers(ports, &pod.ports),
                    Direction::Egress => ports.clone(),
                });
                let rule_peers = rule.peers.as_ref().map(|rule_peers| {
                    let ids = rule_peers.iter().map(|peer| {
                        let id = content_id(peer);
                        peers.insert(id, peer.clone());
                        id
                    });
                    ids.collect()
                });
                class.rules.push(ClassRule {
                    tier: spec.tier,
                    action: rule.action,
                    audit: spec.audit,
                    peers: rule_peers,
                    ports,
                    // Who accepted is not asked for, and would only make classes differ.
                    decider: match rule.action {
                        super::spec::Action::Deny => decider,
                        _ => 0,
                    },
                });
            }
        }
        if !isolating.is_empty() {
            let audit = isolating.iter().all(|(_, audit)| *audit);
            let named = isolating.iter().filter(|(_, audited)| *audited == audit);
            let decider = Decider {
                policies: named.map(|(name, _)| (*name).clone()).collect(),
                isolation: true,
            };
            class.isolation = Some(Isolation {
                audit,
                decider: decider_id(decider, deciders),
            });
        }
        (class != Class::default()).then_some((class, peers))
    }
}

fn decider_id(decider: Decider, deciders: &mut BTreeMap<u32, Decider>) -> u32 {
    let mut id = (content_id(&(&decider.policies, decider.isolation)) as u32).max(1);
    while deciders.get(&id).is_some_and(|held| *held != decider) {
        id = id.wrapping_add(1).max(1);
    }
    deciders.insert(id, decider);
    id
}

fn numbers(ports: &[PortMatch], named: &BTreeSet<NamedPort>) -> Vec<PortMatch> {
    let ranges = resolve(ports, named).into_iter();
    let ranges: BTreeSet<PortMatch> = ranges
        .map(|(protocol, first, last)| PortMatch::Range {
            protocol,
            first,
            last,
        })
        .collect();
    ranges.into_iter().collect()
}

/// The verdict of every class for every identity: an element only where it is not what the class
/// says to everybody.
fn judge(classes: &Classes, identities: &Identities, memo: &mut Memo, desired: &mut Desired) {
    let mut judgements = AHashMap::with_capacity(memo.judgements.len());
    let anybody = Identity::default();
    for (class_id, class) in &classes.by_id {
        let mut take = |identity_id: u64, identity: &Identity| -> PolicyVerdict {
            let key = VerdictKey {
                class: *class_id,
                identity: identity_id,
            };
            let judgement = memo
                .judgements
                .remove(&key)
                .unwrap_or_else(|| class.judge(identity));
            let verdict = judgement.verdict;
            judgements.insert(key, judgement);
            verdict
        };
        let default = take(0, &anybody);
        let key = |identity| VerdictKey {
            class: *class_id,
            identity,
        };
        desired.verdicts.insert(key(0), default);
        for (id, identity) in identities.concerned_by(class) {
            let verdict = take(id, identity);
            if verdict != default {
                desired.verdicts.insert(key(id), verdict);
            }
        }
    }
    for judgement in judgements.values() {
        desired.ports.extend(judgement.ports.iter().copied());
    }
    memo.judgements = judgements;
}
