//! NodeAffinity: nodeSelector and nodeAffinity, required and preferred.

use std::sync::Arc;

use windlass_informers::placement::{self, term_matches};

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, Plugin, Rejection, Score, normalize_to_max},
    node::NodeInfo,
    pod::PodInfo,
};

pub(crate) struct NodeAffinity;

struct Wishes<'a>(&'a PodInfo);

/// Whether a pod's nodeSelector and required affinity allow the node; other plugins ask too.
pub(super) fn allowed(pod: &PodInfo, node: &NodeInfo) -> bool {
    placement::allows(pod.spec(), &node.name, node.labels())
}

fn has_preferences(pod: &PodInfo) -> bool {
    pod.spec()
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|node| {
            node.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .is_some_and(|preferred| !preferred.is_empty())
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        let spec = pod.spec();
        let any = spec
            .node_selector
            .as_ref()
            .is_some_and(|selector| !selector.is_empty())
            || spec
                .affinity
                .as_ref()
                .is_some_and(|affinity| affinity.node_affinity.is_some());
        any.then(|| Box::new(Wishes(pod)) as Box<dyn Filter>)
    }

    fn prepare_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
        _feasible: &'a [Arc<NodeInfo>],
    ) -> Option<Box<dyn Score + 'a>> {
        has_preferences(pod).then(|| Box::new(Wishes(pod)) as Box<dyn Score>)
    }

    fn weight(&self) -> i64 {
        2
    }

    fn wakes(&self, pod: &PodInfo, event: &Event) -> bool {
        match event {
            Event::Node(node) => {
                let mut info = NodeInfo::default();
                info.set_node(Arc::clone(node));
                allowed(pod, &info)
            }
            Event::PodChanged => true,
            _ => false,
        }
    }
}

impl Filter for Wishes<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if allowed(self.0, node) {
            return Ok(());
        }
        Err(Rejection {
            plugin: "NodeAffinity",
            reasons: vec!["node(s) didn't match Pod's node affinity/selector".to_owned()],
            unresolvable: true,
        })
    }
}

impl Score for Wishes<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let affinity = self.0.spec().affinity.as_ref();
        affinity
            .and_then(|affinity| affinity.node_affinity.as_ref())
            .and_then(|node| {
                node.preferred_during_scheduling_ignored_during_execution
                    .as_ref()
            })
            .into_iter()
            .flatten()
            .filter(|term| {
                // Unlike in a requirement, an empty preference prefers every node alike.
                let empty = term.preference.match_expressions.is_none()
                    && term.preference.match_fields.is_none();
                empty || term_matches(&term.preference, &node.name, node.labels())
            })
            .map(|term| i64::from(term.weight))
            .sum()
    }

    fn normalize(&self, _nodes: &[Arc<NodeInfo>], scores: &mut [i64]) {
        normalize_to_max(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::tests::*, *};

    fn nodes() -> Snapshot {
        Snapshot::of([
            node("ssd", json!({"disk": "ssd", "gen": "3"}), json!({}), &[]),
            node("hdd", json!({"disk": "hdd", "gen": "1"}), json!({}), &[]),
            node("bare", json!({}), json!({}), &[]),
        ])
    }

    fn required(terms: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    #[test]
    fn requirements_select_nodes() {
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let cases = [
            (
                json!({"nodeSelector": {"disk": "ssd"}}),
                [true, false, false],
            ),
            (
                required(json!([expression("disk", "In", &["ssd", "nvme"])])),
                [true, false, false],
            ),
            (
                required(json!([expression("disk", "NotIn", &["ssd"])])),
                [false, true, true],
            ),
            (
                required(json!([expression("disk", "Exists", &[])])),
                [true, true, false],
            ),
            (
                required(json!([expression("disk", "DoesNotExist", &[])])),
                [false, false, true],
            ),
            (
                required(json!([expression("gen", "Gt", &["2"])])),
                [true, false, false],
            ),
            (
                required(json!([expression("gen", "Lt", &["2"])])),
                [false, true, false],
            ),
            (required(json!([{}])), [false, false, false]),
            (
                required(json!([
                    expression("gen", "Gt", &["2"]),
                    expression("disk", "In", &["hdd"])
                ])),
                [true, true, false],
            ),
            (
                required(json!([{"matchFields":
                    [{"key": "metadata.name", "operator": "In", "values": ["bare"]}]}])),
                [false, false, true],
            ),
        ];
        for (spec, expected) in cases {
            let pod = pod("p", json!({}), spec.clone());
            let passed: Vec<_> = filtered(&NodeAffinity, &pod, &nodes())
                .iter()
                .map(Option::is_none)
                .collect();
            assert_eq!(passed, expected, "{spec}");
        }
    }

    #[test]
    fn preferences_add_up_by_weight() {
        let preference = |weight: i32, value: &str| {
            json!({"weight": weight, "preference": {"matchExpressions":
                [{"key": "disk", "operator": "In", "values": [value]}]}})
        };
        let spec = json!({"affinity": {"nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution":
                [preference(10, "ssd"), preference(5, "hdd")]}}});
        assert_eq!(
            scored(&NodeAffinity, &pod("p", json!({}), spec), &nodes()),
            [100, 50, 0]
        );
    }
}
