//! Taint eviction: pods leave a node with a NoExecute taint that they do not tolerate, at once or when
//! their tolerationSeconds are over.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tracing::info;
use windlass_informers::{
    Informer, Key,
    placement::tolerates,
    recorder::{EventType, Recorder},
};

use crate::{
    nodelifecycle::taints,
    pods,
    runtime::{Context, Controller, Outcome, Queue, Result, ResultExt, delete, run_workers},
};

struct TaintEviction {
    context: Context,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    recorder: Recorder,
}

pub(crate) fn start(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(run(context))
}

async fn run(context: Context) {
    let queue = Queue::new();
    let pods = context.informer::<Pod>();
    let nodes = context.informer::<Node>();
    pods.synced().await;
    nodes.synced().await;

    let (of_nodes, on_node) = (Arc::clone(&queue), Arc::clone(&pods));
    let _of_nodes = nodes.on_change(move |change| {
        let node = change.object();
        let before = change
            .previous()
            .map(|old| no_execute(old))
            .unwrap_or_default();
        if before != no_execute(node) {
            for pod in on_node.indexed(&node.name_any()) {
                of_nodes.add(Key::of(pod.as_ref()));
            }
        }
    });
    let (own, view) = (Arc::clone(&queue), Arc::clone(&nodes));
    let _own = pods.on_change(move |change| {
        let pod = change.object();
        let bound = pods::node_name(pod) != change.previous().and_then(|old| pods::node_name(old));
        let tainted = pods::node_name(pod)
            .and_then(|name| view.get("", name))
            .is_some_and(|node| !no_execute(&node).is_empty());
        if bound && tainted {
            own.add(Key::of(pod.as_ref()));
        }
    });

    let controller = Arc::new(TaintEviction {
        recorder: context.recorder.named("taint-eviction-controller"),
        context: context.clone(),
        pods,
        nodes,
    });
    run_workers(controller, queue, 8, &context.cancel).await;
}

fn no_execute(node: &Node) -> Vec<&Taint> {
    taints(node)
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
        .collect()
}

/// When a pod has to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Never,
    Now,
    At(Timestamp),
}

fn leave(tolerations: &[Toleration], taints: &[&Taint], now: Timestamp) -> Leave {
    let mut leave = Leave::Never;
    for taint in taints {
        let covering: Vec<_> = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .collect();
        if covering.is_empty() {
            return Leave::Now;
        }
        // Of several that cover it the shortest counts; without seconds it lasts for ever.
        let Some(seconds) = covering.iter().filter_map(|t| t.toleration_seconds).min() else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let at = since
            .saturating_add(SignedDuration::from_secs(seconds.max(0)))
            .unwrap_or(now);
        if at <= now {
            return Leave::Now;
        }
        leave = match leave {
            Leave::At(earlier) if earlier <= at => leave,
            _ => Leave::At(at),
        };
    }
    leave
}

impl Controller for TaintEviction {
    type Key = Key;
    const NAME: &'static str = "tainteviction";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(pod) = self.pods.by_key(key).filter(|pod| pods::is_active(pod)) else {
            return Ok(Outcome::Done);
        };
        let Some(node) = pods::node_name(&pod).and_then(|name| self.nodes.get("", name)) else {
            return Ok(Outcome::Done);
        };
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.tolerations.as_deref());
        let now = Timestamp::now();
        match leave(tolerations.unwrap_or_default(), &no_execute(&node), now) {
            Leave::Never => Ok(Outcome::Done),
            Leave::At(at) => {
                let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                Ok(Outcome::Again(left + Duration::from_millis(1)))
            }
            Leave::Now => {
                self.evict(key, &pod).await?;
                Ok(Outcome::Done)
            }
        }
    }
}

impl TaintEviction {
    async fn evict(&self, key: &Key, pod: &Pod) -> Result<()> {
        info!(
            namespace = key.namespace,
            name = key.name,
            "pod does not tolerate its node's taints"
        );
        self.recorder.record(
            pod,
            EventType::Normal,
            "TaintManagerEviction",
            format!("Marking for deletion Pod {key}"),
        );
        let api = self.context.api::<Pod>(&key.namespace);
        let message = "Taint manager: deleting due to NoExecute taint";
        let conditions = pods::disrupted(pod, "DeletionByTaintManager", message);
        let body = json!({
            "metadata": {
                "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version,
            },
            "status": { "conditions": conditions },
        });
        match api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&body))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            other => other
                .map(drop)
                .doing(|| format!("mark pod {key} for eviction"))?,
        }
        delete(&api, pod).await
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;

    fn taint(key: &str, added: i64) -> Taint {
        Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            time_added: Some(Time(Timestamp::from_second(added).unwrap())),
            ..Default::default()
        }
    }

    fn tolerations(json: serde_json::Value) -> Vec<Toleration> {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_strictest_taint_decides_when_a_pod_leaves() {
        let (a, b) = (taint("a", 100), taint("b", 100));
        let at = |second| Leave::At(Timestamp::from_second(second).unwrap());
        let cases = [
            (json!([]), vec![], Leave::Never),
            (json!([]), vec![&a], Leave::Now),
            (
                json!([{"key": "a", "operator": "Exists"}]),
                vec![&a],
                Leave::Never,
            ),
            (
                json!([{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]),
                vec![&a],
                Leave::Now,
            ),
            (json!([{"operator": "Exists"}]), vec![&a, &b], Leave::Never),
            (
                json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300}]),
                vec![&a],
                at(400),
            ),
            (
                json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300},
                       {"key": "b", "operator": "Exists", "tolerationSeconds": 60}]),
                vec![&a, &b],
                at(160),
            ),
            (
                json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 10}]),
                vec![&a],
                Leave::Now,
            ),
            (
                json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 300}]),
                vec![&a, &b],
                Leave::Now,
            ),
        ];
        let now = Timestamp::from_second(120).unwrap();
        for (given, taints, expected) in cases {
            assert_eq!(
                leave(&tolerations(given.clone()), &taints, now),
                expected,
                "{given}"
            );
        }
    }
}
