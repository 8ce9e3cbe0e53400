//! Deletes pods that nobody will clean up: finished ones beyond a limit, pods of nodes that are gone, and
//! terminating pods that were never bound.

use std::{sync::Arc, time::Duration};

use ahash::{AHashMap, AHashSet};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{ResourceExt, api::PropagationPolicy};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tracing::{info, warn};
use windlass_informers::{Change, Informer, Key};

use crate::{
    pods,
    runtime::{Context, Result, ResultExt, delete_with},
};

const PERIOD: Duration = Duration::from_secs(20);
/// A node may be missing from our view for a moment: its pods are left alone until it has been for this
/// long, and until the API server says so as well.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub(crate) async fn start(context: Context) {
    let (pods, nodes) = context.synced::<(Pod, Node)>().await;
    let suspects = Arc::new(Suspects::default());
    let noting = Arc::clone(&suspects);
    let _subscription = pods.on_change(move |change| noting.note(change));
    let threshold = context.config.terminated_pod_gc_threshold;
    let mut missing: AHashMap<String, Instant> = AHashMap::new();
    let mut ticks = tokio::time::interval(PERIOD);
    while context
        .cancel
        .run_until_cancelled(ticks.tick())
        .await
        .is_some()
    {
        let mut homeless = pods.index_values();
        homeless.retain(|node| !node.is_empty() && nodes.get("", node).is_none());
        let Ok(all) = tokio::task::spawn_blocking({
            let (pods, suspects, homeless) =
                (Arc::clone(&pods), Arc::clone(&suspects), homeless.clone());
            move || suspects.pods(&pods, &homeless, threshold)
        })
        .await
        else {
            continue;
        };
        let absent = absent_nodes(&context, homeless, &mut missing).await;
        let doomed = doomed(&all, &absent, &nodes, threshold);
        let deletions = doomed.iter().map(|(pod, why)| collect(&context, pod, *why));
        for result in join_all(deletions).await {
            if let Err(error) = result {
                warn!(%error, "pod not collected, trying again later");
            }
        }
    }
}

/// The pods that need a closer look, kept as they change: nearly none does, of however many there are, and to look at
/// each costs its decoding.
#[derive(Default)]
struct Suspects(Mutex<Lists>);

#[derive(Default)]
struct Lists {
    finished: AHashSet<Key>,
    terminating: AHashSet<Key>,
}

impl Suspects {
    fn note(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let key = Key::of(pod.as_ref());
        let there = !matches!(change, Change::Deleted(_));
        let mut lists = self.0.lock();
        let Lists {
            finished,
            terminating,
        } = &mut *lists;
        for (list, belongs) in [
            (finished, pods::is_finished(pod)),
            (terminating, pods::is_terminating(pod)),
        ] {
            match there && belongs {
                true => drop(list.insert(key.clone())),
                false => drop(list.remove(&key)),
            }
        }
    }

    /// Those that may have to go: of the finished ones only if there are too many.
    fn pods(&self, pods: &Informer<Pod>, homeless: &[String], threshold: usize) -> Vec<Arc<Pod>> {
        let keys = {
            let lists = self.0.lock();
            let surplus = threshold > 0 && lists.finished.len() > threshold;
            let finished = lists.finished.iter().filter(|_| surplus);
            let keys: AHashSet<Key> = finished.chain(&lists.terminating).cloned().collect();
            keys
        };
        let of_nodes = homeless.iter().flat_map(|node| pods.indexed(node));
        let of_nodes = of_nodes.filter(|pod| !keys.contains(&Key::of(pod.as_ref())));
        let mut all: Vec<_> = of_nodes.collect();
        all.extend(keys.iter().filter_map(|key| pods.by_key(key)));
        all
    }
}

/// Nodes that pods name and that are surely gone.
async fn absent_nodes(
    context: &Context,
    named: Vec<String>,
    missing: &mut AHashMap<String, Instant>,
) -> Vec<String> {
    missing.retain(|name, _| named.contains(name));
    let mut absent = Vec::new();
    for name in named {
        let since = *missing.entry(name.clone()).or_insert_with(Instant::now);
        if since.elapsed() < QUARANTINE {
            continue;
        }
        match context.cluster_api::<Node>().get_metadata_opt(&name).await {
            Ok(None) => absent.push(name),
            Ok(Some(_)) => {}
            Err(error) => warn!(node = name, %error, "cannot tell whether the node is gone"),
        }
    }
    absent
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Finished,
    NodeGone,
    NeverBound,
    OutOfService,
}

fn doomed(
    pods: &[Arc<Pod>],
    absent: &[String],
    nodes: &Informer<Node>,
    threshold: usize,
) -> Vec<(Arc<Pod>, Why)> {
    let out_of_service = |name: &str| {
        nodes.get("", name).is_some_and(|node| {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            taints
                .into_iter()
                .flatten()
                .any(|taint| taint.key == OUT_OF_SERVICE)
        })
    };
    let mut doomed: Vec<_> =
        pods.iter()
            .filter_map(|pod| {
                let why = match pods::node_name(pod) {
                    None => pods::is_terminating(pod).then_some(Why::NeverBound),
                    Some(node) if absent.iter().any(|name| name == node) => Some(Why::NodeGone),
                    Some(node) => (pods::is_terminating(pod) && out_of_service(node))
                        .then_some(Why::OutOfService),
                };
                why.map(|why| (Arc::clone(pod), why))
            })
            .collect();
    doomed.extend(
        surplus(pods, threshold)
            .into_iter()
            .map(|pod| (pod, Why::Finished)),
    );
    doomed
}

/// The oldest finished pods beyond the threshold.
fn surplus(pods: &[Arc<Pod>], threshold: usize) -> Vec<Arc<Pod>> {
    if threshold == 0 {
        return Vec::new();
    }
    let mut finished: Vec<_> = pods
        .iter()
        .filter(|pod| pods::is_finished(pod) && !pods::is_terminating(pod))
        .cloned()
        .collect();
    let surplus = finished.len().saturating_sub(threshold);
    finished.sort_by_key(|pod| {
        (
            pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
            pod.name_any(),
        )
    });
    finished.truncate(surplus);
    finished
}

async fn collect(context: &Context, pod: &Pod, why: Why) -> Result<()> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    info!(namespace, name, ?why, "deleting pod");
    if why != Why::Finished && !pods::is_finished(pod) {
        fail(context, &namespace, pod, why).await?;
    }
    delete_with(
        &context.api::<Pod>(&namespace),
        pod,
        PropagationPolicy::Background,
        Some(0),
    )
    .await
}

/// A Job must see that the pod failed and by whose doing (KEP-3329), so that is written first.
async fn fail(context: &Context, namespace: &str, pod: &Pod, why: Why) -> Result<()> {
    let conditions = match why {
        Why::NodeGone => pods::disrupted(pod, "DeletionByPodGC", "PodGC: node no longer exists"),
        _ => pods::conditions_without_disruption(pod),
    };
    let body = json!({
        "metadata": { "uid": pod.metadata.uid },
        "status": { "phase": "Failed", "conditions": conditions },
    });
    let api = context.api::<Pod>(namespace);
    let params = kube::api::PatchParams::default();
    let patch = kube::api::Patch::Merge(&body);
    match api.patch_status(&pod.name_any(), &params, &patch).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other
            .map(drop)
            .doing(|| format!("fail pod {namespace}/{}", pod.name_any())),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::{
        api::core::v1::PodStatus,
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    };

    use super::*;

    fn finished(name: &str, created: i64) -> Arc<Pod> {
        Arc::new(Pod {
            metadata: ObjectMeta {
                name: Some(name.into()),
                creation_timestamp: Some(Time(Timestamp::from_second(created).unwrap())),
                ..Default::default()
            },
            status: Some(PodStatus {
                phase: Some("Succeeded".into()),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    #[test]
    fn only_pods_that_end_are_looked_at() {
        let suspects = Suspects::default();
        let count = || {
            let lists = suspects.0.lock();
            (lists.finished.len(), lists.terminating.len())
        };
        let mut running = Pod::clone(&finished("a", 1));
        running.status = None;
        suspects.note(&Change::Added(&Arc::new(running.clone())));
        assert_eq!(count(), (0, 0));
        let mut leaving = running.clone();
        leaving.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        let (running, leaving) = (Arc::new(running), Arc::new(leaving));
        suspects.note(&Change::Updated {
            old: &running,
            new: &leaving,
        });
        assert_eq!(count(), (0, 1));
        let over = finished("a", 1);
        suspects.note(&Change::Updated {
            old: &leaving,
            new: &over,
        });
        assert_eq!(count(), (1, 0));
        suspects.note(&Change::Deleted(&over));
        assert_eq!(count(), (0, 0));
    }

    #[test]
    fn the_oldest_finished_pods_beyond_the_threshold_go() {
        let pods = [finished("b", 20), finished("a", 10), finished("c", 30)];
        let names = |threshold| -> Vec<String> {
            surplus(&pods, threshold)
                .iter()
                .map(|pod| pod.name_any())
                .collect()
        };
        assert_eq!(names(1), ["a", "b"]);
        assert_eq!(names(3), [""; 0]);
        assert_eq!(names(0), [""; 0], "0 keeps everything");
    }
}
