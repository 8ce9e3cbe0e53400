//! Taint eviction: pods leave a node with a NoExecute taint that they do not tolerate, at once or when
//! their tolerationSeconds are over.

use std::{sync::Arc, time::Duration};

use ahash::AHashMap;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;
use tracing::info;
use windlass_informers::{
    Change, Informer, Key,
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
    recorder: Recorder,
    since: Arc<Since>,
}

/// Since when each node has its taints. Taints may say it themselves, but whoever taints by hand leaves it out: then
/// it is when the taint was first seen.
#[derive(Default)]
struct Since(Mutex<AHashMap<String, Vec<(Taint, Timestamp)>>>);

impl Since {
    fn note(&self, node: &str, taints: &[&Taint], now: Timestamp) {
        let mut all = self.0.lock();
        let before = all.remove(node).unwrap_or_default();
        let known = |taint: &Taint| before.iter().find(|(known, _)| known == taint);
        let since = |taint: &&Taint| {
            let told = taint.time_added.as_ref().map(|time| time.0);
            let since = told.or_else(|| known(taint).map(|(_, since)| *since));
            ((*taint).clone(), since.unwrap_or(now))
        };
        if !taints.is_empty() {
            all.insert(node.to_owned(), taints.iter().map(since).collect());
        }
    }

    fn of(&self, node: &str) -> Vec<(Taint, Timestamp)> {
        self.0.lock().get(node).cloned().unwrap_or_default()
    }
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (pods, nodes) = context.synced::<(Pod, Node)>().await;

    let since = Arc::new(Since::default());
    let (of_nodes, on_node, noted) = (Arc::clone(&queue), Arc::clone(&pods), Arc::clone(&since));
    let _of_nodes = nodes.on_change(move |change| {
        let node = change.object();
        let taints = match change {
            Change::Deleted(_) => Vec::new(),
            _ => no_execute(node),
        };
        noted.note(&node.name_any(), &taints, Timestamp::now());
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
        since,
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

/// `bound`: when the pod came to the node. What was tainted before that counts from then.
fn leave(
    tolerations: &[Toleration],
    taints: &[(Taint, Timestamp)],
    bound: Timestamp,
    now: Timestamp,
) -> Leave {
    let mut leave = Leave::Never;
    for (taint, since) in taints {
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
        let at = bound
            .max(*since)
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

/// When the scheduler said where it goes, or when it was made: some are made where they run.
fn bound_at(pod: &Pod) -> Timestamp {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let scheduled = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "True")
        .and_then(|condition| condition.last_transition_time.as_ref());
    scheduled
        .or(pod.metadata.creation_timestamp.as_ref())
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

impl Controller for TaintEviction {
    type Key = Key;
    const NAME: &'static str = "tainteviction";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(pod) = self.pods.by_key(key).filter(|pod| pods::is_active(pod)) else {
            return Ok(Outcome::Done);
        };
        let taints = pods::node_name(&pod)
            .map(|node| self.since.of(node))
            .unwrap_or_default();
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.tolerations.as_deref());
        let now = Timestamp::now();
        let bound = bound_at(&pod);
        match leave(tolerations.unwrap_or_default(), &taints, bound, now) {
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
            let since = Since::default();
            since.note("n", &taints, now);
            let given = tolerations(given);
            assert_eq!(
                leave(&given, &since.of("n"), Timestamp::UNIX_EPOCH, now),
                expected,
                "{given:?}"
            );
        }
    }

    #[test]
    fn a_taint_without_a_time_counts_from_when_it_was_seen_or_the_pod_came() {
        let second = |second| Timestamp::from_second(second).unwrap();
        let by_hand = Taint {
            time_added: None,
            ..taint("a", 0)
        };
        let since = Since::default();
        since.note("n", &[&by_hand], second(100));
        since.note("n", &[&by_hand, &taint("b", 90)], second(130));
        let known: Vec<_> = since.of("n").into_iter().map(|(_, since)| since).collect();
        assert_eq!(known, [second(100), second(90)]);

        let given = tolerations(json!([{"operator": "Exists", "tolerationSeconds": 60}]));
        let leaves = |bound, now| leave(&given, &since.of("n"), second(bound), second(now));
        assert_eq!(leaves(0, 120), Leave::At(second(150)));
        assert_eq!(leaves(0, 160), Leave::Now);
        assert_eq!(leaves(140, 160), Leave::At(second(200)));

        since.note("n", &[], second(170));
        since.note("n", &[&by_hand], second(180));
        assert_eq!(leaves(0, 181), Leave::At(second(240)));
    }
}
