//! Feeds what the informers see into the cache and the queue.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt;
use tokio::time::Instant;
use windlass_informers::{Cached, Change, Informer, Subscription};

use crate::{
    event::{Event, matters, resized},
    pod::{PodInfo, is_finished, node_name},
    scheduler::Scheduler,
    storage::InformerStorage,
};

pub(crate) fn subscribe(
    scheduler: &Arc<Scheduler>,
    nodes: &Informer<Node>,
    pods: &Informer<Pod>,
    namespaces: &Informer<Namespace>,
    storage: &InformerStorage,
) -> Vec<Subscription> {
    let of_nodes = Arc::clone(scheduler);
    let nodes = nodes.on_change(move |change| of_nodes.see_node(change));
    let of_pods = Arc::clone(scheduler);
    let pods = pods.on_change(move |change| of_pods.see_pod(change));
    let of_namespaces = Arc::clone(scheduler);
    let namespaces = namespaces.on_change(move |change| {
        if let Change::Updated { old, new } = change
            && old.labels() != new.labels()
        {
            of_namespaces.queue.tell(&Event::Namespace, Instant::now());
        }
    });
    vec![
        nodes,
        pods,
        namespaces,
        tell_of(scheduler, &storage.claims),
        tell_of(scheduler, &storage.volumes),
        tell_of(scheduler, &storage.classes),
        tell_of(scheduler, &storage.drivers),
        tell_of(scheduler, &storage.resource_claims),
        tell_of(scheduler, &storage.slices),
        tell_of(scheduler, &storage.device_classes),
    ]
}

/// Any change of storage may be what a pod waits for.
fn tell_of<K: Cached>(scheduler: &Arc<Scheduler>, informer: &Informer<K>) -> Subscription {
    let scheduler = Arc::clone(scheduler);
    informer.on_change(move |_| scheduler.queue.tell(&Event::Storage, Instant::now()))
}

impl Scheduler {
    fn see_node(&self, change: &Change<'_, Node>) {
        match change {
            Change::Added(node) => {
                self.cache.set_node(node);
                self.queue
                    .tell(&Event::Node(Arc::clone(node)), Instant::now());
            }
            Change::Updated { old, new } => {
                if matters(old, new) {
                    self.cache.set_node(new);
                    self.queue
                        .tell(&Event::Node(Arc::clone(new)), Instant::now());
                }
            }
            Change::Deleted(node) => {
                self.cache.remove_node(&node.name_any());
                self.queue.tell(&Event::NodeGone, Instant::now());
            }
        }
    }

    fn see_pod(&self, change: &Change<'_, Pod>) {
        let now = Instant::now();
        let pod = change.object();
        let uid = pod.uid().unwrap_or_default();
        // A pod that was deleted and made again between two listings shows as an update.
        if let Change::Updated { old, new } = change
            && old.uid() != new.uid()
        {
            self.see_pod(&Change::Deleted(old));
            return self.see_pod(&Change::Added(new));
        }
        if matches!(change, Change::Deleted(_)) {
            self.queue.remove(&uid);
            let promised = self.nominated.lock().remove(&uid).is_some();
            self.cache.remove_pod(&uid);
            // Room that was only promised is free as well.
            if promised || node_name(pod).is_some() {
                self.queue.tell(&Event::PodGone(Arc::clone(pod)), now);
            }
            return;
        }
        if node_name(pod).is_some() {
            self.see_bound(change, pod, &uid, now);
        } else if self.is_mine(pod) {
            let pod = PodInfo::new(Arc::clone(pod));
            self.remember_promise(change, &pod);
            self.queue.put(pod, now);
        } else {
            self.queue.remove(&uid);
        }
    }

    fn see_bound(&self, change: &Change<'_, Pod>, pod: &Arc<Pod>, uid: &str, now: Instant) {
        self.cache.set_pod(pod);
        let before = match change {
            Change::Updated { old, .. } => Some(*old),
            Change::Added(_) | Change::Deleted(_) => None,
        };
        let was_bound = before.is_some_and(|old| node_name(old).is_some());
        if !was_bound {
            self.queue.remove(uid);
            self.nominated.lock().remove(uid);
        }
        let was_finished = before.is_some_and(|old| is_finished(old));
        if is_finished(pod) {
            if !was_finished {
                self.queue.tell(&Event::PodGone(Arc::clone(pod)), now);
            }
            return;
        }
        let Some(old) = before.filter(|_| was_bound) else {
            self.queue.tell(&Event::PodPlaced(Arc::clone(pod)), now);
            return;
        };
        if old.labels() != pod.labels() {
            let (old, new) = (Arc::clone(old), Arc::clone(pod));
            self.queue.tell(&Event::PodRelabelled { old, new }, now);
        }
        if resized(old, pod) {
            self.queue.tell(&Event::PodResized, now);
        }
    }

    /// Room that an earlier scheduler (or whoever adds nodes) promised to a pod stays promised until that
    /// is taken back.
    fn remember_promise(&self, change: &Change<'_, Pod>, pod: &Arc<PodInfo>) {
        let node = |pod: &Pod| {
            let status = pod.status.as_ref()?;
            status
                .nominated_node_name
                .clone()
                .filter(|name| !name.is_empty())
        };
        let mut nominated = self.nominated.lock();
        match node(&pod.pod) {
            Some(node) => {
                nominated
                    .entry(pod.uid.clone())
                    .or_insert((node, Arc::clone(pod)));
            }
            None if matches!(change, Change::Updated { old, .. } if node(old).is_some()) => {
                nominated.remove(&pod.uid);
            }
            None => {}
        }
    }

    fn is_mine(&self, pod: &Pod) -> bool {
        self.profiles.of(pod).is_some()
            && pod.metadata.deletion_timestamp.is_none()
            && !is_finished(pod)
    }
}
