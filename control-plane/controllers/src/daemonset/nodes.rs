//! Which nodes a DaemonSet wants a pod on, and which pods come and go to get there: pure.

use std::sync::Arc;

use ahash::AHashMap;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    PodTemplateSpec, Toleration,
};
use kube::ResourceExt;
use windlass_informers::placement;

use crate::pods;

/// Daemons run where others may not: on nodes that are not ready, cordoned or short of something.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";

pub(super) fn add_tolerations(spec: &mut PodSpec) {
    let network = spec.host_network == Some(true);
    let extra = network.then_some((NETWORK_UNAVAILABLE, "NoSchedule"));
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(extra) {
        let wanted = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Default::default()
        };
        if !tolerations.contains(&wanted) {
            tolerations.push(wanted);
        }
    }
}

/// Ties a pod to one node by affinity, so that the scheduler places it and quota and preemption see it.
pub(super) fn pin(spec: &mut PodSpec, node: &str) {
    let field = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity = spec.affinity.get_or_insert_default();
    let wanted = affinity
        .node_affinity
        .get_or_insert_with(NodeAffinity::default);
    let selector = wanted
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(NodeSelector::default);
    if selector.node_selector_terms.is_empty() {
        selector
            .node_selector_terms
            .push(NodeSelectorTerm::default());
    }
    for term in &mut selector.node_selector_terms {
        term.match_fields = Some(vec![field.clone()]);
    }
}

/// The node that a daemon pod runs on or is tied to.
pub(super) fn target_node(pod: &Pod) -> Option<&str> {
    if let Some(node) = pods::node_name(pod) {
        return Some(node);
    }
    let affinity = pod
        .spec
        .as_ref()?
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?;
    let selector = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    selector
        .node_selector_terms
        .iter()
        .flat_map(|term| term.match_fields.iter().flatten())
        .find(|field| field.key == "metadata.name" && field.operator == "In")
        .and_then(|field| field.values.as_ref()?.first().map(String::as_str))
}

/// What a DaemonSet wants on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// A pod.
    Run,
    /// No new pod, but one that runs may stay (a NoSchedule taint came later).
    Keep,
    Nothing,
}

pub(super) fn want(template: &PodTemplateSpec, node: &Node) -> Want {
    let mut spec = template.spec.clone().unwrap_or_default();
    add_tolerations(&mut spec);
    let name = node.name_any();
    let named = spec
        .node_name
        .as_deref()
        .filter(|wanted| !wanted.is_empty());
    if named.is_some_and(|wanted| wanted != name) || !placement::allows(&spec, &name, node.labels())
    {
        return Want::Nothing;
    }
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default();
    let refused = |effect: &str| {
        taints
            .iter()
            .any(|taint| taint.effect == effect && !placement::tolerated(&spec, taint))
    };
    if refused("NoExecute") {
        Want::Nothing
    } else if refused("NoSchedule") {
        Want::Keep
    } else {
        Want::Run
    }
}

/// Pods of a DaemonSet by the node they are for.
pub(super) fn by_node(pods: &[Arc<Pod>]) -> AHashMap<String, Vec<Arc<Pod>>> {
    let mut nodes: AHashMap<String, Vec<Arc<Pod>>> = AHashMap::new();
    for pod in pods {
        if let Some(node) = target_node(pod) {
            nodes
                .entry(node.to_owned())
                .or_default()
                .push(Arc::clone(pod));
        }
    }
    nodes
}

/// What is to be done on one node.
#[derive(Debug, Default)]
pub(super) struct Deed {
    pub(super) create: bool,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Failed pods, to be deleted when their back-off allows.
    pub(super) failed: Vec<Arc<Pod>>,
}

/// `surging` allows a second, newer pod beside the old one until the new one is available; `is_new` tells
/// them apart.
pub(super) fn deed(
    want: Want,
    pods: &[Arc<Pod>],
    surging: bool,
    is_new: impl Fn(&Pod) -> bool,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Deed {
    let mut deed = Deed::default();
    let live: Vec<_> = pods
        .iter()
        .filter(|pod| !pods::is_terminating(pod))
        .collect();
    match want {
        Want::Nothing => deed.delete = live.into_iter().cloned().collect(),
        Want::Keep | Want::Run if pods.is_empty() => deed.create = want == Want::Run,
        Want::Keep | Want::Run => {
            let (failed, mut running): (Vec<_>, Vec<_>) = live
                .into_iter()
                .partition(|pod| pods::phase(pod) == "Failed");
            deed.failed = failed.into_iter().cloned().collect();
            running.sort_by_key(|pod| {
                (
                    pod.metadata.creation_timestamp.as_ref().map(|at| at.0),
                    pod.name_any(),
                )
            });
            let keep_two = surging
                && running.iter().any(|pod| is_new(pod))
                && running.iter().any(|pod| !is_new(pod))
                && !running
                    .iter()
                    .any(|pod| is_new(pod) && pods::is_available(pod, min_ready_seconds, now));
            if running.len() > 1 && !keep_two {
                // When surging the new one stays, otherwise the oldest.
                let stays = if surging {
                    running.iter().position(|pod| is_new(pod)).unwrap_or(0)
                } else {
                    0
                };
                running.remove(stays);
                deed.delete.extend(running.into_iter().cloned());
            }
        }
    }
    deed
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn template(spec: Value) -> PodTemplateSpec {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn node(taints: Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"disk": "ssd"}}, "spec": {"taints": taints}}))
        .unwrap()
    }

    #[test]
    fn a_daemon_is_wanted_where_labels_and_taints_allow() {
        let plain = json!({"containers": []});
        let cases = [
            (plain.clone(), json!([]), Want::Run),
            (
                json!({"containers": [], "nodeSelector": {"disk": "hdd"}}),
                json!([]),
                Want::Nothing,
            ),
            (
                json!({"containers": [], "nodeName": "other"}),
                json!([]),
                Want::Nothing,
            ),
            (
                plain.clone(),
                json!([{"key": "k", "effect": "NoSchedule"}]),
                Want::Keep,
            ),
            (
                plain.clone(),
                json!([{"key": "k", "effect": "NoExecute"}]),
                Want::Nothing,
            ),
            (
                plain.clone(),
                json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
                       {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]),
                Want::Run,
            ),
            (
                plain,
                json!([{"key": NETWORK_UNAVAILABLE, "effect": "NoSchedule"}]),
                Want::Keep,
            ),
            (
                json!({"containers": [], "hostNetwork": true}),
                json!([{"key": NETWORK_UNAVAILABLE, "effect": "NoSchedule"}]),
                Want::Run,
            ),
        ];
        for (spec, taints, expected) in cases {
            assert_eq!(
                want(&template(spec.clone()), &node(taints.clone())),
                expected,
                "{spec} {taints}"
            );
        }
    }

    #[test]
    fn a_pinned_pod_is_for_its_node() {
        let mut spec = PodSpec::default();
        pin(&mut spec, "n7");
        let pod = Pod {
            spec: Some(spec),
            ..Default::default()
        };
        assert_eq!(target_node(&pod), Some("n7"));
    }

    fn pod(name: &str, phase: &str, created: i64, ready: bool) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name,
                "creationTimestamp": Timestamp::from_second(created).unwrap().to_string()},
            "status": {"phase": phase, "conditions":
                [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        pods.iter().map(|pod| pod.name_any()).collect()
    }

    #[test]
    fn one_pod_stays_and_failed_ones_go() {
        let run = |pods: &[Arc<Pod>], surging| {
            let is_new = |pod: &Pod| pod.name_any().starts_with("new");
            let deed = deed(
                Want::Run,
                pods,
                surging,
                is_new,
                0,
                Timestamp::from_second(99).unwrap(),
            );
            (deed.create, names(&deed.delete), names(&deed.failed))
        };
        let none = Vec::<String>::new;
        assert_eq!(run(&[], false), (true, none(), none()));
        let (old, new) = (
            pod("old", "Running", 1, true),
            pod("new", "Running", 2, false),
        );
        let ready = pod("new", "Running", 2, true);
        assert_eq!(
            run(&[new.clone(), old.clone()], false),
            (false, vec!["new".into()], none())
        );
        assert_eq!(run(&[new, old.clone()], true), (false, none(), none()));
        assert_eq!(
            run(&[ready, old], true),
            (false, vec!["old".into()], none())
        );
        assert_eq!(
            run(&[pod("bad", "Failed", 1, false)], false),
            (false, none(), vec!["bad".into()])
        );
    }
}
