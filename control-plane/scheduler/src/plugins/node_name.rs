//! NodeName: a pod that names its node runs there or nowhere.

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, Plugin, Rejection},
    node::NodeInfo,
    pod::{PodInfo, node_name},
};

pub(crate) struct NodeName;

struct Wanted<'a>(&'a str);

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        Some(Box::new(Wanted(node_name(&pod.pod)?)))
    }

    fn wakes(&self, _pod: &PodInfo, event: &Event) -> bool {
        matches!(event, Event::Node(_))
    }
}

impl Filter for Wanted<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if node.name == self.0 {
            return Ok(());
        }
        Err(Rejection {
            plugin: "NodeName",
            reasons: vec!["node(s) didn't match the requested node name".to_owned()],
            unresolvable: true,
        })
    }
}
