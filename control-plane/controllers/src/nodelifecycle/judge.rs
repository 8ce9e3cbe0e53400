//! Decides about a node from what is known of it: conditions to set when it has fallen silent, and the
//! taints that follow from its conditions. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that a silent node can no longer vouch for.
const VOUCHED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// (condition, its status, the NoSchedule taint that follows).
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    (
        "MemoryPressure",
        "True",
        "node.kubernetes.io/memory-pressure",
    ),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

pub(crate) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == kind)
}

/// The status of condition Ready: True, False, Unknown, or nothing yet.
pub(crate) fn readiness(node: &Node) -> Option<&str> {
    condition(node, "Ready").map(|condition| condition.status.as_str())
}

pub(crate) fn taints(node: &Node) -> &[Taint] {
    node.spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default()
}

/// How long a node may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grace {
    pub(crate) running: Duration,
    pub(crate) starting: Duration,
}

/// The conditions of a node that was last heard of `silent` ago; `None` when they stand as they are.
pub(crate) fn silenced(
    node: &Node,
    silent: Duration,
    grace: Grace,
    now: Timestamp,
) -> Option<Vec<NodeCondition>> {
    let never_reported = condition(node, "Ready").is_none();
    if silent
        <= if never_reported {
            grace.starting
        } else {
            grace.running
        }
    {
        return None;
    }
    let mut conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let mut changed = false;
    for kind in VOUCHED {
        match conditions
            .iter_mut()
            .find(|condition| condition.type_ == kind)
        {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(Time(now));
                changed = true;
            }
            None => {
                conditions.push(NodeCondition {
                    type_: kind.to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(Time(now)),
                });
                changed = true;
            }
        }
    }
    changed.then_some(conditions)
}

/// Whether pods may be driven off the node now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// The zone's rate allows one more node.
    Allowed,
    /// Not now: the zone's rate, or too much of the cluster is silent to believe it.
    Held,
    /// Nothing reaches us from anywhere: it is probably we who are cut off.
    Revoked,
}

/// The taints that the node should have; `None` when it has them. Others' taints stay.
pub(crate) fn wanted_taints(node: &Node, eviction: Eviction, now: Timestamp) -> Option<Vec<Taint>> {
    let current = taints(node);
    let mut wanted: Vec<(&str, &str)> = CONDITION_TAINTS
        .iter()
        .filter(|(kind, status, _)| {
            condition(node, kind).is_some_and(|condition| condition.status == *status)
        })
        .map(|(_, _, taint)| (*taint, "NoSchedule"))
        .collect();
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let driven = match readiness(node) {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    };
    if let Some(key) = driven {
        let there = |key: &str| {
            current
                .iter()
                .any(|taint| taint.effect == "NoExecute" && taint.key == key)
        };
        // A change between the two kinds needs no new permission: the pods are on their way already.
        let already = there(NOT_READY) || there(UNREACHABLE);
        if eviction == Eviction::Allowed || (already && eviction == Eviction::Held) {
            wanted.push((key, "NoExecute"));
        }
    }
    let mut result: Vec<Taint> = current
        .iter()
        .filter(|taint| !is_ours(taint) || wanted.contains(&(&taint.key, &taint.effect)))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !result
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            result.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (result != current).then_some(result)
}

fn is_ours(taint: &Taint) -> bool {
    match taint.effect.as_str() {
        "NoSchedule" => {
            taint.key == UNSCHEDULABLE
                || CONDITION_TAINTS.iter().any(|(_, _, key)| taint.key == *key)
        }
        "NoExecute" => taint.key == NOT_READY || taint.key == UNREACHABLE,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GRACE: Grace = Grace {
        running: Duration::from_secs(40),
        starting: Duration::from_secs(60),
    };

    fn node(ready: Option<&str>, taints: serde_json::Value) -> Node {
        let conditions: Vec<_> = ready
            .iter()
            .map(|status| json!({"type": "Ready", "status": status}))
            .collect();
        serde_json::from_value(
            json!({"metadata": {"name": "n"}, "spec": {"taints": taints},
            "status": {"conditions": conditions}}),
        )
        .unwrap()
    }

    #[test]
    fn a_silent_node_becomes_unknown_after_its_grace_period() {
        let seconds = Duration::from_secs;
        let ready = node(Some("True"), json!([]));
        assert!(silenced(&ready, seconds(40), GRACE, Timestamp::UNIX_EPOCH).is_none());
        let conditions = silenced(&ready, seconds(41), GRACE, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(conditions.len(), 4);
        assert!(
            conditions
                .iter()
                .all(|condition| condition.status == "Unknown")
        );
        assert_eq!(conditions[0].reason.as_deref(), Some("NodeStatusUnknown"));

        let new = node(None, json!([]));
        assert!(silenced(&new, seconds(60), GRACE, Timestamp::UNIX_EPOCH).is_none());
        let conditions = silenced(&new, seconds(61), GRACE, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(
            conditions[0].reason.as_deref(),
            Some("NodeStatusNeverUpdated")
        );

        let mut unknown = ready;
        unknown.status.as_mut().unwrap().conditions = Some(conditions);
        assert!(silenced(&unknown, seconds(500), GRACE, Timestamp::UNIX_EPOCH).is_none());
    }

    fn wanted(node: &Node, eviction: Eviction) -> Option<Vec<String>> {
        let taints = wanted_taints(node, eviction, Timestamp::UNIX_EPOCH)?;
        Some(
            taints
                .iter()
                .map(|taint| format!("{}:{}", taint.key, taint.effect))
                .collect(),
        )
    }

    #[test]
    fn taints_follow_readiness_and_leave_others_alone() {
        let theirs = json!([{"key": "mine", "effect": "NoSchedule"}]);
        assert_eq!(
            wanted(&node(Some("True"), theirs.clone()), Eviction::Allowed),
            None
        );
        assert_eq!(
            wanted(&node(Some("Unknown"), theirs.clone()), Eviction::Allowed).unwrap(),
            [
                "mine:NoSchedule",
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
        assert_eq!(
            wanted(&node(Some("False"), theirs), Eviction::Held).unwrap(),
            ["mine:NoSchedule", "node.kubernetes.io/not-ready:NoSchedule"]
        );
        let tainted = json!([{"key": NOT_READY, "effect": "NoSchedule"},
            {"key": NOT_READY, "effect": "NoExecute"}]);
        assert_eq!(
            wanted(&node(Some("True"), tainted.clone()), Eviction::Held).unwrap(),
            [""; 0]
        );
        assert_eq!(
            wanted(&node(Some("Unknown"), tainted.clone()), Eviction::Held).unwrap(),
            [
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
        assert_eq!(
            wanted(&node(Some("False"), tainted), Eviction::Revoked).unwrap(),
            ["node.kubernetes.io/not-ready:NoSchedule"]
        );
    }

    #[test]
    fn a_cordoned_node_is_tainted() {
        let mut node = node(Some("True"), json!([]));
        node.spec.as_mut().unwrap().unschedulable = Some(true);
        assert_eq!(
            wanted(&node, Eviction::Allowed).unwrap(),
            ["node.kubernetes.io/unschedulable:NoSchedule"]
        );
    }
}
