//! Keeps a number of equal pods: the one implementation behind ReplicaSet and ReplicationController,
//! which differ only in their types.

mod manage;
mod replicaset;
mod replicationcontroller;
mod status;

pub(crate) use replicaset::start as start_replicaset;
pub(crate) use replicationcontroller::start as start_replicationcontroller;

use std::{fmt::Debug, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::{Resource, ResourceExt, core::Selector};
use serde::Serialize;
use windlass_informers::{Cached, Change, Informer, Key, Subscription, recorder::Recorder};

use crate::{
    pods,
    runtime::{
        Context, Controller, Freshness, Outcome, Queue, Result, claim, controlled_by, patch_status,
        run_workers,
    },
};

/// A kind that keeps replicas, read through its own types.
pub(crate) trait Replicated:
    Cached + Serialize + Resource<Scope = k8s_openapi::NamespaceResourceScope>
{
    const NAME: &'static str;
    /// The component that its events come from.
    const COMPONENT: &'static str;

    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// `None` when the object's selector cannot be used.
    fn selector(&self) -> Option<Selector>;
    fn counts(&self) -> status::Counts;
    /// The object with this status.
    fn with_counts(&self, counts: status::Counts) -> Self;
    /// All pods that rank together with this object's own when one has to go.
    fn related(&self, view: &Informer<Self>, pods: &Informer<Pod>) -> Vec<Arc<Pod>>;
}

struct Replicas<R> {
    context: Context,
    view: Arc<Informer<R>>,
    pods: Arc<Informer<Pod>>,
    freshness: Freshness<Pod>,
    recorder: Recorder,
}

/// Runs the controller of one replicated kind until the context is cancelled.
async fn run<R: Replicated>(context: Context, workers: usize) {
    let queue = Queue::new();
    let view = context.informer::<R>();
    let pods = context.informer::<Pod>();
    view.synced().await;
    pods.synced().await;
    let _subscriptions = subscribe(&queue, &view, &pods);
    let controller = Arc::new(Replicas {
        freshness: Freshness::new(Arc::clone(&pods)),
        recorder: context.recorder.named(R::COMPONENT),
        context: context.clone(),
        view,
        pods,
    });
    run_workers(controller, queue, workers, &context.cancel).await;
}

fn subscribe<R: Replicated>(
    queue: &Arc<Queue<Key>>,
    view: &Arc<Informer<R>>,
    pods: &Arc<Informer<Pod>>,
) -> [Subscription; 2] {
    let own = {
        let queue = Arc::clone(queue);
        view.on_change(move |change| queue.add(Key::of(change.object().as_ref())))
    };
    let of_pods = {
        let (queue, view) = (Arc::clone(queue), Arc::clone(view));
        pods.on_change(move |change| {
            for key in owners_of::<R>(change, &view) {
                queue.add(key);
            }
        })
    };
    [own, of_pods]
}

/// The objects that a pod's change concerns: its owner before and after, or, of an orphan, whoever may
/// want to adopt it.
fn owners_of<R: Replicated>(change: &Change<'_, Pod>, view: &Informer<R>) -> Vec<Key> {
    let pod = change.object();
    let namespace = pod.namespace().unwrap_or_default();
    let mut keys: Vec<Key> = [Some(pod), change.previous()]
        .into_iter()
        .flatten()
        .filter_map(|pod| controlled_by::<R>(pod.as_ref()))
        .map(|owner| Key::new(&namespace, &owner.name))
        .collect();
    keys.dedup();
    let orphan = pod
        .owner_references()
        .iter()
        .all(|owner| owner.controller != Some(true));
    if orphan && !matches!(change, Change::Deleted(_)) && pods::is_active(pod) {
        let wanting = view.in_namespace(&namespace).into_iter().filter(|object| {
            object
                .selector()
                .is_some_and(|selector| kube::core::SelectorExt::matches(&selector, pod.labels()))
        });
        keys.extend(wanting.map(|object| Key::of(object.as_ref())));
    }
    keys
}

impl<R: Replicated> Controller for Replicas<R> {
    type Key = Key;
    const NAME: &'static str = R::NAME;

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.view.by_key(key) else {
            self.freshness.forget(key);
            return Ok(Outcome::Done);
        };
        let Some(selector) = object.selector() else {
            return Ok(Outcome::Done);
        };
        if !self.freshness.is_fresh(key) {
            return Ok(Outcome::Done);
        }
        let pod_api = self.context.api::<Pod>(&key.namespace);
        let observer = self.freshness.observer(key);
        let claim = claim(
            object.as_ref(),
            &self.context.api(&key.namespace),
            &selector,
            &self.pods,
            &pod_api,
            pods::is_active,
        )
        .await?;
        for adopted in &claim.adopted {
            observer.wrote(adopted);
        }
        let owned = self.freshness.without_deleted(key, claim.owned);
        let (active, rest): (Vec<_>, Vec<_>) =
            owned.into_iter().partition(|pod| pods::is_active(pod));
        let terminating = rest.iter().filter(|pod| pods::is_terminating(pod)).count();

        let managed = if object.meta().deletion_timestamp.is_none() {
            self.manage(key, object.as_ref(), &active).await
        } else {
            Ok(())
        };

        let now = Timestamp::now();
        let counts = status::count(
            object.as_ref(),
            &active,
            terminating,
            managed.as_ref().err(),
            now,
        );
        let updated = object.with_counts(counts);
        patch_status(&self.context.api(&key.namespace), object.as_ref(), &updated).await?;
        managed?;

        // Readiness is an event, becoming available is only time passing.
        let next = active
            .iter()
            .filter_map(|pod| pods::available_in(pod, object.min_ready_seconds(), now))
            .filter(|left| !left.is_zero())
            .min();
        Ok(next.map_or(Outcome::Done, Outcome::Again))
    }
}

impl<R: Debug> Debug for Replicas<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replicas").finish_non_exhaustive()
    }
}
