//! What the node does when it runs out: first it throws away what nobody uses, then it ends
//! pods, one at a time, before the kernel ends processes at random.

mod levels;
mod local_storage;
mod rank;
mod thresholds;

use windlass_cri::v1::ContainerStats;

pub(crate) use levels::file_system;
pub use levels::{Shortage, shortage};
pub use thresholds::Thresholds;
pub(crate) use thresholds::{Level, Signal};

use crate::labels;
use crate::launch::resources::Amounts;
use crate::manager::PodView;
use crate::memory::Verdict;
use crate::model::{PodId, is_static, is_terminal, spec};
use crate::node::Node;
use local_storage::WritableLayers;
use rank::Candidate;

/// One look at the node: which pods have to go, and why.
pub(crate) struct Found {
    /// By uid.
    pub(crate) evictions: Vec<(String, Verdict)>,
    /// Whether it is the disk that is short: then images nobody uses go too.
    pub(crate) disk_is_short: bool,
}

/// Looks at the node.
pub(crate) async fn look(node: &Node, views: &[PodView]) -> Found {
    let live: Vec<&PodView> = views
        .iter()
        .filter(|view| !is_terminal(&view.pod) && view.pod.metadata.deletion_timestamp.is_none())
        .collect();
    let levels = levels::measure(&node.config.state_dir, &node.runtime).await;
    let crossed: Vec<_> = node.config.eviction.crossed(&levels).collect();
    let limited = live.iter().any(|view| local_storage::is_limited(&view.pod));
    let mut found = Found {
        evictions: Vec::new(),
        disk_is_short: crossed.iter().any(|(signal, ..)| signal.is_disk()),
    };
    if crossed.is_empty() && !limited {
        return found;
    }
    let stats = node
        .runtime
        .list_container_stats(&[])
        .await
        .unwrap_or_default();
    for view in live
        .iter()
        .filter(|view| local_storage::is_limited(&view.pod))
    {
        let uid = PodId::of(&view.pod).uid;
        let layers = writable_layers(&stats, &uid);
        let (pod, config) = (view.pod.clone(), node.config.clone());
        let measured =
            tokio::task::spawn_blocking(move || local_storage::excess(&pod, &config, &layers));
        if let Ok(Some(message)) = measured.await {
            found.evictions.push((uid, evicted(message, None)));
        }
    }
    // One shortage and one pod at a time: what it gives back may be enough.
    if let Some((signal, level, least)) = crossed.first()
        && found.evictions.is_empty()
        && let Some((uid, verdict)) = victim(node, &live, &stats, *signal, *level, *least)
    {
        found.evictions.push((uid, verdict));
    }
    found
}

fn victim(
    node: &Node,
    live: &[&PodView],
    stats: &[ContainerStats],
    signal: Signal,
    level: Level,
    least: i64,
) -> Option<(String, Verdict)> {
    let candidates: Vec<Candidate> = live
        .iter()
        .filter(|view| view.snapshot.anything_runs())
        .map(|view| {
            let uid = PodId::of(&view.pod).uid;
            let (used, requested) = match signal {
                Signal::MemoryAvailable => (
                    memory_used(stats, &uid),
                    Amounts::of_pod(&view.pod).memory_request,
                ),
                Signal::PidAvailable => (0, 0),
                _ => {
                    let layers: i64 = writable_layers(stats, &uid).values().sum();
                    let folder = node.config.pod_folder(&uid);
                    let logs =
                        crate::launch::sandbox::log_folder(&node.config, &PodId::of(&view.pod));
                    let files = local_storage::disk_used(&folder) + local_storage::disk_used(&logs);
                    (layers + files, 0)
                }
            };
            Candidate {
                uid,
                priority: spec(&view.pod).priority.unwrap_or(0),
                is_static: is_static(&view.pod),
                used,
                requested,
            }
        })
        .collect();
    let chosen = rank::first(&candidates)?;
    let message = format!(
        "The node was low on resource: {}. Threshold quantity: {least}, available: {}. Its \
         containers were using {}, their request is {}. ",
        signal.resource(),
        level.available,
        chosen.used,
        chosen.requested
    );
    // The node has no time to lose: the containers get none either.
    Some((chosen.uid.clone(), evicted(message, Some(0))))
}

fn evicted(message: String, grace: Option<i64>) -> Verdict {
    Verdict {
        reason: "Evicted".to_owned(),
        message,
        grace,
        disruption: true,
    }
}

fn of_pod<'a>(
    stats: &'a [ContainerStats],
    uid: &'a str,
) -> impl Iterator<Item = (&'a str, &'a ContainerStats)> {
    stats.iter().filter_map(move |stats| {
        let labels = &stats.attributes.as_ref()?.labels;
        let name = labels.get(labels::CONTAINER_NAME)?;
        (labels.get(labels::POD_UID)? == uid).then_some((name.as_str(), stats))
    })
}

fn memory_used(stats: &[ContainerStats], uid: &str) -> i64 {
    let used = of_pod(stats, uid).filter_map(|(_, stats)| {
        let bytes = stats.memory.as_ref()?.working_set_bytes.as_ref()?.value;
        i64::try_from(bytes).ok()
    });
    used.sum()
}

fn writable_layers(stats: &[ContainerStats], uid: &str) -> WritableLayers {
    let used = of_pod(stats, uid).filter_map(|(name, stats)| {
        let bytes = stats.writable_layer.as_ref()?.used_bytes.as_ref()?.value;
        Some((name.to_owned(), i64::try_from(bytes).ok()?))
    });
    used.collect()
}
