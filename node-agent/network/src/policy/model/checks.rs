//! What must hold for any cluster and any change.

use std::{collections::BTreeSet, net::IpAddr};

use proptest::prelude::*;
use serde_json::Value;
use windlass_datapath::{PolicySnapshot, PolicyWrite, types::PolicyState};

use super::{
    super::{
        changes::Changes,
        cluster::PodKey,
        edits::Held,
        labels::Labels,
        spec::{Direction, PolicyName},
        tables::Tables,
    },
    Pod, Probe, World,
    kernel::Kernel,
    random::{OUTSIDE, PORTS, cluster_policies, labels, named, named_address, policy, worlds},
};

fn probes(world: &World) -> Vec<Probe> {
    let pods = world.pods.iter().map(|pod| pod.address);
    let outside = OUTSIDE.iter().map(|address| address.parse().unwrap());
    let mut probes = Vec::new();
    for peer in pods.chain(outside) {
        for protocol in ["TCP", "UDP", "SCTP"] {
            for port in PORTS {
                probes.push(Probe {
                    peer,
                    protocol,
                    port,
                });
            }
        }
        probes.push(Probe {
            peer,
            protocol: "ICMP",
            port: 0,
        });
    }
    probes
}

/// Every pod of the node, in both directions, towards everybody.
fn questions(world: &World) -> Vec<(&Pod, Direction, Probe)> {
    let probes = probes(world);
    let local = world.pods.iter().filter(|pod| pod.local && !pod.unknown);
    let mut questions = Vec::new();
    for pod in local {
        for direction in [Direction::Ingress, Direction::Egress] {
            // The datapath does not ask about a pod and itself.
            let others = probes.iter().filter(|probe| probe.peer != pod.address);
            questions.extend(others.map(|probe| (pod, direction, *probe)));
        }
    }
    questions
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_tables_say_what_the_documentation_says(world in worlds()) {
        let mut kernel = Kernel::default();
        let plan = Tables::default().plan(&world.cluster());
        plan.writes.iter().for_each(|write| kernel.apply(write));
        for (pod, direction, probe) in questions(&world) {
            prop_assert_eq!(
                kernel.allows(pod.address, direction, probe),
                world.allows(pod, direction, probe),
                "{} {:?} {:?}", pod.name, direction, probe
            );
        }
    }

    /// Whatever single write a packet comes after, it meets the old answer or the new one.
    #[test]
    fn in_the_middle_of_a_change_nothing_third_is_said(
        world in worlds(),
        policies in prop::collection::vec(policy(), 0..5),
    ) {
        let next = World { policies: named(policies), ..world.clone() };
        let mut kernel = Kernel::default();
        let mut tables = Tables::default();
        for write in tables.plan(&world.cluster()).writes {
            kernel.apply(&write);
        }
        let questions: Vec<_> = questions(&world)
            .into_iter()
            .step_by(3)
            .map(|(pod, direction, probe)| {
                let old = world.allows(pod, direction, probe);
                (pod, direction, probe, old, next.allows(pod, direction, probe))
            })
            .collect();
        for write in tables.plan(&next.cluster()).writes {
            kernel.apply(&write);
            for (pod, direction, probe, old, new) in &questions {
                let said = kernel.allows(pod.address, *direction, *probe);
                prop_assert!(
                    said == *old || said == *new,
                    "{} {direction:?} {probe:?}: {said} after {write:?}", pod.name
                );
            }
        }
        for (pod, direction, probe, _, new) in questions {
            prop_assert_eq!(kernel.allows(pod.address, direction, probe), new);
        }
        // A new agent finds nothing to do.
        let snapshot = PolicySnapshot {
            pods: kernel.tables.pods.into_iter().collect(),
            peers: kernel.tables.peers.into_iter().collect(),
            networks: kernel.tables.networks.into_iter().collect(),
            verdicts: kernel.tables.verdicts.into_iter().collect(),
            ports: kernel.tables.ports.into_iter().collect(),
            state: PolicyState {
                revision: 7,
                enforced: tables.enforced(),
            },
        };
        prop_assert_eq!(Tables::recover(&snapshot).plan(&next.cluster()).writes, []);
    }

    /// What follows from what changed is what follows from everything.
    #[test]
    fn changes_one_by_one_lead_to_the_same_tables(
        world in worlds(),
        steps in prop::collection::vec(step(), 1..8),
    ) {
        let mut world = world;
        let mut tables = Tables::default();
        let mut kernel = Kernel::default();
        let mut apply = |writes: Vec<PolicyWrite>| writes.iter().for_each(|it| kernel.apply(it));
        apply(tables.plan(&world.cluster()).writes);
        for step in steps {
            let changes = step.take(&mut world);
            apply(tables.plan_changes(&world.cluster(), &changes).writes);
            let mut anew = Tables::default();
            anew.plan(&world.cluster());
            let with_state = Held { state: tables.held().state, ..anew.held().clone() };
            prop_assert_eq!(tables.held(), &with_state);
        }
        prop_assert_eq!(&kernel.tables, tables.held());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Policy(usize, Option<Value>),
    ClusterPolicies(Vec<Value>),
    Namespace(&'static str, Labels),
    Labels(usize, Labels),
    Known(usize, bool),
    Address(usize, u8),
    Named(IpAddr, BTreeSet<String>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..6usize, prop::option::weighted(0.7, policy()))
            .prop_map(|(number, policy)| Step::Policy(number, policy)),
        1 => cluster_policies().prop_map(Step::ClusterPolicies),
        2 => (prop::sample::select(vec!["x", "y", "z"]), labels())
            .prop_map(|(name, labels)| Step::Namespace(name, labels)),
        2 => (0..8usize, labels()).prop_map(|(pod, labels)| Step::Labels(pod, labels)),
        1 => (0..8usize, any::<bool>()).prop_map(|(pod, known)| Step::Known(pod, known)),
        1 => (0..8usize, 30..40u8).prop_map(|(pod, last)| Step::Address(pod, last)),
        2 => named_address().prop_map(|(address, names)| Step::Named(address, names)),
    ]
}

impl Step {
    /// Makes it so, and says what changed.
    fn take(self, world: &mut World) -> Changes {
        let mut changes = Changes::default();
        match self {
            Self::Policy(number, policy) => {
                let name = format!("step{number}");
                let old = world
                    .policies
                    .iter()
                    .position(|it| it.metadata.name.as_ref() == Some(&name));
                let old = old.map(|at| world.policies.remove(at));
                let new = policy.map(|policy| {
                    let mut policy = named(vec![policy]).remove(0);
                    policy.metadata.name = Some(name.clone());
                    policy
                });
                let both = old.iter().chain(&new).map(|policy| PolicyName {
                    namespace: policy.metadata.namespace.clone(),
                    name: name.clone(),
                });
                changes.policies.extend(both);
                world.policies.extend(new);
            }
            Self::ClusterPolicies(policies) => {
                let count = policies.len().max(world.cluster_policies.len());
                world.cluster_policies = policies;
                changes.policies.extend((0..count).map(|number| PolicyName {
                    namespace: None,
                    name: format!("c{number}"),
                }));
            }
            Self::Namespace(name, labels) => {
                world.namespaces.insert(name.to_owned(), labels);
                changes.namespaces.insert(name.to_owned());
            }
            Self::Labels(index, labels) => {
                changes
                    .pods
                    .extend(world.change(index, |pod| pod.labels = labels));
            }
            Self::Known(index, known) => {
                changes
                    .pods
                    .extend(world.change(index, |pod| pod.unknown = !known));
                changes.local = true;
            }
            Self::Named(address, names) => {
                match names.is_empty() {
                    true => world.names.remove(&address),
                    false => world.names.insert(address, names),
                };
                changes.names.insert(address);
            }
            Self::Address(index, last) => {
                changes.pods.extend(world.change(index, |pod| {
                    pod.address = IpAddr::from([10, 244, 0, last]);
                }));
            }
        }
        changes
    }
}

impl World {
    fn change(&mut self, index: usize, change: impl FnOnce(&mut Pod)) -> Option<PodKey> {
        let pod = self.pods.get_mut(index)?;
        change(pod);
        Some(PodKey {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        })
    }
}
