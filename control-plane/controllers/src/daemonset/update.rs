//! The next step of a DaemonSet's rolling update: pure.

use std::sync::Arc;

use ahash::AHashMap;
use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::DaemonSet, core::v1::Pod},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    int_or_percent::{Round, resolve},
    pods,
};

/// How many nodes may be without an available pod, or have two, during an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) max_unavailable: i32,
    pub(super) max_surge: i32,
}

/// `None` for OnDelete.
pub(super) fn limits(set: &DaemonSet, desired: i32) -> Option<Limits> {
    let strategy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.update_strategy.as_ref());
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return None;
    }
    let update = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    // Both round up (field docs of RollingUpdateDaemonSet).
    let number = |value: Option<&IntOrString>, otherwise: i32| {
        value.map_or(otherwise, |value| {
            resolve(value, desired, Round::Up).unwrap_or(otherwise)
        })
    };
    let max_surge = number(update.and_then(|update| update.max_surge.as_ref()), 0);
    let mut max_unavailable = number(update.and_then(|update| update.max_unavailable.as_ref()), 1);
    if max_surge == 0 && max_unavailable == 0 {
        max_unavailable = 1;
    }
    Some(Limits {
        max_unavailable,
        max_surge,
    })
}

/// Old pods to delete and nodes to put a second, new pod on.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) surge: Vec<String>,
}

/// `nodes` holds the pods of every node that wants one.
pub(super) fn step(
    limits: Limits,
    nodes: &AHashMap<String, Vec<Arc<Pod>>>,
    is_new: impl Fn(&Pod) -> bool,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Step {
    let available = |pod: &Arc<Pod>| pods::is_available(pod, min_ready_seconds, now);
    let mut names: Vec<&String> = nodes.keys().collect();
    names.sort();
    let mut step = Step::default();
    let mut unavailable = 0;
    let mut surging = 0;
    let mut healthy_old: Vec<(&String, Arc<Pod>)> = Vec::new();
    for name in names {
        let live: Vec<_> = nodes[name]
            .iter()
            .filter(|pod| !pods::is_terminating(pod))
            .cloned()
            .collect();
        let new = live.iter().find(|pod| is_new(pod));
        let old = live.iter().find(|pod| !is_new(pod));
        match (old, new) {
            (None, Some(new)) => unavailable += i32::from(!available(new)),
            (None, None) => unavailable += 1,
            (Some(old), None) if available(old) => healthy_old.push((name, Arc::clone(old))),
            (Some(_), None) if limits.max_surge > 0 => {
                // Not available anyway: replaced at once, beyond any limit.
                step.surge.push(name.clone());
            }
            (Some(old), None) => {
                unavailable += 1;
                step.delete.push(Arc::clone(old));
            }
            (Some(old), Some(new)) => {
                if available(new) || !available(old) {
                    step.delete.push(Arc::clone(old));
                } else {
                    surging += 1;
                }
            }
        }
    }
    for (name, old) in healthy_old {
        if limits.max_surge > 0 {
            if surging < limits.max_surge {
                surging += 1;
                step.surge.push(name.clone());
            }
        } else if unavailable < limits.max_unavailable {
            unavailable += 1;
            step.delete.push(old);
        }
    }
    step
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name}, "status": {"conditions":
            [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn nodes(pods: &[(&str, &str, bool)]) -> AHashMap<String, Vec<Arc<Pod>>> {
        let mut nodes: AHashMap<String, Vec<Arc<Pod>>> = AHashMap::new();
        for (node, name, ready) in pods {
            nodes
                .entry((*node).to_owned())
                .or_default()
                .push(pod(name, *ready));
        }
        nodes
    }

    fn run(
        max_unavailable: i32,
        max_surge: i32,
        pods: &[(&str, &str, bool)],
    ) -> (Vec<String>, Vec<String>) {
        let limits = Limits {
            max_unavailable,
            max_surge,
        };
        let is_new = |pod: &Pod| pod.name_any().starts_with("new");
        let step = step(limits, &nodes(pods), is_new, 0, Timestamp::UNIX_EPOCH);
        (
            step.delete.iter().map(|pod| pod.name_any()).collect(),
            step.surge,
        )
    }

    #[test]
    fn as_many_old_pods_go_as_may_be_unavailable() {
        let all_old = [
            ("a", "old-a", true),
            ("b", "old-b", true),
            ("c", "old-c", true),
        ];
        assert_eq!(run(1, 0, &all_old).0, ["old-a"]);
        assert_eq!(run(2, 0, &all_old).0, ["old-a", "old-b"]);
        let starting = [("a", "new-a", false), ("b", "old-b", true)];
        assert_eq!(run(1, 0, &starting).0, [""; 0]);
        let started = [("a", "new-a", true), ("b", "old-b", true)];
        assert_eq!(run(1, 0, &started).0, ["old-b"]);
        let broken = [("a", "old-a", false), ("b", "old-b", true)];
        assert_eq!(
            run(1, 0, &broken).0,
            ["old-a"],
            "what is down anyway goes first"
        );
    }

    #[test]
    fn with_surge_the_new_pod_comes_before_the_old_one_goes() {
        let all_old = [("a", "old-a", true), ("b", "old-b", true)];
        assert_eq!(run(0, 1, &all_old), (vec![], vec!["a".to_owned()]));
        let starting = [
            ("a", "old-a", true),
            ("a", "new-a", false),
            ("b", "old-b", true),
        ];
        assert_eq!(run(0, 1, &starting), (vec![], vec![]));
        let started = [
            ("a", "old-a", true),
            ("a", "new-a", true),
            ("b", "old-b", true),
        ];
        assert_eq!(
            run(0, 1, &started),
            (vec!["old-a".to_owned()], vec!["b".to_owned()])
        );
    }

    #[test]
    fn limits_round_up_and_never_both_are_zero() {
        let limits = |update: serde_json::Value| {
            let set = json!({"spec": {"selector": {}, "template": {},
                "updateStrategy": {"rollingUpdate": update}}});
            let limits = limits(&serde_json::from_value(set).unwrap(), 5).unwrap();
            (limits.max_unavailable, limits.max_surge)
        };
        assert_eq!(limits(json!({})), (1, 0));
        assert_eq!(limits(json!({"maxUnavailable": "30%"})), (2, 0));
        assert_eq!(
            limits(json!({"maxUnavailable": 0, "maxSurge": "10%"})),
            (0, 1)
        );
        assert_eq!(limits(json!({"maxUnavailable": 0, "maxSurge": 0})), (1, 0));
    }
}
