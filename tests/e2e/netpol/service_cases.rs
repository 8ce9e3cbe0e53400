//! Policies over Services of every type: the client is who dialled, whatever the way, and the pod behind the address is
//! who was dialled, but for a port of another node, which its own node cannot tell from any other of that node's.

use serde_json::{Value, json};

use super::cases::{Case, only, policy};
use super::world::{Action, World};

/// As many states as there are ways to a Service, so that everybody takes each.
const TURNS: usize = 5;

pub(super) fn services(world: &World) -> Vec<Case> {
    let all_pods = json!({"namespaceSelector": {}});
    let nodes = world.model.nodes.iter().flatten();
    let nodes = nodes.map(|address| json!({"ipBlock": {"cidr": only(*address)}}));
    let pods_and_nodes: Value = [all_pods.clone()].into_iter().chain(nodes).collect();
    let mut cases = Vec::new();
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (name, rules) in [
            ("nobody", json!([])),
            ("all pods", json!([{peers: [all_pods]}])),
            ("all pods and nodes", json!([{peers: pods_and_nodes}])),
            ("one port", json!([{"ports": [{"port": 80}]}])),
        ] {
            let policies = ["x", "y", "z"].map(|namespace| {
                let policy = policy("services", namespace, &json!({}), direction, rules.clone());
                Action::Apply(policy)
            });
            let mut steps = vec![policies.to_vec()];
            steps.resize(TURNS, Vec::new());
            cases.push(Case::new(
                format!("services: {direction}, {name}, in all namespaces"),
                steps,
            ));
        }
    }
    cases
}
