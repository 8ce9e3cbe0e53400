//! NodeResourcesFit: what a pod asks for must be free; emptier nodes are better, unless the profile asks
//! for fuller ones (MostAllocated, to pack) or for a curve of its own (RequestedToCapacityRatio).

use std::sync::Arc;

use crate::{
    arguments::{FitArguments, ShapePoint, StrategyKind},
    cache::Snapshot,
    event::Event,
    framework::{Filter, MAX_SCORE, Plugin, Rejection, Score},
    node::NodeInfo,
    pod::PodInfo,
    resources::{CPU, MEMORY, Resources, is_scalar},
};

#[derive(Default)]
pub(crate) struct NodeResourcesFit(pub(crate) FitArguments);

struct Demand<'a> {
    pod: &'a PodInfo,
    arguments: &'a FitArguments,
}

impl FitArguments {
    /// Extended resources that somebody else accounts for.
    fn ignores(&self, name: &str) -> bool {
        self.ignored_resources.iter().any(|ignored| ignored == name)
            || name.split_once('/').is_some_and(|(group, _)| {
                self.ignored_resource_groups
                    .iter()
                    .any(|ignored| ignored == group)
            })
    }
}

fn shortages(demand: &Demand<'_>, node: &NodeInfo) -> (Vec<String>, bool) {
    let pod = demand.pod;
    let mut reasons = Vec::new();
    let mut never = false;
    let room = node.allocatable.pods;
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= room {
        reasons.push("Too many pods".to_owned());
    }
    for (name, wanted) in pod.requests.nonzero() {
        if demand.arguments.ignores(name) {
            continue;
        }
        let total = node.allocatable.get(name);
        if wanted > total - node.requested.get(name) {
            reasons.push(format!("Insufficient {name}"));
            // More than the node has at all: no pod that goes makes room.
            never |= wanted > total;
        }
    }
    (reasons, never)
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        Some(Box::new(Demand {
            pod,
            arguments: &self.0,
        }))
    }

    fn prepare_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
        _feasible: &'a [Arc<NodeInfo>],
    ) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(Demand {
            pod,
            arguments: &self.0,
        }))
    }

    fn wakes(&self, pod: &PodInfo, event: &Event) -> bool {
        match event {
            Event::PodGone(_) | Event::PodResized | Event::PodChanged => true,
            Event::Node(node) => {
                let status = node.status.as_ref();
                let allocatable = status.and_then(|status| status.allocatable.as_ref());
                let total = allocatable.map(Resources::of).unwrap_or_default();
                total.pods > 0
                    && pod
                        .requests
                        .nonzero()
                        .all(|(name, wanted)| self.0.ignores(name) || wanted <= total.get(name))
            }
            _ => false,
        }
    }
}

impl Filter for Demand<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let (reasons, unresolvable) = shortages(self, node);
        if reasons.is_empty() {
            return Ok(());
        }
        Err(Rejection {
            plugin: "NodeResourcesFit",
            reasons,
            unresolvable,
        })
    }
}

impl Demand<'_> {
    /// Between 0 and [`MAX_SCORE`].
    fn value(&self, total: i64, used: i64) -> i64 {
        let share = |part: i64| {
            let share =
                i128::from(part.clamp(0, total)) * i128::from(MAX_SCORE) / i128::from(total);
            i64::try_from(share).unwrap_or(MAX_SCORE)
        };
        let strategy = &self.arguments.scoring_strategy;
        match strategy.kind {
            StrategyKind::LeastAllocated => share(total - used),
            StrategyKind::MostAllocated => share(used),
            StrategyKind::RequestedToCapacityRatio => {
                let shape = strategy.requested_to_capacity_ratio.as_ref();
                curve(
                    shape
                        .map(|ratio| ratio.shape.as_slice())
                        .unwrap_or_default(),
                    share(used),
                )
            }
        }
    }
}

/// The height of a broken line at a utilization in hundredths; flat before the first and after the last point.
fn curve(shape: &[ShapePoint], utilization: i64) -> i64 {
    let score = |point: &ShapePoint| point.score * MAX_SCORE / 10;
    let after = shape
        .iter()
        .position(|point| utilization <= point.utilization);
    match after {
        Some(0) => score(&shape[0]),
        Some(at) => {
            let (left, right) = (&shape[at - 1], &shape[at]);
            let width = right.utilization - left.utilization;
            score(left)
                + (score(right) - score(left)) * (utilization - left.utilization) / width.max(1)
        }
        None => shape.last().map_or(0, score),
    }
}

impl Score for Demand<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        let by_curve =
            self.arguments.scoring_strategy.kind == StrategyKind::RequestedToCapacityRatio;
        for resource in &self.arguments.scoring_strategy.resources {
            let name = resource.name.as_str();
            let total = node.allocatable.get(name);
            // What is asked for silently counts too, but only for what every pod needs.
            let (used, asked) = match name {
                CPU | MEMORY => (node.scored.get(name), self.pod.scored.get(name)),
                _ => (node.requested.get(name), self.pod.requests.get(name)),
            };
            if total <= 0 || (asked == 0 && is_scalar(name)) {
                continue;
            }
            let value = self.value(total, used + asked);
            if by_curve && value <= 0 {
                continue;
            }
            sum += value * resource.weight;
            weights += resource.weight;
        }
        // As upstream: a curve's mean is that of what it gives something for, and rounded.
        match weights {
            0 => 0,
            _ if by_curve => (2 * sum + weights) / (2 * weights),
            _ => sum / weights,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::tests::*, *};

    fn asking(name: &str, requests: Value) -> Arc<PodInfo> {
        let spec = json!({"containers": [{"name": "c", "resources": {"requests": requests}}]});
        pod(name, json!({}), spec)
    }

    #[test]
    fn what_is_missing_is_named_and_what_can_never_be_is_marked() {
        let other = asking("other", json!({"cpu": "3"}));
        let snapshot = Snapshot::of([node("n", json!({}), json!({}), &[other])]);
        let cases = [
            (json!({"cpu": "1"}), None),
            (
                json!({"cpu": "1001m"}),
                Some((vec!["Insufficient cpu"], false)),
            ),
            (json!({"cpu": "5"}), Some((vec!["Insufficient cpu"], true))),
            (
                json!({"cpu": "2", "memory": "9Gi", "example.com/gpu": "1"}),
                Some((
                    vec![
                        "Insufficient cpu",
                        "Insufficient memory",
                        "Insufficient example.com/gpu",
                    ],
                    true,
                )),
            ),
        ];
        for (requests, expected) in cases {
            let pod = asking("p", requests.clone());
            let found = filtered(&NodeResourcesFit::default(), &pod, &snapshot).remove(0);
            let expected = expected.map(|(reasons, unresolvable)| Rejection {
                plugin: "NodeResourcesFit",
                reasons: reasons.into_iter().map(str::to_owned).collect(),
                unresolvable,
            });
            assert_eq!(found, expected, "{requests}");
        }
    }

    #[test]
    fn a_full_node_takes_no_more_pods() {
        let small = json!({"status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "1"}}});
        let node = node("n", json!({}), small, &[asking("other", json!({}))]);
        let reason = reasons(
            &NodeResourcesFit::default(),
            &asking("p", json!({})),
            &Snapshot::of([node]),
        )
        .remove(0);
        assert_eq!(reason.as_deref(), Some("Too many pods"));
    }

    #[test]
    fn the_emptier_node_scores_higher() {
        let busy = asking("busy", json!({"cpu": "2", "memory": "4Gi"}));
        let snapshot = Snapshot::of([
            node("empty", json!({}), json!({}), &[]),
            node("busy", json!({}), json!({}), &[busy]),
        ]);
        let pod = asking("p", json!({"cpu": "1", "memory": "2Gi"}));
        assert_eq!(
            scored(&NodeResourcesFit::default(), &pod, &snapshot),
            [75, 25]
        );
    }

    #[test]
    fn a_profile_may_pack_or_follow_a_curve() {
        let busy = asking("busy", json!({"cpu": "2", "memory": "4Gi"}));
        let snapshot = Snapshot::of([
            node("empty", json!({}), json!({}), &[]),
            node("busy", json!({}), json!({}), &[busy]),
        ]);
        let pod = asking("p", json!({"cpu": "1", "memory": "2Gi"}));
        let with = |strategy: Value| {
            let arguments = serde_json::from_value(json!({"scoringStrategy": strategy})).unwrap();
            scored(&NodeResourcesFit(arguments), &pod, &snapshot)
        };
        assert_eq!(with(json!({"type": "MostAllocated"})), [25, 75]);
        let shape = json!([{"utilization": 0, "score": 0}, {"utilization": 50, "score": 10}, {"utilization": 100, "score": 0}]);
        let curve = json!({"type": "RequestedToCapacityRatio", "requestedToCapacityRatio": {"shape": shape}});
        assert_eq!(with(curve), [50, 50]);
        let cpu = json!({"type": "MostAllocated", "resources": [{"name": "cpu", "weight": 1}, {"name": "example.com/gpu", "weight": 9}]});
        assert_eq!(with(cpu), [25, 75], "what nobody asks for does not count");
    }

    #[test]
    fn a_curve_counts_what_it_gives_something_for_and_rounds() {
        let busy = asking("busy", json!({"cpu": "2", "memory": "0"}));
        let snapshot = Snapshot::of([
            node("empty", json!({}), json!({}), &[]),
            node("busy", json!({}), json!({}), &[busy]),
        ]);
        let pod = asking("p", json!({"cpu": "1", "memory": "2Gi"}));
        let by_curve = |shape: Value, memory: i64| {
            let strategy = json!({"type": "RequestedToCapacityRatio",
                "resources": [{"name": "cpu", "weight": 1}, {"name": "memory", "weight": memory}],
                "requestedToCapacityRatio": {"shape": shape}});
            let arguments = serde_json::from_value(json!({"scoringStrategy": strategy})).unwrap();
            scored(&NodeResourcesFit(arguments), &pod, &snapshot)
        };
        let late = json!([{"utilization": 50, "score": 0}, {"utilization": 100, "score": 10}]);
        assert_eq!(by_curve(late, 1), [0, 50]);
        let straight = json!([{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]);
        assert_eq!(by_curve(straight, 2), [25, 42]);
    }

    #[test]
    fn storage_of_its_own_counts_for_who_asks_for_none_too() {
        let status = json!({"status": {"allocatable":
            {"cpu": "4", "memory": "8Gi", "pods": "10", "ephemeral-storage": "8Gi"}}});
        let snapshot = Snapshot::of([node("n", json!({}), status, &[])]);
        let strategy = json!({"type": "LeastAllocated", "resources":
            [{"name": "cpu", "weight": 1}, {"name": "ephemeral-storage", "weight": 1}]});
        let arguments = serde_json::from_value(json!({"scoringStrategy": strategy})).unwrap();
        let pod = asking("p", json!({"cpu": "1"}));
        let fit = NodeResourcesFit(arguments);
        assert_eq!(scored(&fit, &pod, &snapshot), [87]);
    }
}
