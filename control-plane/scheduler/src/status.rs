//! What the scheduler writes into a pod's status, as merge patches. Conditions are one list to a merge
//! patch, so they are written whole, with the resourceVersion that they were read at.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, json};

fn with_condition(pod: &Pod, new: PodCondition) -> Vec<PodCondition> {
    let mut conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    match conditions
        .iter_mut()
        .find(|condition| condition.type_ == new.type_)
    {
        Some(condition) if condition.status == new.status => {
            let since = condition.last_transition_time.clone();
            *condition = PodCondition {
                last_transition_time: since,
                ..new
            };
        }
        Some(condition) => *condition = new,
        None => conditions.push(new),
    }
    conditions
}

fn condition(pod: &Pod, kind: &str, status: &str, reason: &str, message: &str) -> PodCondition {
    PodCondition {
        observed_generation: pod.metadata.generation,
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(Timestamp::now())),
        ..Default::default()
    }
}

fn patch(pod: &Pod, uid: &str, mut status: Value, conditions: &[PodCondition]) -> Value {
    status["conditions"] = json!(conditions);
    json!({
        "metadata": { "uid": uid, "resourceVersion": pod.metadata.resource_version },
        "status": status,
    })
}

/// What becomes of the node that a pod was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise<'a> {
    Stands,
    Lapsed,
    Node(&'a str),
}

/// Why a pod has no node: `reason` of its condition.
pub(crate) const UNSCHEDULABLE: &str = "Unschedulable";
/// A node was found, but something failed on the way to it.
pub(crate) const SCHEDULER_ERROR: &str = "SchedulerError";

/// PodScheduled False; `None` when the pod says so already.
pub(crate) fn unscheduled(
    pod: &Pod,
    uid: &str,
    reason: &str,
    message: &str,
    promise: Promise<'_>,
) -> Option<Value> {
    let conditions = with_condition(
        pod,
        condition(pod, "PodScheduled", "False", reason, message),
    );
    let status = pod.status.as_ref();
    let current = status.and_then(|status| status.conditions.as_ref());
    let current_node = status.and_then(|status| status.nominated_node_name.as_deref());
    let wanted = match promise {
        Promise::Stands => current_node,
        Promise::Lapsed => None,
        Promise::Node(node) => Some(node),
    };
    if current == Some(&conditions) && wanted == current_node {
        return None;
    }
    let status = if wanted == current_node {
        json!({})
    } else {
        json!({ "nominatedNodeName": wanted })
    };
    Some(patch(pod, uid, status, &conditions))
}

/// Where a pod is going to be, or that this is open again.
pub(crate) fn expected(uid: &str, node: Option<&str>) -> Value {
    json!({ "metadata": { "uid": uid }, "status": { "nominatedNodeName": node } })
}

const DISRUPTION: &str = "DisruptionTarget";
const BY_PREEMPTION: &str = "PreemptionByScheduler";

/// Whether it goes because another pod needs its room.
pub(crate) fn leaves_for_another(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_some()
        && conditions.into_iter().flatten().any(|condition| {
            condition.type_ == DISRUPTION
                && condition.status == "True"
                && condition.reason.as_deref() == Some(BY_PREEMPTION)
        })
}

/// The victim's Job or operator can see why it went (KEP-3329).
pub(crate) fn preempted(pod: &Pod, uid: &str, scheduler: &str) -> Value {
    let message = format!("{scheduler}: preempting to accommodate a higher priority pod");
    let conditions = with_condition(
        pod,
        condition(pod, DISRUPTION, "True", BY_PREEMPTION, &message),
    );
    patch(pod, uid, json!({}), &conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_condition_is_not_written_again_and_others_are_kept() {
        let mut pod: Pod = serde_json::from_value(
            json!({"metadata": {"generation": 2}, "status": {"conditions":
            [{"type": "Ready", "status": "False"}]}}),
        )
        .unwrap();
        let say = |pod: &Pod, message: &str, promise| {
            unscheduled(pod, "u", UNSCHEDULABLE, message, promise)
        };
        let body = say(&pod, "no room", Promise::Stands).unwrap();
        assert_eq!(body["status"]["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(body["status"]["conditions"][1]["observedGeneration"], 2);
        pod.status = serde_json::from_value(body["status"].clone()).unwrap();
        assert_eq!(say(&pod, "no room", Promise::Stands), None);
        assert!(say(&pod, "other", Promise::Stands).is_some());
        assert!(say(&pod, "no room", Promise::Node("n1")).is_some());
        let error = unscheduled(&pod, "u", SCHEDULER_ERROR, "no room", Promise::Stands);
        assert!(error.is_some());
    }
}
