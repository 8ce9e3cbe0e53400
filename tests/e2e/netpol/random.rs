//! Policies that nobody would write, of namespaces and of the whole cluster, and labels that change under them.

use fastrand::Rng;
use windlass_tests::policy_model::random::{
    NAMESPACES, PODS, TEAMS, cluster_policy, one, policy, seeded,
};

use super::cases::Case;
use super::model::{Kind, PodName};
use super::world::{Action, World, labels};

const CASES: usize = 25;
const STEPS: usize = 4;
const POLICIES: usize = 6;
/// Those of the whole cluster.
const CLUSTER_POLICIES: [&str; 3] = ["one", "two", "three"];

pub(super) fn cases(world: &World) -> Vec<Case> {
    let (mut random, seed) = seeded();
    (0..CASES)
        .map(|number| {
            let steps = (0..STEPS).map(|_| step(&mut random, world)).collect();
            Case::new(format!("random {number} of seed {seed}"), steps)
        })
        .collect()
}

fn step(random: &mut Rng, world: &World) -> Vec<Action> {
    (0..random.usize(1..4))
        .map(|_| match random.u8(0..10) {
            0 => {
                let namespace = one(random, &NAMESPACES);
                let mut given = labels(&[("ns", namespace)]);
                if random.bool() {
                    given.insert("team".into(), one(random, &TEAMS).into());
                }
                Action::LabelNamespace(namespace, given)
            }
            1 | 2 => {
                let pod = PodName::new(one(random, &NAMESPACES), one(random, &PODS));
                let mut given = labels(&[("pod", one(random, &PODS))]);
                if random.bool() {
                    given.insert("team".into(), one(random, &TEAMS).into());
                }
                Action::LabelPod(pod, given)
            }
            3 | 4 => {
                let number = random.usize(..CLUSTER_POLICIES.len());
                let spec = cluster_policy(random, &world.model, 10 * number);
                Action::ApplyToCluster(Kind::Cluster, CLUSTER_POLICIES[number], spec)
            }
            _ => {
                let mut policy = policy(random, &world.model);
                policy["metadata"]["name"] = format!("p{}", random.usize(..POLICIES)).into();
                Action::Apply(policy)
            }
        })
        .collect()
}
