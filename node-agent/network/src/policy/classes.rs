//! Which class a local pod has in each direction: the rules of the policies that select it.
//!
//! What was found for a kind of pod holds until a policy of its namespace, or of the whole cluster,
//! changes, or the labels of its namespace.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ahash::AHashMap;
use windlass_datapath::types::PolicyPod;

use super::{
    changes::Changes,
    class::{Class, ClassRule, Isolation, Peers, content_id, resolve},
    cluster::{Cluster, NamedPort, PodSpec},
    labels::Labels,
    profiles::Profile,
    spec::{Direction, PolicyName, PolicySpec, PortMatch, Tier},
};

/// So many names of deciders are kept after their policies went.
const OLD_DECIDERS: usize = 4_096;

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

/// A class with the peers that its rules name.
#[derive(Clone, Debug)]
pub(super) struct Assigned {
    pub id: u64,
    pub class: Arc<Class>,
    pub peers: Arc<Peers>,
}

/// None in a direction in which nothing restricts.
#[derive(Clone, Debug, Default)]
pub(super) struct OfPod {
    pub ingress: Option<Assigned>,
    pub egress: Option<Assigned>,
}

impl OfPod {
    pub(super) fn value(&self) -> PolicyPod {
        let id = |assigned: &Option<Assigned>| assigned.as_ref().map_or(0, |it| it.id);
        PolicyPod {
            ingress: id(&self.ingress),
            egress: id(&self.egress),
        }
    }

    pub(super) fn both(&self) -> impl Iterator<Item = &Assigned> {
        self.ingress.iter().chain(&self.egress)
    }
}

#[derive(Debug, Default)]
pub(super) struct Classes {
    known: AHashMap<Profile, OfPod>,
    deciders: BTreeMap<u32, Decider>,
}

impl Classes {
    /// The classes of all local pods, in their order.
    pub(super) fn assign(&mut self, cluster: &Cluster<'_>, changes: &Changes) -> Vec<OfPod> {
        self.outdate(changes);
        let mut before = std::mem::take(&mut self.known);
        let mut policies = None;
        let mut assigned = Vec::with_capacity(cluster.local.len());
        for pod in &cluster.local {
            let profile = Profile {
                namespace: pod.key.namespace.clone(),
                labels: pod.spec.labels.clone(),
                ports: pod.spec.ports.clone(),
            };
            if !self.known.contains_key(&profile) {
                let of_pod = before.remove(&profile).unwrap_or_else(|| {
                    let policies = policies.get_or_insert_with(|| Policies::new(cluster));
                    let mut class_of = |direction| {
                        let deciders = &mut self.deciders;
                        policies.class(&profile.namespace, &pod.spec, direction, deciders)
                    };
                    OfPod {
                        ingress: class_of(Direction::Ingress),
                        egress: class_of(Direction::Egress),
                    }
                });
                self.known.insert(profile.clone(), of_pod);
            }
            assigned.push(self.known[&profile].clone());
        }
        assigned
    }

    /// Who is behind the numbers that the present classes carry, and some of former ones.
    pub(super) fn deciders(&self) -> &BTreeMap<u32, Decider> {
        &self.deciders
    }

    fn outdate(&mut self, changes: &Changes) {
        let cluster_wide = changes.policies.iter().any(|name| name.namespace.is_none());
        if changes.everything || cluster_wide {
            self.known.clear();
        } else {
            let changed = changes
                .policies
                .iter()
                .filter_map(|it| it.namespace.as_ref());
            for namespace in changed.chain(&changes.namespaces) {
                self.known
                    .retain(|profile, _| profile.namespace != *namespace);
            }
        }
        if self.known.is_empty() && self.deciders.len() > OLD_DECIDERS {
            self.deciders.clear();
        }
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
            .chain(cluster.cluster_policies.iter().flat_map(|it| it.iter()))
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
    ) -> Option<Assigned> {
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
        (class != Class::default()).then(|| Assigned {
            id: class.id(),
            class: Arc::new(class),
            peers: Arc::new(peers),
        })
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
