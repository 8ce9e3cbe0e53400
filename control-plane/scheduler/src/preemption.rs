//! DefaultPreemption: when a pod fits nowhere, looks for a node where less important pods can make room,
//! harming as little as possible. Finding them is pure; removing them is `scheduler.rs`.

use std::{cmp::Reverse, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};

use crate::{
    cache::Snapshot,
    cycle::{Diagnosis, Filters, Nominated, fits},
    framework::Plugin,
    node::NodeInfo,
    pod::{PodInfo, parsed},
    status::leaves_for_another,
};

/// A node and the pods that must leave it.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) node: String,
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// How many victims their disruption budgets would protect.
    violations: usize,
}

/// Why there is no candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Upstream's sentence.
    pub(crate) message: String,
    /// Victims are still leaving the node that the pod was promised: the promise stands.
    pub(crate) keeps_promise: bool,
}

impl Refusal {
    fn new(message: String) -> Self {
        Self {
            message,
            keeps_promise: false,
        }
    }

    /// The profile has no DefaultPreemption.
    pub(crate) fn disabled() -> Self {
        Self::new(String::new())
    }
}

/// What preemption looks at besides the pod.
pub(crate) struct Scene<'a> {
    pub(crate) plugins: &'a [Box<dyn Plugin>],
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) budgets: &'a [Arc<PodDisruptionBudget>],
    /// Room that others were promised is not to be had.
    pub(crate) nominated: &'a Nominated,
}

/// The best of the first `enough` candidates, or why there is none.
pub(crate) fn find(
    scene: &Scene<'_>,
    pod: &PodInfo,
    diagnosis: &Diagnosis,
    enough: usize,
) -> Result<Candidate, Refusal> {
    let total = diagnosis.nodes;
    if pod.spec().preemption_policy.as_deref() == Some("Never") {
        let message = "preemption: not eligible due to preemptionPolicy=Never.";
        return Err(Refusal::new(message.to_owned()));
    }
    if waits_for_victims(pod, scene.snapshot, diagnosis) {
        let message = "preemption: not eligible due to a terminating pod on the nominated node.";
        return Err(Refusal {
            message: message.to_owned(),
            keeps_promise: true,
        });
    }
    // A pod that was refused as such is not helped by room on any node.
    let mut hopeless = if diagnosis.refused.is_some() {
        total
    } else {
        0
    };
    let mut without = 0;
    let mut candidates = Vec::new();
    for (name, rejection) in &diagnosis.rejections {
        if rejection.unresolvable {
            hopeless += 1;
            continue;
        }
        if candidates.len() >= enough {
            break;
        }
        let found = scene
            .snapshot
            .get(name)
            .and_then(|node| victims(scene, pod, node));
        match found {
            Some(candidate) => candidates.push(candidate),
            None => without += 1,
        }
    }
    if let Some(best) = candidates.into_iter().min_by_key(harm) {
        return Ok(best);
    }
    let mut parts = Vec::new();
    if without > 0 {
        parts.push(format!(
            "{without} No preemption victims found for incoming pod"
        ));
    }
    if hopeless > 0 {
        parts.push(format!(
            "{hopeless} Preemption is not helpful for scheduling"
        ));
    }
    Err(Refusal::new(format!(
        "preemption: 0/{total} nodes are available: {}.",
        parts.join(", ")
    )))
}

/// Victims of an earlier attempt are still on their way out of the node that the pod was promised, and their
/// going will help.
fn waits_for_victims(pod: &PodInfo, snapshot: &Snapshot, diagnosis: &Diagnosis) -> bool {
    let Some(node) = pod.nominated_node().and_then(|name| snapshot.get(name)) else {
        return false;
    };
    let mut rejections = diagnosis.rejections.iter();
    let in_vain = diagnosis.refused.is_some()
        || rejections.any(|(name, rejection)| *name == node.name && rejection.unresolvable);
    let mut pods = node.pods.iter();
    !in_vain && pods.any(|other| other.priority < pod.priority && leaves_for_another(&other.pod))
}

/// The fewest, least important pods of a node that make room.
fn victims(scene: &Scene<'_>, pod: &PodInfo, node: &Arc<NodeInfo>) -> Option<Candidate> {
    let mut lower: Vec<_> = node
        .pods
        .iter()
        .filter(|other| other.priority < pod.priority)
        .cloned()
        .collect();
    if lower.is_empty() {
        return None;
    }
    let mut emptied = node.as_ref().clone();
    for other in &lower {
        emptied.remove(&other.uid);
    }
    let passes = |node: &NodeInfo| {
        let imagined = scene.snapshot.with(node.clone());
        let filters = Filters::prepare(scene.plugins, pod, &imagined);
        imagined.get(&node.name).is_some_and(|node| {
            let nominated = scene.nominated;
            fits(scene.plugins, &filters, pod, &imagined, node, nominated).is_ok()
        })
    };
    if !passes(&emptied) {
        return None;
    }
    // The most important ones are spared first, and before them those that a budget protects.
    lower.sort_by_key(|other| (Reverse(other.priority), started(&other.pod)));
    let (protected, free) = by_budget(lower, scene.budgets);
    let mut victims = Vec::new();
    let mut violations = 0;
    let count = protected.len();
    for (at, other) in protected.into_iter().chain(free).enumerate() {
        let mut with_it = emptied.clone();
        with_it.add(Arc::clone(&other));
        if passes(&with_it) {
            emptied = with_it;
        } else {
            violations += usize::from(at < count);
            victims.push(other);
        }
    }
    (!victims.is_empty()).then(|| Candidate {
        node: node.name.clone(),
        victims,
        violations,
    })
}

fn started(pod: &Pod) -> Timestamp {
    let start = pod
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref());
    start.map_or(Timestamp::MAX, |time| time.0)
}

/// Tells apart pods whose loss would break a disruption budget.
fn by_budget(
    pods: Vec<Arc<PodInfo>>,
    budgets: &[Arc<PodDisruptionBudget>],
) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut allowed: Vec<i32> = budgets
        .iter()
        .map(|budget| {
            budget
                .status
                .as_ref()
                .map_or(0, |status| status.disruptions_allowed)
        })
        .collect();
    // An empty selector, which an eviction takes for all pods, protects none here.
    let selector = |budget: &PodDisruptionBudget| -> Option<Selector> {
        let written = budget.spec.as_ref()?.selector.as_ref()?;
        parsed(written).filter(|selector| !selector.selects_all())
    };
    let selectors: Vec<_> = budgets.iter().map(|budget| selector(budget)).collect();
    // Pods whose eviction was granted already are in the budget's account.
    let granted = |budget: &PodDisruptionBudget, pod: &PodInfo| {
        let disrupted = budget
            .status
            .as_ref()
            .and_then(|it| it.disrupted_pods.as_ref());
        disrupted.is_some_and(|pods| pods.contains_key(&pod.key.name))
    };
    pods.into_iter().partition(|pod| {
        let mut violated = false;
        for ((budget, selector), allowed) in budgets.iter().zip(&selectors).zip(&mut allowed) {
            let covers = budget.namespace().as_deref() == Some(pod.namespace())
                && selector
                    .as_ref()
                    .is_some_and(|selector| selector.matches(pod.pod.labels()));
            if covers && !granted(budget, pod) {
                *allowed -= 1;
                violated |= *allowed < 0;
            }
        }
        violated
    })
}

/// Smaller is better: broken budgets, then the most important victim, the sum of importance, the number,
/// and of equals the node whose victims started last.
fn harm(candidate: &Candidate) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
    let priorities = candidate.victims.iter().map(|victim| victim.priority);
    let highest = priorities.clone().max().unwrap_or(i32::MIN);
    // Offset so that a crowd of negative priorities does not look harmless.
    let sum = priorities
        .map(|priority| i64::from(priority) - i64::from(i32::MIN))
        .sum();
    let earliest = candidate
        .victims
        .iter()
        .filter(|victim| victim.priority == highest)
        .map(|victim| started(&victim.pod))
        .min()
        .unwrap_or(Timestamp::MAX);
    (
        candidate.violations,
        highest,
        sum,
        candidate.victims.len(),
        Reverse(earliest),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cycle::{Nominated, choose},
        plugins::tests::*,
        profile::Profiles,
    };

    fn asking(name: &str, cpu: &str, priority: i32) -> Arc<PodInfo> {
        let spec = json!({"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
        pod(name, json!({"app": name}), spec)
    }

    fn preempt(
        pod: &PodInfo,
        snapshot: &Snapshot,
        budgets: &[Arc<PodDisruptionBudget>],
    ) -> Result<(String, Vec<String>), String> {
        preempt_beside(pod, snapshot, budgets, &Nominated::new())
    }

    fn preempt_beside(
        pod: &PodInfo,
        snapshot: &Snapshot,
        budgets: &[Arc<PodDisruptionBudget>],
        nominated: &Nominated,
    ) -> Result<(String, Vec<String>), String> {
        let profiles = Profiles::single(default_plugins());
        let profile = profiles.of(&pod.pod).unwrap();
        let diagnosis = choose(profile, pod, snapshot, nominated, &mut 0).unwrap_err();
        let scene = Scene {
            plugins: &profile.plugins,
            snapshot,
            budgets,
            nominated,
        };
        let candidate = find(&scene, pod, &diagnosis, 100).map_err(|refusal| refusal.message)?;
        let mut names: Vec<_> = candidate
            .victims
            .iter()
            .map(|victim| victim.uid.clone())
            .collect();
        names.sort();
        Ok((candidate.node, names))
    }

    #[test]
    fn as_few_and_as_unimportant_pods_as_possible_leave() {
        let snapshot = Snapshot::of([
            node(
                "a",
                json!({}),
                json!({}),
                &[asking("a1", "2", 5), asking("a2", "2", 1)],
            ),
            node("b", json!({}), json!({}), &[asking("b1", "4", 5)]),
        ]);
        let found = preempt(&asking("vip", "2", 10), &snapshot, &[]);
        assert_eq!(found, Ok(("a".to_owned(), vec!["a2".to_owned()])));
        let found = preempt(&asking("vip", "3", 10), &snapshot, &[]);
        assert_eq!(found, Ok(("b".to_owned(), vec!["b1".to_owned()])));
    }

    #[test]
    fn a_budget_turns_the_choice_to_another_node() {
        let snapshot = Snapshot::of([
            node("a", json!({}), json!({}), &[asking("a1", "4", 1)]),
            node("b", json!({}), json!({}), &[asking("b1", "4", 5)]),
        ]);
        let budget: PodDisruptionBudget = serde_json::from_value(json!({
            "metadata": {"namespace": "ns"},
            "spec": {"selector": {"matchLabels": {"app": "a1"}}},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1},
        }))
        .unwrap();
        let vip = asking("vip", "2", 10);
        assert_eq!(preempt(&vip, &snapshot, &[]).unwrap().0, "a");
        assert_eq!(
            preempt(&vip, &snapshot, &[Arc::new(budget)]).unwrap().0,
            "b"
        );
    }

    #[test]
    fn a_budget_protects_whom_it_names_and_not_whom_it_let_go() {
        let with = |selector: serde_json::Value, disrupted: serde_json::Value| {
            let snapshot = Snapshot::of([
                node("a", json!({}), json!({}), &[asking("a1", "4", 1)]),
                node("b", json!({}), json!({}), &[asking("b1", "4", 5)]),
            ]);
            let budget: PodDisruptionBudget = serde_json::from_value(json!({
                "metadata": {"namespace": "ns"}, "spec": {"selector": selector},
                "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1,
                    "expectedPods": 1, "disruptedPods": disrupted},
            }))
            .unwrap();
            preempt(&asking("vip", "2", 10), &snapshot, &[Arc::new(budget)])
                .unwrap()
                .0
        };
        let named = json!({"matchLabels": {"app": "a1"}});
        assert_eq!(with(named.clone(), json!({})), "b");
        assert_eq!(with(named, json!({"a1": "2026-01-01T00:00:00Z"})), "a");
        assert_eq!(with(json!({}), json!({})), "a");
    }

    #[test]
    fn room_that_others_were_promised_must_be_made_twice() {
        let pods = ["1", "2", "3", "4"].map(|name| asking(name, "1", 1));
        let snapshot = Snapshot::of([node("a", json!({}), json!({}), &pods)]);
        let first = vec![("a".to_owned(), asking("first", "2", 10))];
        let found = preempt_beside(&asking("second", "2", 10), &snapshot, &[], &first);
        assert_eq!(found.unwrap().1.len(), 4);
    }

    #[test]
    fn a_pod_waits_for_those_who_leave_for_it_and_for_no_others() {
        let leaving = |condition: serde_json::Value| {
            let mut leaving = Pod::clone(&asking("a1", "4", 1).pod);
            leaving.metadata.deletion_timestamp =
                serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
            leaving.status = serde_json::from_value(json!({"conditions": [condition]})).unwrap();
            PodInfo::new(Arc::new(leaving))
        };
        let mut vip = Pod::clone(&asking("vip", "2", 10).pod);
        vip.status = serde_json::from_value(json!({"nominatedNodeName": "a"})).unwrap();
        let vip = PodInfo::new(Arc::new(vip));
        let with = |condition: serde_json::Value, more: serde_json::Value| {
            let snapshot = Snapshot::of([node("a", json!({}), more, &[leaving(condition)])]);
            preempt(&vip, &snapshot, &[])
        };
        let made_to = json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"});
        let other = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"});
        assert_eq!(
            with(made_to.clone(), json!({})).unwrap_err(),
            "preemption: not eligible due to a terminating pod on the nominated node."
        );
        assert!(with(other, json!({})).is_ok());
        let cordoned = json!({"spec": {"unschedulable": true}});
        assert_eq!(
            with(made_to, cordoned).unwrap_err(),
            "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
        );
    }

    #[test]
    fn without_victims_the_message_says_so() {
        let cordoned = json!({"spec": {"unschedulable": true}});
        let snapshot = Snapshot::of([
            node("a", json!({}), json!({}), &[asking("a1", "4", 10)]),
            node("b", json!({}), cordoned, &[]),
        ]);
        assert_eq!(
            preempt(&asking("p", "1", 10), &snapshot, &[]).unwrap_err(),
            "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, \
             1 Preemption is not helpful for scheduling."
        );
    }
}
