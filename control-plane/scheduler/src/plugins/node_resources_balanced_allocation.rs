//! NodeResourcesBalancedAllocation: prefers nodes whose CPU and memory would be used to like shares.

use std::sync::Arc;

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{MAX_SCORE, Plugin, Score},
    node::NodeInfo,
    pod::PodInfo,
};

pub(crate) struct NodeResourcesBalancedAllocation;

struct Balance<'a>(&'a PodInfo);

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
        let asks = pod.requests.milli_cpu > 0 || pod.requests.memory > 0;
        asks.then(|| Box::new(Balance(pod)) as Box<dyn Score>)
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
        let share =
            |total: i64, used: i64| (total > 0).then(|| (used as f64 / total as f64).min(1.0));
        let cpu = share(
            node.allocatable.milli_cpu,
            node.requested.milli_cpu + self.0.requests.milli_cpu,
        );
        let memory = share(
            node.allocatable.memory,
            node.requested.memory + self.0.requests.memory,
        );
        // The standard deviation of two numbers is half their difference.
        let deviation = match (cpu, memory) {
            (Some(cpu), Some(memory)) => (cpu - memory).abs() / 2.0,
            _ => 0.0,
        };
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
        let plugin = NodeResourcesBalancedAllocation;
        assert_eq!(
            scored(&plugin, &asking("p", "1", "2Gi"), &snapshot),
            [100, 62]
        );
    }
}
