//! NodeAffinity: nodeSelector and nodeAffinity, required and preferred; those of the pod, and those that the
//! configuration adds to every pod's.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::core::v1::{NodeAffinity as Affinity, PreferredSchedulingTerm};
use windlass_informers::placement::{self, term_matches};

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, Plugin, Rejection, Score, normalize_to_max},
    node::NodeInfo,
    pod::PodInfo,
};

#[derive(Default)]
pub(crate) struct NodeAffinity {
    /// What the profile adds.
    pub(crate) added: Option<Affinity>,
}

struct Wishes<'a> {
    pod: &'a PodInfo,
    added: Option<&'a Affinity>,
}

/// Whether a pod's nodeSelector and required affinity allow the node; other plugins ask too.
pub(super) fn allowed(pod: &PodInfo, node: &NodeInfo) -> bool {
    placement::allows(pod.spec(), &node.name, node.labels())
}

fn own(pod: &PodInfo) -> Option<&Affinity> {
    pod.spec().affinity.as_ref()?.node_affinity.as_ref()
}

fn preferences(affinity: Option<&Affinity>) -> &[PreferredSchedulingTerm] {
    affinity
        .and_then(|affinity| {
            affinity
                .preferred_during_scheduling_ignored_during_execution
                .as_deref()
        })
        .unwrap_or_default()
}

/// Whether what the profile requires of every pod's node allows this one.
fn enforced(added: Option<&Affinity>, node: &NodeInfo) -> bool {
    let required = added.and_then(|added| {
        added
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    required.is_none_or(|required| {
        let mut terms = required.node_selector_terms.iter();
        terms.any(|term| term_matches(term, &node.name, node.labels()))
    })
}

/// The nodes that a pod names, as those of a DaemonSet do; `None` if it leaves any open.
fn named(affinity: &Affinity) -> Option<BTreeSet<String>> {
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let mut all = BTreeSet::new();
    for term in &required.node_selector_terms {
        let fields = term.match_fields.iter().flatten();
        let names = fields
            .filter(|field| field.key == "metadata.name" && field.operator == "In")
            .map(|field| field.values.iter().flatten().cloned().collect());
        // All fields of a term must hold, and one of the terms.
        all.extend(names.reduce(|one: BTreeSet<String>, other| &one & &other)?);
    }
    (!required.node_selector_terms.is_empty()).then_some(all)
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn refuse(&self, pod: &PodInfo) -> Option<String> {
        let nobody = self.narrow(pod)?.is_empty();
        nobody.then(|| "pod affinity terms conflict".to_owned())
    }

    fn narrow(&self, pod: &PodInfo) -> Option<BTreeSet<String>> {
        named(own(pod)?)
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
                .is_some_and(|affinity| affinity.node_affinity.is_some())
            || self.added.is_some();
        any.then(|| {
            let added = self.added.as_ref();
            Box::new(Wishes { pod, added }) as Box<dyn Filter>
        })
    }

    fn prepare_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
        _feasible: &'a [Arc<NodeInfo>],
    ) -> Option<Box<dyn Score + 'a>> {
        let added = self.added.as_ref();
        let any = !preferences(own(pod)).is_empty() || !preferences(added).is_empty();
        any.then(|| Box::new(Wishes { pod, added }) as Box<dyn Score>)
    }

    fn weight(&self) -> i64 {
        2
    }

    fn wakes(&self, pod: &PodInfo, event: &Event) -> bool {
        match event {
            Event::Node(node) => {
                let mut info = NodeInfo::default();
                info.set_node(Arc::clone(node));
                allowed(pod, &info) && enforced(self.added.as_ref(), &info)
            }
            Event::PodChanged => true,
            _ => false,
        }
    }
}

impl Filter for Wishes<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let reason = if !enforced(self.added, node) {
            "node(s) didn't match scheduler-enforced node affinity"
        } else if !allowed(self.pod, node) {
            "node(s) didn't match Pod's node affinity/selector"
        } else {
            return Ok(());
        };
        Err(Rejection {
            plugin: "NodeAffinity",
            reasons: vec![reason.to_owned()],
            unresolvable: true,
        })
    }
}

impl Score for Wishes<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let all = preferences(own(self.pod)).iter();
        all.chain(preferences(self.added))
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
            let passed: Vec<_> = filtered(&NodeAffinity::default(), &pod, &nodes())
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
            scored(
                &NodeAffinity::default(),
                &pod("p", json!({}), spec),
                &nodes()
            ),
            [100, 50, 0]
        );
    }

    #[test]
    fn a_profile_adds_to_what_every_pod_wants() {
        let term = |values: &[&str]| {
            json!({"matchExpressions": [
            {"key": "disk", "operator": "In", "values": values}]})
        };
        let added = json!({
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term(&["ssd", "hdd"])]},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 4, "preference": term(&["hdd"])}]});
        let plugin = NodeAffinity {
            added: serde_json::from_value(added).unwrap(),
        };
        let plain = pod("p", json!({}), json!({}));
        let enforced = "node(s) didn't match scheduler-enforced node affinity".to_owned();
        assert_eq!(
            reasons(&plugin, &plain, &nodes()),
            [None, None, Some(enforced.clone())]
        );
        assert_eq!(scored(&plugin, &plain, &nodes()), [0, 100, 0]);
        let picky = pod("p", json!({}), json!({"nodeSelector": {"disk": "ssd"}}));
        let own = "node(s) didn't match Pod's node affinity/selector".to_owned();
        assert_eq!(
            reasons(&plugin, &picky, &nodes()),
            [None, Some(own), Some(enforced)]
        );
    }
}
