//! NodePorts: a host port can be had once on each address of a node.

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, Plugin, Rejection},
    node::NodeInfo,
    pod::{HostPort, PodInfo},
};

pub(crate) struct NodePorts;

struct Wanted<'a>(&'a [HostPort]);

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        (!pod.host_ports.is_empty()).then(|| Box::new(Wanted(&pod.host_ports)) as Box<dyn Filter>)
    }

    fn wakes(&self, pod: &PodInfo, event: &Event) -> bool {
        match event {
            Event::PodGone(gone) => {
                let gone = PodInfo::new(std::sync::Arc::clone(gone));
                gone.host_ports
                    .iter()
                    .any(|port| pod.host_ports.iter().any(|p| p.conflicts(port)))
            }
            Event::Node(_) => true,
            _ => false,
        }
    }
}

impl Filter for Wanted<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let taken = self
            .0
            .iter()
            .any(|port| node.host_ports.iter().any(|used| used.conflicts(port)));
        if !taken {
            return Ok(());
        }
        Err(Rejection {
            plugin: "NodePorts",
            reasons: vec!["node(s) didn't have free ports for the requested pod ports".to_owned()],
            unresolvable: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::tests::*, *};

    fn with_port(name: &str, port: Value) -> std::sync::Arc<PodInfo> {
        pod(
            name,
            json!({}),
            json!({"containers": [{"name": "c", "ports": [port]}]}),
        )
    }

    #[test]
    fn ports_conflict_by_number_protocol_and_address() {
        let used = with_port("used", json!({"hostPort": 80, "hostIP": "10.0.0.1"}));
        let snapshot = Snapshot::of([node("n", json!({}), json!({}), &[used])]);
        let cases = [
            (json!({"hostPort": 80}), false),
            (json!({"hostPort": 80, "hostIP": "10.0.0.1"}), false),
            (json!({"hostPort": 80, "hostIP": "10.0.0.2"}), true),
            (json!({"hostPort": 80, "protocol": "UDP"}), true),
            (json!({"hostPort": 81}), true),
            (json!({"containerPort": 80}), true),
        ];
        for (port, free) in cases {
            let pod = with_port("p", port.clone());
            assert_eq!(
                filtered(&NodePorts, &pod, &snapshot)[0].is_none(),
                free,
                "{port}"
            );
        }
    }
}
