//! InterPodAffinity: pods that want to be, or must not be, in the same topology domain as others; and the
//! anti-affinity of pods that are there already.

use std::sync::Arc;

use ahash::AHashMap;
use k8s_openapi::api::core::v1::Pod;

use super::Lookup;
use crate::{
    arguments::AffinityArguments,
    cache::Snapshot,
    event::Event,
    framework::{Filter, MAX_SCORE, Plugin, Rejection, Score},
    kin::Asked,
    node::NodeInfo,
    pod::{NamespaceLabels, PodInfo, Term},
};

const NAME: &str = "InterPodAffinity";

pub(crate) struct InterPodAffinity {
    lookup: Arc<dyn Lookup>,
    arguments: AffinityArguments,
}

impl InterPodAffinity {
    pub(crate) fn new(lookup: Arc<dyn Lookup>, arguments: AffinityArguments) -> Self {
        Self { lookup, arguments }
    }

    fn labels(&self) -> &dyn NamespaceLabels {
        self.lookup.as_ref()
    }

    fn attracts(&self, pod: &PodInfo, other: &Pod) -> bool {
        let mut terms = pod.affinity.iter();
        terms.any(|term| term.matches(other, self.labels()))
    }

    /// Whether one of them keeps away from the other.
    fn repels(&self, pod: &PodInfo, other: &Arc<Pod>) -> bool {
        let mut terms = pod.anti_affinity.iter();
        terms.any(|term| term.matches(other, self.labels()))
            || PodInfo::new(Arc::clone(other))
                .anti_affinity
                .iter()
                .any(|term| term.matches(&pod.pod, self.labels()))
    }
}

/// Numbers by topology domain: by the key, and by what nodes have under it.
#[derive(Default)]
struct Domains<'a>(AHashMap<&'a str, AHashMap<&'a str, i64>>);

impl<'a> Domains<'a> {
    fn count(&mut self, term: &'a Term, node: &'a NodeInfo, by: i64) {
        let key = term.topology_key.as_str();
        if let Some(domain) = node.label(key) {
            *self.0.entry(key).or_default().entry(domain).or_default() += by;
        }
    }

    fn at(&self, key: &str, node: &NodeInfo) -> i64 {
        let domains = self.0.get(key).zip(node.label(key));
        let count = domains.and_then(|(domains, domain)| domains.get(domain));
        count.copied().unwrap_or(0)
    }

    /// What counts for a node, of every key.
    fn around(&self, node: &NodeInfo) -> impl Iterator<Item = i64> {
        self.0.keys().map(|key| self.at(key, node))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Which of a pod's terms select another pod, by their places.
fn selecting<'t>(
    terms: impl IntoIterator<Item = &'t Term>,
    other: &PodInfo,
    labels: &dyn NamespaceLabels,
) -> Vec<usize> {
    let terms = terms.into_iter().enumerate();
    let selecting = terms.filter(|(_, term)| term.matches(&other.pod, labels));
    selecting.map(|(at, _)| at).collect()
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        let labels = self.labels();
        let mut forbidden = Domains::default();
        let mut refusing =
            Asked::new(|other: &PodInfo| selecting(&other.anti_affinity, pod, labels));
        let reserved = snapshot.nodes.iter();
        for node in reserved.filter(|node| node.with_anti_affinity > 0) {
            for group in node.groups.iter() {
                for at in refusing.of(group) {
                    forbidden.count(&group.one.anti_affinity[*at], node, group.pods);
                }
            }
        }
        let (mut attracting, mut repelling) = (Domains::default(), Domains::default());
        if !pod.affinity.is_empty() || !pod.anti_affinity.is_empty() {
            // A pod must match all affinity terms to count for any of them.
            let mut attracts = Asked::new(|other: &PodInfo| {
                let mut terms = pod.affinity.iter();
                !pod.affinity.is_empty() && terms.all(|term| term.matches(&other.pod, labels))
            });
            let mut repels =
                Asked::new(|other: &PodInfo| selecting(&pod.anti_affinity, other, labels));
            for node in &snapshot.nodes {
                for group in node.groups.iter() {
                    if *attracts.of(group) {
                        for term in &pod.affinity {
                            attracting.count(term, node, group.pods);
                        }
                    }
                    for at in repels.of(group) {
                        repelling.count(&pod.anti_affinity[*at], node, group.pods);
                    }
                }
            }
        }
        if forbidden.is_empty() && pod.affinity.is_empty() && pod.anti_affinity.is_empty() {
            return None;
        }
        // The first of a group that wants to be together has nobody to join.
        let first = attracting.is_empty()
            && pod
                .affinity
                .iter()
                .all(|term| term.matches(&pod.pod, labels));
        Some(Box::new(Rules {
            pod,
            forbidden,
            attracting,
            repelling,
            first,
        }))
    }

    fn prepare_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        _feasible: &'a [Arc<NodeInfo>],
    ) -> Option<Box<dyn Score + 'a>> {
        let prefers = !pod.preferred_affinity.is_empty() || !pod.preferred_anti_affinity.is_empty();
        if !prefers && self.arguments.ignore_preferred_terms_of_existing_pods {
            return None;
        }
        let hard = self.arguments.hard_pod_affinity_weight;
        let labels = self.labels();
        let wishes = || {
            let (near, far) = (&pod.preferred_affinity, &pod.preferred_anti_affinity);
            let near = near.iter().map(|term| (term, term.weight));
            near.chain(far.iter().map(|term| (term, -term.weight)))
        };
        let mut granting =
            Asked::new(|other: &PodInfo| selecting(wishes().map(|(term, _)| term), other, labels));
        let mut wishing = Asked::new(|other: &PodInfo| {
            selecting(theirs(other, hard).map(|(term, _)| term), pod, labels)
        });
        let wishes: Vec<_> = wishes().collect();
        let mut sums = Domains::default();
        for node in &snapshot.nodes {
            if !prefers && node.with_wishes == 0 {
                continue;
            }
            for group in node.groups.iter() {
                for at in granting.of(group) {
                    let (term, weight) = wishes[*at];
                    sums.count(term, node, weight * group.pods);
                }
                if !group.one.has_wishes() {
                    continue;
                }
                for at in wishing.of(group) {
                    if let Some((term, weight)) = theirs(&group.one, hard).nth(*at) {
                        sums.count(term, node, weight * group.pods);
                    }
                }
            }
        }
        (!sums.is_empty()).then(|| Box::new(Sums(sums)) as Box<dyn Score>)
    }

    fn weight(&self) -> i64 {
        2
    }

    fn wakes(&self, pod: &PodInfo, event: &Event) -> bool {
        match event {
            Event::Storage | Event::PodResized | Event::NodeGone => false,
            Event::Node(_) | Event::PodChanged | Event::Namespace => true,
            Event::PodPlaced(other) => self.attracts(pod, other),
            Event::PodGone(other) => self.repels(pod, other),
            Event::PodRelabelled { old, new } => self.attracts(pod, new) || self.repels(pod, old),
        }
    }
}

/// The terms by which a pod that is there attracts newcomers, or repels them, with what they weigh.
fn theirs(other: &PodInfo, hard: i64) -> impl Iterator<Item = (&Term, i64)> {
    let required = other.affinity.iter().map(move |term| (term, hard));
    let near = other.preferred_affinity.iter();
    let far = other.preferred_anti_affinity.iter();
    required
        .chain(near.map(|term| (term, term.weight)))
        .chain(far.map(|term| (term, -term.weight)))
}

struct Rules<'a> {
    pod: &'a PodInfo,
    forbidden: Domains<'a>,
    attracting: Domains<'a>,
    repelling: Domains<'a>,
    first: bool,
}

impl Filter for Rules<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let reject = |reason: &str, unresolvable| {
            Err(Rejection {
                plugin: NAME,
                reasons: vec![reason.to_owned()],
                unresolvable,
            })
        };
        let labelled = self
            .pod
            .affinity
            .iter()
            .all(|term| node.label(&term.topology_key).is_some());
        let joined = self
            .pod
            .affinity
            .iter()
            .all(|term| self.attracting.at(&term.topology_key, node) > 0);
        if !labelled || !(joined || self.first) {
            return reject("node(s) didn't match pod affinity rules", true);
        }
        if self
            .pod
            .anti_affinity
            .iter()
            .any(|term| self.repelling.at(&term.topology_key, node) > 0)
        {
            return reject("node(s) didn't match pod anti-affinity rules", false);
        }
        if self.forbidden.around(node).any(|count| count > 0) {
            return reject(
                "node(s) didn't satisfy existing pods anti-affinity rules",
                false,
            );
        }
        Ok(())
    }
}

struct Sums<'a>(Domains<'a>);

impl Score for Sums<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.around(node).sum()
    }

    fn normalize(&self, _nodes: &[Arc<NodeInfo>], scores: &mut [i64]) {
        let min = scores.iter().copied().min().unwrap_or(0);
        let max = scores.iter().copied().max().unwrap_or(0);
        for score in scores {
            *score = if max > min {
                MAX_SCORE * (*score - min) / (max - min)
            } else {
                0
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::tests::*, *};

    fn plugin() -> InterPodAffinity {
        let mut lookup = Fixed::default();
        lookup
            .namespaces
            .insert("ns".into(), [("team".to_owned(), "a".to_owned())].into());
        InterPodAffinity::new(Arc::new(lookup), AffinityArguments::default())
    }

    fn term(app: &str) -> Value {
        json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}})
    }

    fn with(kind: &str, terms: Value) -> Value {
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
    }

    fn zones(in_a: &[Arc<PodInfo>]) -> Snapshot {
        Snapshot::of([
            node("a", json!({"zone": "a"}), json!({}), in_a),
            node("b", json!({"zone": "b"}), json!({}), &[]),
            node("none", json!({}), json!({}), &[]),
        ])
    }

    fn passed(pod: &PodInfo, snapshot: &Snapshot) -> Vec<bool> {
        filtered(&plugin(), pod, snapshot)
            .iter()
            .map(Option::is_none)
            .collect()
    }

    #[test]
    fn affinity_joins_anti_affinity_parts_and_both_look_at_the_domain() {
        let db = pod("db", json!({"app": "db"}), json!({}));
        let snapshot = zones(&[db]);
        let joins = pod("p", json!({}), with("podAffinity", json!([term("db")])));
        assert_eq!(passed(&joins, &snapshot), [true, false, false]);
        let parts = pod("p", json!({}), with("podAntiAffinity", json!([term("db")])));
        assert_eq!(passed(&parts, &snapshot), [false, true, true]);
        let elsewhere = pod("p", json!({}), with("podAffinity", json!([term("cache")])));
        assert_eq!(passed(&elsewhere, &snapshot), [false, false, false]);
    }

    #[test]
    fn whoever_is_repelled_no_more_or_attracted_now_is_woken() {
        let labelled = |app: &str| Arc::clone(&pod("other", json!({"app": app}), json!({})).pod);
        let relabelled = |old: &str, new: &str| Event::PodRelabelled {
            old: labelled(old),
            new: labelled(new),
        };
        let joins = pod("p", json!({}), with("podAffinity", json!([term("db")])));
        let parts = pod("p", json!({}), with("podAntiAffinity", json!([term("db")])));
        for (old, new, joining, parting) in [
            ("db", "web", false, true),
            ("web", "db", true, false),
            ("web", "cache", false, false),
        ] {
            let event = relabelled(old, new);
            assert_eq!(plugin().wakes(&joins, &event), joining, "{old} {new}");
            assert_eq!(plugin().wakes(&parts, &event), parting, "{old} {new}");
        }
    }

    #[test]
    fn the_first_of_a_group_may_go_anywhere_in_the_topology() {
        let first = pod(
            "p",
            json!({"app": "web"}),
            with("podAffinity", json!([term("web")])),
        );
        assert_eq!(passed(&first, &zones(&[])), [true, true, false]);
    }

    #[test]
    fn pods_that_are_there_keep_newcomers_out() {
        let hermit = pod(
            "h",
            json!({}),
            with("podAntiAffinity", json!([term("web")])),
        );
        let web = pod("p", json!({"app": "web"}), json!({}));
        let snapshot = zones(&[hermit]);
        assert_eq!(passed(&web, &snapshot), [false, true, true]);
        assert_eq!(
            reasons(&plugin(), &web, &snapshot)[0].as_deref(),
            Some("node(s) didn't satisfy existing pods anti-affinity rules")
        );
    }

    #[test]
    fn namespaces_are_chosen_by_name_or_label() {
        let db = pod("db", json!({"app": "db"}), json!({}));
        let snapshot = zones(&[db]);
        let scoped = |more: Value| {
            let mut term = term("db");
            for (key, value) in more.as_object().unwrap() {
                term[key] = value.clone();
            }
            pod("p", json!({}), with("podAffinity", json!([term])))
        };
        let cases = [
            (json!({"namespaces": ["other"]}), false),
            (json!({"namespaces": ["other", "ns"]}), true),
            (json!({"namespaceSelector": {}}), true),
            (
                json!({"namespaceSelector": {"matchLabels": {"team": "a"}}}),
                true,
            ),
            (
                json!({"namespaceSelector": {"matchLabels": {"team": "b"}}}),
                false,
            ),
        ];
        for (more, expected) in cases {
            assert_eq!(
                passed(&scoped(more.clone()), &snapshot)[0],
                expected,
                "{more}"
            );
        }
    }

    #[test]
    fn preferences_of_both_sides_add_up() {
        let preferred = |kind: &str, app: &str| {
            json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": 10, "podAffinityTerm": term(app)}]}}})
        };
        let db = pod("db", json!({"app": "db"}), json!({}));
        let near = pod("p", json!({}), preferred("podAffinity", "db"));
        assert_eq!(
            scored(&plugin(), &near, &zones(std::slice::from_ref(&db))),
            [100, 0, 0]
        );
        let far = pod("p", json!({}), preferred("podAntiAffinity", "db"));
        assert_eq!(scored(&plugin(), &far, &zones(&[db])), [0, 100, 100]);
        let fan = pod("fan", json!({}), preferred("podAffinity", "web"));
        let web = pod("p", json!({"app": "web"}), json!({}));
        assert_eq!(scored(&plugin(), &web, &zones(&[fan])), [100, 0, 0]);
    }
}
