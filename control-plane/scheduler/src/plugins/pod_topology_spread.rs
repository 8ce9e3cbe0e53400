//! PodTopologySpread: keeps like pods spread over zones, nodes or other domains; pods that say nothing
//! about it are spread by the system's defaults where possible.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ahash::{AHashMap, AHashSet};
use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use kube::{
    ResourceExt,
    core::{Expression, Selector, SelectorExt},
};

use super::{Lookup, node_affinity, taint_toleration};
use crate::{
    arguments::{Defaulting, SpreadArguments},
    cache::Snapshot,
    event::Event,
    framework::{Filter, MAX_SCORE, Plugin, Rejection, Score},
    kin::Asked,
    node::NodeInfo,
    pod::{PodInfo, parsed},
};

const NAME: &str = "PodTopologySpread";
const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

pub(crate) struct PodTopologySpread {
    lookup: Arc<dyn Lookup>,
    arguments: SpreadArguments,
}

/// A constraint with its selector parsed and matchLabelKeys (KEP-3243) merged in.
struct Constraint {
    max_skew: i64,
    min_domains: i64,
    key: String,
    selector: Selector,
    honor_affinity: bool,
    honor_taints: bool,
}

impl Constraint {
    fn new(spec: &TopologySpreadConstraint, labels: &BTreeMap<String, String>) -> Option<Self> {
        // Without a selector nothing is counted, and so nothing is skewed, but the label must be there.
        let mut selector = match &spec.label_selector {
            Some(selector) => parsed(selector)?,
            None => Expression::In(String::new(), BTreeSet::new()).into(),
        };
        let equal = spec
            .match_label_keys
            .iter()
            .flatten()
            .filter_map(|key| Some(Expression::Equal(key.clone(), labels.get(key)?.clone())));
        selector.extend(equal.collect::<Vec<_>>());
        Some(Self::with(spec, selector))
    }

    fn with(spec: &TopologySpreadConstraint, selector: Selector) -> Self {
        Self {
            max_skew: i64::from(spec.max_skew),
            min_domains: i64::from(spec.min_domains.unwrap_or(1)),
            key: spec.topology_key.clone(),
            selector,
            honor_affinity: spec.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: spec.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    /// Whether the pods of a node count (KEP-3094).
    fn counts(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        (!self.honor_affinity || node_affinity::allowed(pod, node))
            && (!self.honor_taints || taint_toleration::forbidding(pod, node).is_none())
    }

    /// Whether a pod of this namespace has the constraint count another one.
    fn selects(&self, namespace: &str, other: &PodInfo) -> bool {
        other.namespace() == namespace && self.selector.matches(other.pod.labels())
    }
}

/// How many pods of a node are selected and will stay.
fn matching<F: Fn(&PodInfo) -> bool>(node: &NodeInfo, selected: &mut Asked<F, bool>) -> i64 {
    let matching = node.groups.iter().filter(|group| *selected.of(group));
    matching.map(|group| group.staying).sum()
}

fn constraints(pod: &PodInfo, when: &str) -> Vec<Constraint> {
    let all = pod.spec().topology_spread_constraints.iter().flatten();
    all.filter(|constraint| constraint.when_unsatisfiable == when)
        .filter_map(|constraint| Constraint::new(constraint, pod.pod.labels()))
        .collect()
}

impl PodTopologySpread {
    pub(crate) fn new(lookup: Arc<dyn Lookup>, arguments: SpreadArguments) -> Self {
        Self { lookup, arguments }
    }

    /// The pod's own constraints, or those that apply to pods that have none; with whether they are its own.
    fn constraints(&self, pod: &PodInfo, when: &str) -> (Vec<Constraint>, bool) {
        let own = pod.spec().topology_spread_constraints.as_ref();
        if own.is_some_and(|own| !own.is_empty()) {
            return (constraints(pod, when), true);
        }
        (self.defaults(pod, when), false)
    }

    /// Whether another pod has a part in where this one may go.
    fn counts(&self, pod: &PodInfo, other: &Pod) -> bool {
        other.metadata.namespace.as_deref() == Some(pod.namespace())
            && self
                .constraints(pod, "DoNotSchedule")
                .0
                .iter()
                .any(|constraint| constraint.selector.matches(other.labels()))
    }

    /// Those of the configuration, or the system's: hosts 3, zones 5; for pods of some application.
    fn defaults(&self, pod: &PodInfo, when: &str) -> Vec<Constraint> {
        let listed = self.arguments.defaulting_type == Defaulting::List;
        let given = &self.arguments.default_constraints;
        let any = match listed {
            true => given.iter().any(|given| given.when_unsatisfiable == when),
            false => when == "ScheduleAnyway",
        };
        if !any {
            return Vec::new();
        }
        let Some(selector) = self.lookup.application(&pod.pod) else {
            return Vec::new();
        };
        if listed {
            let given = given
                .iter()
                .filter(|given| given.when_unsatisfiable == when);
            return given
                .map(|given| Constraint::with(given, selector.clone()))
                .collect();
        }
        [(HOSTNAME, 3), (ZONE, 5)]
            .into_iter()
            .map(|(key, max_skew)| Constraint {
                max_skew,
                min_domains: 1,
                key: key.to_owned(),
                selector: selector.clone(),
                honor_affinity: true,
                honor_taints: false,
            })
            .collect()
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        let (constraints, _) = self.constraints(pod, "DoNotSchedule");
        if constraints.is_empty() {
            return None;
        }
        let counted = |node: &&Arc<NodeInfo>| {
            constraints
                .iter()
                .all(|constraint| node.label(&constraint.key).is_some())
        };
        let nodes: Vec<_> = snapshot.nodes.iter().filter(counted).collect();
        let counts = |constraint: &Constraint| {
            let mut selected = Asked::new(|other| constraint.selects(pod.namespace(), other));
            let mut domains: AHashMap<&'a str, i64> = AHashMap::new();
            for node in &nodes {
                if let Some(domain) = node.label(&constraint.key)
                    && constraint.counts(pod, node)
                {
                    *domains.entry(domain).or_default() += matching(node, &mut selected);
                }
            }
            domains
        };
        let domains: Vec<_> = constraints.iter().map(counts).collect();
        let spread = constraints
            .into_iter()
            .zip(domains)
            .map(|(constraint, counts)| {
                let known = i64::try_from(counts.len()).unwrap_or(i64::MAX);
                let least = counts.values().copied().min().unwrap_or(0);
                // Domains that do not exist yet count as empty ones (KEP-3022).
                let least = if known < constraint.min_domains {
                    0
                } else {
                    least
                };
                let own = i64::from(constraint.selector.matches(pod.pod.labels()));
                (constraint, counts, least, own)
            })
            .collect();
        Some(Box::new(Spread {
            constraints: spread,
        }))
    }

    fn prepare_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        feasible: &'a [Arc<NodeInfo>],
    ) -> Option<Box<dyn Score + 'a>> {
        let (constraints, own) = self.constraints(pod, "ScheduleAnyway");
        if constraints.is_empty() || feasible.len() < 2 {
            return None;
        }
        Some(Box::new(Preference::new(
            pod,
            snapshot,
            feasible,
            &constraints,
            own || self.arguments.defaulting_type == Defaulting::List,
        )))
    }

    fn weight(&self) -> i64 {
        2
    }

    fn wakes(&self, pod: &PodInfo, event: &Event) -> bool {
        match event {
            Event::Node(_) | Event::NodeGone | Event::PodChanged => true,
            Event::PodPlaced(other) | Event::PodGone(other) => self.counts(pod, other),
            Event::PodRelabelled { old, new } => self.counts(pod, old) || self.counts(pod, new),
            Event::PodResized | Event::Namespace | Event::Storage => false,
        }
    }
}

struct Spread<'a> {
    /// With the count of each domain, the least of them, and whether the pod itself counts.
    constraints: Vec<(Constraint, AHashMap<&'a str, i64>, i64, i64)>,
}

impl Filter for Spread<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        for (constraint, counts, least, own) in &self.constraints {
            let Some(domain) = node.label(&constraint.key) else {
                let reason =
                    "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Rejection {
                    plugin: NAME,
                    reasons: vec![reason.to_owned()],
                    unresolvable: true,
                });
            };
            let skew = counts.get(domain).copied().unwrap_or(0) + own - least;
            if skew > constraint.max_skew {
                return Err(Rejection {
                    plugin: NAME,
                    reasons: vec![
                        "node(s) didn't match pod topology spread constraints".to_owned(),
                    ],
                    unresolvable: false,
                });
            }
        }
        Ok(())
    }
}

/// What the pods of each domain weigh for one constraint.
struct Crowds<'a> {
    key: String,
    /// By the domain, or by the node where each is a domain of its own.
    pods: AHashMap<&'a str, i64>,
    /// What one of them weighs.
    weight: f64,
    max_skew: i64,
}

impl<'a> Crowds<'a> {
    #[allow(clippy::cast_precision_loss, reason = "numbers of nodes")]
    fn new(
        constraint: &Constraint,
        pod: &PodInfo,
        eligible: &[&'a Arc<NodeInfo>],
        inside: &[&'a Arc<NodeInfo>],
    ) -> Self {
        let mut selected = Asked::new(|other| constraint.selects(pod.namespace(), other));
        let mut pods: AHashMap<&'a str, i64>;
        if constraint.key == HOSTNAME {
            let counted = eligible.iter();
            pods = counted
                .map(|node| (node.name.as_str(), matching(node, &mut selected)))
                .collect();
        } else {
            let domains = eligible.iter();
            pods = domains
                .filter_map(|node| Some((node.label(&constraint.key)?, 0)))
                .collect();
            for node in inside {
                let domain = node.label(&constraint.key);
                if let Some(count) = domain.and_then(|domain| pods.get_mut(domain))
                    && constraint.counts(pod, node)
                {
                    *count += matching(node, &mut selected);
                }
            }
        }
        Self {
            weight: (pods.len() as f64 + 2.0).ln(),
            key: constraint.key.clone(),
            max_skew: constraint.max_skew,
            pods,
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "numbers of pods")]
    fn at(&self, node: &NodeInfo) -> Option<f64> {
        let label = node.label(&self.key)?;
        let domain = if self.key == HOSTNAME {
            node.name.as_str()
        } else {
            label
        };
        let pods = self.pods.get(domain).copied().unwrap_or(0);
        Some(pods as f64 * self.weight + (self.max_skew - 1) as f64)
    }
}

/// How crowded a node's domains are.
struct Preference<'a> {
    crowds: Vec<Crowds<'a>>,
    /// Nodes outside the topology: they get nothing.
    ignored: AHashSet<&'a str>,
}

impl<'a> Preference<'a> {
    fn new(
        pod: &PodInfo,
        snapshot: &'a Snapshot,
        feasible: &'a [Arc<NodeInfo>],
        constraints: &[Constraint],
        require_all: bool,
    ) -> Self {
        let is_inside = |node: &&Arc<NodeInfo>| {
            !require_all || constraints.iter().all(|c| node.label(&c.key).is_some())
        };
        let (eligible, outside): (Vec<_>, Vec<_>) = feasible.iter().partition(is_inside);
        let inside: Vec<_> = snapshot.nodes.iter().filter(is_inside).collect();
        let crowds = constraints.iter();
        Self {
            crowds: crowds
                .map(|constraint| Crowds::new(constraint, pod, &eligible, &inside))
                .collect(),
            ignored: outside.iter().map(|node| node.name.as_str()).collect(),
        }
    }
}

impl Score for Preference<'_> {
    #[allow(clippy::cast_possible_truncation, reason = "numbers of pods")]
    fn score(&self, node: &NodeInfo) -> i64 {
        if self.ignored.contains(node.name.as_str()) {
            return 0;
        }
        let crowd: f64 = self.crowds.iter().filter_map(|it| it.at(node)).sum();
        crowd.round() as i64
    }

    fn normalize(&self, nodes: &[Arc<NodeInfo>], scores: &mut [i64]) {
        let outside: Vec<bool> = nodes
            .iter()
            .map(|node| self.ignored.contains(node.name.as_str()))
            .collect();
        let inside = || {
            scores
                .iter()
                .zip(&outside)
                .filter(|(_, out)| !**out)
                .map(|(score, _)| *score)
        };
        let (min, max) = (inside().min().unwrap_or(0), inside().max().unwrap_or(0));
        for (score, outside) in scores.iter_mut().zip(outside) {
            *score = match (outside, max) {
                (true, _) => 0,
                (false, 0) => MAX_SCORE,
                (false, max) => MAX_SCORE * (max + min - *score) / max,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::tests::*, *};

    fn plugin() -> PodTopologySpread {
        PodTopologySpread::new(Arc::new(Fixed::default()), SpreadArguments::default())
    }

    fn like(count: usize) -> Vec<Arc<PodInfo>> {
        (0..count)
            .map(|i| pod(&format!("like{i}"), json!({"app": "web"}), json!({})))
            .collect()
    }

    fn spreading(max_skew: i32, when: &str, more: Value) -> Arc<PodInfo> {
        let mut constraint = json!({"maxSkew": max_skew, "topologyKey": "zone",
            "whenUnsatisfiable": when, "labelSelector": {"matchLabels": {"app": "web"}}});
        for (key, value) in more.as_object().unwrap() {
            constraint[key] = value.clone();
        }
        pod(
            "p",
            json!({"app": "web"}),
            json!({"topologySpreadConstraints": [constraint]}),
        )
    }

    fn zones(a: usize, b: usize) -> Snapshot {
        Snapshot::of([
            node("a", json!({"zone": "a"}), json!({}), &like(a)),
            node("b", json!({"zone": "b"}), json!({}), &like(b)),
            node("none", json!({}), json!({}), &[]),
        ])
    }

    #[test]
    fn a_zone_with_too_many_is_refused() {
        let passed = |pod: &PodInfo, snapshot: &Snapshot| -> Vec<bool> {
            filtered(&plugin(), pod, snapshot)
                .iter()
                .map(Option::is_none)
                .collect()
        };
        let hard = spreading(1, "DoNotSchedule", json!({}));
        assert_eq!(passed(&hard, &zones(1, 0)), [false, true, false]);
        assert_eq!(passed(&hard, &zones(1, 1)), [true, true, false]);
        let loose = spreading(2, "DoNotSchedule", json!({}));
        assert_eq!(passed(&loose, &zones(1, 0)), [true, true, false]);
        let three = spreading(1, "DoNotSchedule", json!({"minDomains": 3}));
        assert_eq!(passed(&three, &zones(1, 1)), [false, false, false]);
        assert_eq!(
            reasons(&plugin(), &hard, &zones(1, 0))[2].as_deref(),
            Some("node(s) didn't match pod topology spread constraints (missing required label)")
        );
    }

    #[test]
    fn without_a_selector_the_label_alone_decides() {
        let nobody = spreading(1, "DoNotSchedule", json!({"labelSelector": null}));
        let found = filtered(&plugin(), &nobody, &zones(9, 0));
        let passed: Vec<_> = found.iter().map(Option::is_none).collect();
        assert_eq!(passed, [true, true, false]);
    }

    #[test]
    fn a_pod_that_is_counted_no_more_and_a_node_that_goes_wake_the_pod() {
        let waiting = spreading(1, "DoNotSchedule", json!({}));
        let labelled = |app: &str| Arc::clone(&pod("other", json!({"app": app}), json!({})).pod);
        let relabelled = |old: &str, new: &str| Event::PodRelabelled {
            old: labelled(old),
            new: labelled(new),
        };
        assert!(plugin().wakes(&waiting, &relabelled("web", "db")));
        assert!(plugin().wakes(&waiting, &relabelled("db", "web")));
        assert!(!plugin().wakes(&waiting, &relabelled("db", "cache")));
        assert!(plugin().wakes(&waiting, &Event::NodeGone));
    }

    #[test]
    fn soft_spreading_prefers_the_emptier_zone_and_nothing_outside() {
        let soft = spreading(1, "ScheduleAnyway", json!({}));
        let scores = scored(&plugin(), &soft, &zones(3, 1));
        assert!(scores[1] > scores[0], "{scores:?}");
        assert_eq!(scores[2], 0);
    }

    #[test]
    fn pods_of_an_application_spread_by_default_even_without_zones() {
        let selector: Selector = [("app".to_owned(), "web".to_owned())].into_iter().collect();
        let lookup = Fixed {
            application: Some(selector),
            ..Default::default()
        };
        let plugin = PodTopologySpread::new(Arc::new(lookup), SpreadArguments::default());
        let snapshot = Snapshot::of([
            node("a", json!({HOSTNAME: "a"}), json!({}), &like(2)),
            node("b", json!({HOSTNAME: "b"}), json!({}), &like(0)),
        ]);
        let pod = pod("p", json!({"app": "web"}), json!({}));
        let scores = scored(&plugin, &pod, &snapshot);
        assert!(scores[1] > scores[0], "{scores:?}");
    }
}
