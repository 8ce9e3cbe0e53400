//! One scheduling cycle: filter the nodes, score those that are left, choose. Pure but for the dice that
//! decide between equals.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    cache::{Cache, Snapshot},
    framework::{Filter, Plugin, Rejection},
    node::NodeInfo,
    pod::PodInfo,
    profile::Profile,
};

/// Below this number of nodes all of them are looked at.
const LOOK_AT_ALL: usize = 100;

/// Why no node was found: the rejection of each node, by name.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    pub(crate) nodes: usize,
    /// A plugin that refused the pod whatever the node, with its reason.
    pub(crate) refused: Option<(&'static str, String)>,
    pub(crate) rejections: Vec<(String, Rejection)>,
}

impl Diagnosis {
    /// Upstream's sentence: `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
    pub(crate) fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        if let Some((_, reason)) = &self.refused {
            return format!("0/{} nodes are available: {reason}.", self.nodes);
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, rejection) in &self.rejections {
            for reason in &rejection.reasons {
                *counts.entry(reason).or_default() += 1;
            }
        }
        let mut parts: Vec<String> = counts
            .into_iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        parts.sort();
        format!(
            "0/{} nodes are available: {}.",
            self.nodes,
            parts.join(", ")
        )
    }

    pub(crate) fn plugins(&self) -> Vec<&'static str> {
        let mut plugins: Vec<_> = self
            .rejections
            .iter()
            .map(|(_, rejection)| rejection.plugin)
            .chain(self.refused.iter().map(|(plugin, _)| *plugin))
            .collect();
        plugins.sort_unstable();
        plugins.dedup();
        plugins
    }
}

/// Pods that were promised a node that preemption is freeing for them.
pub(crate) type Nominated = Vec<(String, Arc<PodInfo>)>;

/// The promises that are still open. Until its binding is confirmed, a pod has both a promise and a place: counted twice,
/// it would keep others out, and nothing that they wait for would happen once the promise is gone.
pub(crate) fn open<'a>(
    promises: impl Iterator<Item = &'a (String, Arc<PodInfo>)>,
    cache: &Cache,
) -> Nominated {
    promises
        .filter(|(_, pod)| !cache.holds(&pod.uid))
        .cloned()
        .collect()
}

/// All filters prepared for one pod.
pub(crate) struct Filters<'a>(Vec<Box<dyn Filter + 'a>>);

impl<'a> Filters<'a> {
    pub(crate) fn prepare(
        plugins: &'a [Box<dyn Plugin>],
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Self {
        Self(
            plugins
                .iter()
                .filter_map(|plugin| plugin.prepare_filter(pod, snapshot))
                .collect(),
        )
    }

    /// The first filter that rejects the node gives the reason.
    pub(crate) fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        self.0.iter().try_for_each(|filter| filter.filter(node))
    }
}

/// How many feasible nodes are enough: with many nodes, a good one matters more than the best.
fn enough(nodes: usize, percentage: Option<u8>) -> usize {
    if nodes <= LOOK_AT_ALL {
        return nodes;
    }
    let percent = match percentage {
        Some(percentage) => usize::from(percentage),
        None => 50usize.saturating_sub(nodes / 125).max(5),
    };
    (nodes * percent / 100).max(LOOK_AT_ALL)
}

/// Whether the pod fits a node, counting pods of at least its priority that were promised the node. Such
/// a pod may also not come, so it must fit without them as well (it might need one for its affinity).
pub(crate) fn fits(
    plugins: &[Box<dyn Plugin>],
    filters: &Filters<'_>,
    pod: &PodInfo,
    snapshot: &Snapshot,
    node: &Arc<NodeInfo>,
    nominated: &Nominated,
) -> Result<(), Rejection> {
    let promised: Vec<_> = nominated
        .iter()
        .filter(|(name, other)| {
            *name == node.name && other.uid != pod.uid && other.priority >= pod.priority
        })
        .collect();
    if !promised.is_empty() {
        let mut crowded = node.as_ref().clone();
        for (_, other) in promised {
            crowded.add(Arc::clone(other));
        }
        let imagined = snapshot.with(crowded);
        let node = imagined.get(&node.name).unwrap_or(node);
        Filters::prepare(plugins, pod, &imagined).check(node)?;
    }
    filters.check(node)
}

/// The best node for a pod, or why there is none. `start` is where the walk over the nodes begins, so that
/// all get their turn; it is moved on.
pub(crate) fn choose(
    profile: &Profile,
    pod: &PodInfo,
    snapshot: &Snapshot,
    nominated: &Nominated,
    start: &mut usize,
) -> Result<String, Diagnosis> {
    let plugins = profile.plugins.as_slice();
    let total = snapshot.nodes.len();
    let mut diagnosis = Diagnosis {
        nodes: total,
        ..Diagnosis::default()
    };
    if total == 0 {
        return Err(diagnosis);
    }
    diagnosis.refused = plugins
        .iter()
        .find_map(|plugin| Some((plugin.name(), plugin.refuse(pod)?)));
    if diagnosis.refused.is_some() {
        return Err(diagnosis);
    }
    let filters = Filters::prepare(plugins, pod, snapshot);
    // Most likely the only one with room, which was made there for this pod.
    if let Some(node) = pod.nominated_node().and_then(|name| snapshot.get(name))
        && fits(plugins, &filters, pod, snapshot, node, nominated).is_ok()
    {
        return Ok(node.name.clone());
    }
    let narrowed = plugins
        .iter()
        .find_map(|plugin| Some((plugin.name(), plugin.narrow(pod)?)));
    let few = narrowed.as_ref().map(|(_, names)| {
        let known = names.iter().filter_map(|name| snapshot.get(name));
        known.collect::<Vec<_>>()
    });
    let count = few.as_ref().map_or(total, Vec::len);
    let wanted = enough(count, profile.percentage);
    let mut feasible = Vec::new();
    let mut looked = 0;
    while looked < count && feasible.len() < wanted {
        let at = (*start + looked) % count;
        let node = few.as_ref().map_or(&snapshot.nodes[at], |few| few[at]);
        looked += 1;
        match fits(plugins, &filters, pod, snapshot, node, nominated) {
            Ok(()) => feasible.push(Arc::clone(node)),
            Err(rejection) => diagnosis.rejections.push((node.name.clone(), rejection)),
        }
    }
    *start = (*start + looked) % total;
    if feasible.is_empty()
        && let Some((plugin, names)) = &narrowed
    {
        let others = snapshot.nodes.iter();
        let others = others.filter(|node| !names.contains(&node.name));
        let rejection = Rejection {
            plugin,
            reasons: vec![format!("node(s) didn't satisfy plugin(s) [{plugin}]")],
            unresolvable: true,
        };
        let rejected = others.map(|node| (node.name.clone(), rejection.clone()));
        diagnosis.rejections.extend(rejected);
    }
    match feasible.len() {
        0 => Err(diagnosis),
        1 => Ok(feasible[0].name.clone()),
        _ => Ok(best(plugins, pod, snapshot, &feasible)),
    }
}

fn best(
    plugins: &[Box<dyn Plugin>],
    pod: &PodInfo,
    snapshot: &Snapshot,
    feasible: &[Arc<NodeInfo>],
) -> String {
    let mut totals = vec![0i64; feasible.len()];
    for plugin in plugins {
        let Some(score) = plugin.prepare_score(pod, snapshot, feasible) else {
            continue;
        };
        let mut scores: Vec<i64> = feasible.iter().map(|node| score.score(node)).collect();
        score.normalize(feasible, &mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += score * plugin.weight();
        }
    }
    let top = totals.iter().copied().max().unwrap_or(0);
    let winners: Vec<_> = totals
        .iter()
        .zip(feasible)
        .filter(|(total, _)| **total == top)
        .collect();
    // Always the first among equals would fill one node before the next.
    let lot = rand::random_range(0..winners.len().max(1));
    winners
        .get(lot)
        .map(|(_, node)| node.name.clone())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{plugins::tests::*, profile::Profiles};

    fn choose(
        pod: &PodInfo,
        snapshot: &Snapshot,
        nominated: &Nominated,
    ) -> Result<String, Diagnosis> {
        let profiles = Profiles::single(default_plugins());
        let profile = profiles.of(&pod.pod).unwrap();
        super::choose(profile, pod, snapshot, nominated, &mut 0)
    }

    fn asking(name: &str, cpu: &str, priority: i32) -> Arc<PodInfo> {
        let spec = json!({"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
        pod(name, json!({}), spec)
    }

    #[test]
    fn the_message_counts_reasons_as_upstream_does() {
        let cordoned = json!({"spec": {"unschedulable": true}});
        let snapshot = Snapshot::of([
            node("a", json!({}), json!({}), &[asking("other", "4", 0)]),
            node("b", json!({}), cordoned.clone(), &[]),
            node("c", json!({}), cordoned, &[]),
        ]);
        let result = choose(&asking("p", "1", 0), &snapshot, &Nominated::new());
        let diagnosis = result.unwrap_err();
        assert_eq!(
            diagnosis.message(),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable."
        );
        assert_eq!(
            diagnosis.plugins(),
            ["NodeResourcesFit", "NodeUnschedulable"]
        );
        let none = choose(
            &asking("p", "1", 0),
            &Snapshot::default(),
            &Nominated::new(),
        );
        assert_eq!(
            none.unwrap_err().message(),
            "no nodes available to schedule pods"
        );
    }

    #[test]
    fn pods_spread_over_equal_nodes() {
        let mut counts = [0; 3];
        let mut nodes: Vec<_> = ["a", "b", "c"]
            .map(|name| node(name, json!({}), json!({}), &[]))
            .into();
        for number in 0..12 {
            let pod = asking(&format!("p{number}"), "100m", 0);
            let snapshot = Snapshot::of(nodes.clone());
            let name = choose(&pod, &snapshot, &Nominated::new()).unwrap();
            let at = nodes.iter().position(|node| node.name == name).unwrap();
            nodes[at].add(pod);
            counts[at] += 1;
        }
        assert_eq!(counts, [4, 4, 4]);
    }

    #[test]
    fn room_that_was_promised_to_a_more_important_pod_is_not_given_away() {
        let snapshot = Snapshot::of([node("a", json!({}), json!({}), &[])]);
        let nominated = vec![("a".to_owned(), asking("vip", "4", 10))];
        let try_with =
            |priority| choose(&asking("p", "1", priority), &snapshot, &nominated).is_ok();
        assert!(!try_with(0));
        assert!(try_with(11));
    }

    #[test]
    fn a_promise_that_was_kept_takes_no_room_twice() {
        let cache = Cache::default();
        let node = node("a", json!({}), json!({}), &[]);
        cache.set_node(node.node.as_ref().unwrap());
        let vip = asking("vip", "2", 10);
        let promises = [("a".to_owned(), Arc::clone(&vip))];
        let try_one = || {
            let mut snapshot = Snapshot::default();
            cache.refresh(&mut snapshot);
            choose(
                &asking("p", "2", 10),
                &snapshot,
                &open(promises.iter(), &cache),
            )
            .is_ok()
        };
        assert_eq!(open(promises.iter(), &cache).len(), 1);
        cache.assume(&vip, "a");
        assert!(try_one(), "the other half is free");
        // Not bound after all: what was promised is kept for it.
        cache.forget(&vip.uid);
        assert_eq!(open(promises.iter(), &cache).len(), 1);
    }

    #[test]
    fn the_node_that_was_promised_comes_first_however_it_scores() {
        let busy = asking("busy", "2", 0);
        let snapshot = Snapshot::of([
            node("a", json!({}), json!({}), &[]),
            node("b", json!({}), json!({}), &[busy]),
        ]);
        let mut pod = asking("p", "1", 0).pod.as_ref().clone();
        let choose = |pod: &k8s_openapi::api::core::v1::Pod| {
            let pod = PodInfo::new(Arc::new(pod.clone()));
            choose(&pod, &snapshot, &Nominated::new()).unwrap()
        };
        assert_eq!(choose(&pod), "a");
        pod.status = serde_json::from_value(json!({"nominatedNodeName": "b"})).unwrap();
        assert_eq!(choose(&pod), "b");
    }

    #[test]
    fn a_pod_that_names_its_node_is_refused_by_the_others_in_one_sentence() {
        let snapshot = Snapshot::of([
            node("a", json!({}), json!({}), &[asking("other", "4", 0)]),
            node("b", json!({}), json!({}), &[]),
            node("c", json!({}), json!({}), &[]),
        ]);
        let named = |terms: serde_json::Value| {
            let spec = json!({"affinity": {"nodeAffinity":
                {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}},
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]});
            choose(&pod("p", json!({}), spec), &snapshot, &Nominated::new())
        };
        let field =
            |names: &[&str]| json!({"key": "metadata.name", "operator": "In", "values": names});
        assert_eq!(
            named(json!([{"matchFields": [field(&["a"])]}]))
                .unwrap_err()
                .message(),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
        );
        assert_eq!(
            named(json!([{"matchFields": [field(&["b"])]}])).unwrap(),
            "b"
        );
        assert_eq!(
            named(json!([{"matchFields": [field(&["a"]), field(&["b"])]}]))
                .unwrap_err()
                .message(),
            "0/3 nodes are available: pod affinity terms conflict."
        );
    }

    #[test]
    fn large_clusters_are_sampled() {
        assert_eq!(enough(50, None), 50);
        assert_eq!(enough(1000, None), 420);
        assert_eq!(enough(5000, None), 500);
        assert_eq!(enough(5000, Some(70)), 3500);
        assert_eq!(enough(500, Some(1)), 100);
        assert_eq!(enough(500, Some(100)), 500);
    }
}
