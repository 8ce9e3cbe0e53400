//! NodeResourcesBalancedAllocation: prefers nodes whose resources (CPU and memory, unless the configuration names
//! others) would be used to like shares.

use std::sync::Arc;

use crate::{
    arguments::{BalanceArguments, ResourceWeight},
    cache::Snapshot,
    event::Event,
    framework::{MAX_SCORE, Plugin, Score},
    node::NodeInfo,
    pod::PodInfo,
    resources::is_scalar,
};

pub(crate) struct NodeResourcesBalancedAllocation(pub(crate) BalanceArguments);

struct Balance<'a> {
    pod: &'a PodInfo,
    resources: &'a [ResourceWeight],
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn prepare_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
        _feasible: &'a [Arc<NodeInfo>],
    ) -> Option<Box<dyn Score + 'a>> {
        // A pod that asks for nothing would only favour nodes that are balanced already.
        let resources = self.0.resources.as_slice();
        let asks = resources
            .iter()
            .any(|resource| pod.requests.get(&resource.name) > 0);
        asks.then(|| Box::new(Balance { pod, resources }) as Box<dyn Score>)
    }

    fn wakes(&self, _pod: &PodInfo, _event: &Event) -> bool {
        false
    }
}

impl Score for Balance<'_> {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "shares between 0 and 1"
    )]
    fn score(&self, node: &NodeInfo) -> i64 {
        let shares: Vec<f64> = self
            .resources
            .iter()
            .filter_map(|resource| {
                let name = resource.name.as_str();
                let total = node.allocatable.get(name);
                let asked = self.pod.requests.get(name);
                let used = node.requested.get(name) + asked;
                let counts = total > 0 && (asked > 0 || !is_scalar(name));
                counts.then(|| (used as f64 / total as f64).min(1.0))
            })
            .collect();
        let count = shares.len().max(1) as f64;
        let mean = shares.iter().sum::<f64>() / count;
        let variance = shares
            .iter()
            .map(|share| (share - mean).powi(2))
            .sum::<f64>()
            / count;
        let deviation = variance.sqrt();
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::tests::*, *};

    #[test]
    fn a_lopsided_node_scores_lower() {
        let asking = |name: &str, cpu: &str, memory: &str| {
            let requests = json!({"cpu": cpu, "memory": memory});
            pod(
                name,
                json!({}),
                json!({"containers":
                [{"name": "c", "resources": {"requests": requests}}]}),
            )
        };
        let snapshot = Snapshot::of([
            node("even", json!({}), json!({}), &[]),
            node(
                "lopsided",
                json!({}),
                json!({}),
                &[asking("other", "3", "0")],
            ),
        ]);
        let plugin = NodeResourcesBalancedAllocation(BalanceArguments::default());
        assert_eq!(
            scored(&plugin, &asking("p", "1", "2Gi"), &snapshot),
            [100, 62]
        );
    }

    #[test]
    fn the_resources_to_balance_can_be_chosen() {
        let requests = json!({"cpu": "1", "memory": "1Gi", "example.com/gpu": "2"});
        let asking = pod(
            "p",
            json!({}),
            json!({"containers":
            [{"name": "c", "resources": {"requests": requests}}]}),
        );
        let more = json!({"status": {"allocatable":
            {"cpu": "4", "memory": "8Gi", "pods": "10", "example.com/gpu": "8"}}});
        let snapshot = Snapshot::of([node("n", json!({}), more, &[])]);
        let plugin = |names: &[&str]| {
            let resources = names.iter().map(|name| json!({"name": name}));
            let resources: Vec<_> = resources.collect();
            let arguments = json!({"resources": resources});
            NodeResourcesBalancedAllocation(serde_json::from_value(arguments).unwrap())
        };
        // A quarter of the CPUs and of the GPUs, an eighth of the memory.
        assert_eq!(
            scored(&plugin(&["cpu", "example.com/gpu"]), &asking, &snapshot),
            [100]
        );
        assert_eq!(
            scored(&plugin(&["cpu", "memory"]), &asking, &snapshot),
            [93]
        );
        assert_eq!(
            scored(
                &plugin(&["cpu", "memory", "example.com/gpu"]),
                &asking,
                &snapshot
            ),
            [94]
        );
        let requests = json!({"cpu": "1", "memory": "1Gi"});
        let spec = json!({"containers": [{"name": "c", "resources": {"requests": requests}}]});
        let without = pod("q", json!({}), spec);
        let found = scored(&plugin(&["cpu", "example.com/gpu"]), &without, &snapshot);
        assert_eq!(found, [100], "what nobody asks for does not count");
    }
}
