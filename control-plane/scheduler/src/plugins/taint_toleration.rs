//! TaintToleration: taints NoSchedule and NoExecute keep pods away that do not tolerate them;
//! PreferNoSchedule makes a node less welcome.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use windlass_informers::placement;

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{Filter, Plugin, Rejection, Score, normalize_to_max},
    node::NodeInfo,
    pod::PodInfo,
};

pub(crate) struct TaintToleration;

struct Tolerance<'a>(&'a PodInfo);

pub(super) fn tolerated(pod: &PodInfo, taint: &Taint) -> bool {
    placement::tolerated(pod.spec(), taint)
}

/// The first taint that keeps the pod off the node.
pub(super) fn forbidding<'a>(pod: &PodInfo, node: &'a NodeInfo) -> Option<&'a Taint> {
    node.taints().iter().find(|taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute") && !tolerated(pod, taint)
    })
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        Some(Box::new(Tolerance(pod)))
    }

    fn prepare_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
        feasible: &'a [Arc<NodeInfo>],
    ) -> Option<Box<dyn Score + 'a>> {
        let any = feasible.iter().any(|node| !node.taints().is_empty());
        any.then(|| Box::new(Tolerance(pod)) as Box<dyn Score>)
    }

    fn weight(&self) -> i64 {
        3
    }

    fn wakes(&self, pod: &PodInfo, event: &Event) -> bool {
        match event {
            Event::Node(node) => {
                let mut info = NodeInfo::default();
                info.set_node(Arc::clone(node));
                forbidding(pod, &info).is_none()
            }
            Event::PodChanged => true,
            _ => false,
        }
    }
}

impl Filter for Tolerance<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if forbidding(self.0, node).is_none() {
            return Ok(());
        }
        Err(Rejection {
            plugin: "TaintToleration",
            reasons: vec!["node(s) had untolerated taint(s)".to_owned()],
            unresolvable: true,
        })
    }
}

impl Score for Tolerance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let unwelcome = node
            .taints()
            .iter()
            .filter(|taint| taint.effect == "PreferNoSchedule" && !tolerated(self.0, taint));
        i64::try_from(unwelcome.count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, _nodes: &[Arc<NodeInfo>], scores: &mut [i64]) {
        normalize_to_max(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::tests::*, *};

    #[test]
    fn only_tolerated_taints_let_a_pod_in() {
        let tainted = |effect: &str| {
            let taints =
                json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
            node(effect, json!({}), taints, &[])
        };
        let snapshot = Snapshot::of([
            tainted("NoSchedule"),
            tainted("NoExecute"),
            tainted("PreferNoSchedule"),
        ]);
        let reason = Some("node(s) had untolerated taint(s)".to_owned());
        let plain = pod("p", json!({}), json!({}));
        assert_eq!(
            reasons(&TaintToleration, &plain, &snapshot),
            [reason.clone(), reason.clone(), None]
        );
        assert_eq!(scored(&TaintToleration, &plain, &snapshot), [100, 100, 0]);
        let cases = [
            (json!([{"operator": "Exists"}]), [None, None, None]),
            (json!([{"key": "k", "value": "v"}]), [None, None, None]),
            (
                json!([{"key": "k", "value": "other"}]),
                [reason.clone(), reason.clone(), None],
            ),
            (
                json!([{"key": "k", "operator": "Exists", "effect": "NoExecute"}]),
                [reason.clone(), None, None],
            ),
        ];
        for (tolerations, expected) in cases {
            let pod = pod("p", json!({}), json!({"tolerations": tolerations}));
            assert_eq!(
                reasons(&TaintToleration, &pod, &snapshot),
                expected,
                "{tolerations}"
            );
        }
    }
}
