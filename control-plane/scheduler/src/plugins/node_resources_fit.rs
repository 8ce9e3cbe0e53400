//! NodeResourcesFit: what a pod asks for must be free; emptier nodes are better (LeastAllocated).

use std::sync::Arc;

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, MAX_SCORE, Plugin, Rejection, Score},
    node::NodeInfo,
    pod::PodInfo,
    resources::Resources,
};

pub(crate) struct NodeResourcesFit;

struct Demand<'a>(&'a PodInfo);

fn shortages(pod: &PodInfo, node: &NodeInfo) -> (Vec<String>, bool) {
    let mut reasons = Vec::new();
    let mut never = false;
    let room = node.allocatable.pods;
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= room {
        reasons.push("Too many pods".to_owned());
        never |= room == 0;
    }
    for (name, wanted) in pod.requests.nonzero() {
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
        Some(Box::new(Demand(pod)))
    }

    fn prepare_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
        _feasible: &'a [Arc<NodeInfo>],
    ) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(Demand(pod)))
    }

    fn wakes(&self, pod: &PodInfo, event: &Event) -> bool {
        match event {
            Event::PodGone(_) | Event::PodChanged => true,
            Event::Node(node) => {
                let status = node.status.as_ref();
                let allocatable = status.and_then(|status| status.allocatable.as_ref());
                let total = allocatable.map(Resources::of).unwrap_or_default();
                total.pods > 0
                    && pod
                        .requests
                        .nonzero()
                        .all(|(name, wanted)| wanted <= total.get(name))
            }
            _ => false,
        }
    }
}

impl Filter for Demand<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let (reasons, unresolvable) = shortages(self.0, node);
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

impl Score for Demand<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let free = |total: i64, used: i64| {
            if total <= 0 {
                return None;
            }
            let share = i128::from((total - used).max(0)) * i128::from(MAX_SCORE);
            i64::try_from(share / i128::from(total)).ok()
        };
        let cpu = free(
            node.allocatable.milli_cpu,
            node.scored.milli_cpu + self.0.scored.milli_cpu,
        );
        let memory = free(
            node.allocatable.memory,
            node.scored.memory + self.0.scored.memory,
        );
        let shares: Vec<i64> = cpu.into_iter().chain(memory).collect();
        if shares.is_empty() {
            return 0;
        }
        shares.iter().sum::<i64>() / i64::try_from(shares.len()).unwrap_or(1)
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
            let found = filtered(&NodeResourcesFit, &pod, &snapshot).remove(0);
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
            &NodeResourcesFit,
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
        assert_eq!(scored(&NodeResourcesFit, &pod, &snapshot), [75, 25]);
    }
}
