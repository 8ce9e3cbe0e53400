//! NodeUnschedulable: a cordoned node takes only pods that tolerate its taint.

use k8s_openapi::api::core::v1::Taint;

use super::taint_toleration::tolerated;
use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, Plugin, Rejection},
    node::NodeInfo,
    pod::PodInfo,
};

pub(crate) struct NodeUnschedulable;

struct Cordon<'a>(&'a PodInfo);

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        Some(Box::new(Cordon(pod)))
    }

    fn wakes(&self, _pod: &PodInfo, event: &Event) -> bool {
        matches!(event, Event::Node(_) | Event::PodChanged)
    }
}

impl Filter for Cordon<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if !node.is_unschedulable() {
            return Ok(());
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Default::default()
        };
        if tolerated(self.0, &taint) {
            return Ok(());
        }
        Err(Rejection {
            plugin: "NodeUnschedulable",
            reasons: vec!["node(s) were unschedulable".to_owned()],
            unresolvable: true,
        })
    }
}
