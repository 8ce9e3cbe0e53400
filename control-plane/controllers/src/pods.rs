//! What controllers ask of a pod: is it active, ready, available; how is one made from a template; which
//! one goes first when there are too many.

use std::{cmp::Ordering, sync::Arc, time::Duration};

use ahash::AHashMap;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::ResourceExt;

const DISRUPTION: &str = "DisruptionTarget";

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Succeeded or Failed: its containers will not run again.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// The conditions of a pod that is made to go: which of them a Job may leave out of its account (KEP-3329).
pub(crate) fn disrupted(pod: &Pod, reason: &str, message: &str) -> Vec<PodCondition> {
    let mut conditions = conditions_without_disruption(pod);
    conditions.push(PodCondition {
        type_: DISRUPTION.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(Timestamp::now())),
        observed_generation: pod.metadata.generation,
        ..Default::default()
    });
    conditions
}

pub(crate) fn conditions_without_disruption(pod: &Pod) -> Vec<PodCondition> {
    let known = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let others = known
        .into_iter()
        .flatten()
        .filter(|condition| condition.type_ != DISRUPTION);
    others.cloned().collect()
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Counts towards a controller's replicas.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .filter(|name| !name.is_empty())
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == kind)
}

fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    condition(pod, "Ready").filter(|condition| condition.status == "True")
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some()
}

/// When the pod became ready, if it is.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    ready_condition(pod)?
        .last_transition_time
        .as_ref()
        .map(|time| time.0)
}

/// Ready for at least `min_ready_seconds`.
pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    is_ready(pod) && available_in(pod, min_ready_seconds, now).is_some_and(|left| left.is_zero())
}

/// How long until a ready pod is available; `None` when it is not ready.
pub(crate) fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    let wanted = i64::from(min_ready_seconds.max(0));
    if wanted == 0 {
        return Some(Duration::ZERO);
    }
    let passed = now.duration_since(ready_since(pod)?);
    let left = jiff::SignedDuration::from_secs(wanted) - passed;
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
}

/// A pod of a template, controlled by `owner`; the server completes its name.
pub(crate) fn from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    generate_name: String,
    owner: OwnerReference,
) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(generate_name),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        ..Default::default()
    }
}

/// The annotation by which a user says which pod to keep: higher stays longer (KEP-2255).
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

fn deletion_cost(pod: &Pod) -> i32 {
    pod.annotations()
        .get(DELETION_COST)
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let Some(status) = &pod.status else { return 0 };
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    all.map(|container| container.restart_count)
        .max()
        .unwrap_or(0)
}

/// Ages are compared by order of magnitude, so that pods started together count as equally old and the
/// choice between them is not always the same one (KEP-2185).
fn age_bucket(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let age = since.map_or(0, |since| now.duration_since(since).as_nanos().max(0));
    u128::try_from(age)
        .unwrap_or(0)
        .checked_ilog2()
        .unwrap_or(0)
}

struct Rank {
    assigned: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    /// Fewer related pods on the node: kept longer.
    crowd: std::cmp::Reverse<usize>,
    ready_age: u32,
    restarts: std::cmp::Reverse<i32>,
    age: u32,
    uid: String,
}

impl Rank {
    fn of(pod: &Pod, crowd: usize, now: Timestamp) -> Self {
        let ready = is_ready(pod);
        Self {
            assigned: node_name(pod).is_some(),
            phase: match phase(pod) {
                "Running" => 2,
                "Pending" | "" => 0,
                _ => 1,
            },
            ready,
            cost: deletion_cost(pod),
            crowd: std::cmp::Reverse(crowd),
            ready_age: if ready {
                age_bucket(ready_since(pod), now)
            } else {
                0
            },
            restarts: std::cmp::Reverse(restarts(pod)),
            age: age_bucket(
                pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
                now,
            ),
            uid: pod.uid().unwrap_or_default(),
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        self.assigned
            .cmp(&other.assigned)
            .then_with(|| self.phase.cmp(&other.phase))
            .then_with(|| self.ready.cmp(&other.ready))
            .then_with(|| self.cost.cmp(&other.cost))
            .then_with(|| self.crowd.cmp(&other.crowd))
            .then_with(|| self.ready_age.cmp(&other.ready_age))
            .then_with(|| self.restarts.cmp(&other.restarts))
            .then_with(|| self.age.cmp(&other.age))
            .then_with(|| self.uid.cmp(&other.uid))
    }
}

/// Orders pods so that the first ones are deleted first. `related` are all active pods of the same
/// application (of all ReplicaSets of a Deployment): a crowded node gives first.
pub(crate) fn rank_for_deletion(pods: &mut Vec<Arc<Pod>>, related: &[Arc<Pod>], now: Timestamp) {
    let mut crowds: AHashMap<&str, usize> = AHashMap::new();
    for node in related.iter().filter_map(|pod| node_name(pod)) {
        *crowds.entry(node).or_default() += 1;
    }
    let crowd = |pod: &Pod| {
        node_name(pod)
            .and_then(|node| crowds.get(node))
            .copied()
            .unwrap_or(0)
    };
    let mut ranked: Vec<_> = pods
        .drain(..)
        .map(|pod| (Rank::of(&pod, crowd(&pod), now), pod))
        .collect();
    ranked.sort_by(|(a, _), (b, _)| a.compare(b));
    pods.extend(ranked.into_iter().map(|(_, pod)| pod));
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{ContainerStatus, PodSpec, PodStatus},
        apimachinery::pkg::apis::meta::v1::Time,
    };

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(name: &str, node: &str, phase: &str, ready_since: Option<i64>) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                uid: Some(name.into()),
                creation_timestamp: Some(Time(at(0))),
                ..Default::default()
            },
            spec: Some(PodSpec {
                node_name: Some(node.into()),
                ..Default::default()
            }),
            status: Some(PodStatus {
                phase: Some(phase.into()),
                conditions: ready_since.map(|since| {
                    vec![PodCondition {
                        type_: "Ready".into(),
                        status: "True".into(),
                        last_transition_time: Some(Time(at(since))),
                        ..Default::default()
                    }]
                }),
                ..Default::default()
            }),
        }
    }

    #[test]
    fn availability_counts_from_the_ready_transition() {
        let ready = pod("a", "n", "Running", Some(100));
        assert!(is_available(&ready, 0, at(100)));
        assert!(!is_available(&ready, 10, at(109)));
        assert!(is_available(&ready, 10, at(110)));
        assert_eq!(
            available_in(&ready, 10, at(104)),
            Some(Duration::from_secs(6))
        );
        assert!(!is_available(&pod("b", "n", "Running", None), 0, at(100)));
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let unassigned = pod("unassigned", "", "Pending", None);
        let pending = pod("pending", "n1", "Pending", None);
        let unready = pod("unready", "n1", "Running", None);
        let mut cheap = pod("cheap", "n1", "Running", Some(10));
        cheap.metadata.annotations = Some([(DELETION_COST.to_owned(), "-5".to_owned())].into());
        let crowded = pod("crowded", "n1", "Running", Some(10));
        let young = pod("young", "n2", "Running", Some(9_000));
        let mut restarted = pod("restarted", "n2", "Running", Some(10));
        restarted.status.as_mut().unwrap().container_statuses = Some(vec![ContainerStatus {
            restart_count: 3,
            ..Default::default()
        }]);
        let best = pod("best", "n2", "Running", Some(10));

        let expected = [
            unassigned, pending, unready, cheap, crowded, young, restarted, best,
        ]
        .map(Arc::new);
        let mut pods: Vec<_> = expected.iter().rev().cloned().collect();
        // n1 holds five related pods, n2 three.
        let mut related: Vec<_> = expected.to_vec();
        related.push(Arc::new(pod("other", "n1", "Running", None)));
        rank_for_deletion(&mut pods, &related, at(10_000));
        let names: Vec<_> = pods.iter().map(|pod| pod.name_any()).collect();
        let wanted: Vec<_> = expected.iter().map(|pod| pod.name_any()).collect();
        assert_eq!(names, wanted);
    }
}
