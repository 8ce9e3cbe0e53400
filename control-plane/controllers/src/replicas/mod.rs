//! Keeps a number of equal pods: the one implementation behind ReplicaSet and ReplicationController,
//! which differ only in their types.

mod manage;
pub(crate) mod replicaset;
pub(crate) mod replicationcontroller;
mod status;

use std::{fmt::Debug, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use serde::Serialize;
use windlass_informers::{Informer, Key, recorder::Recorder};

use crate::{
    pods,
    runtime::{
        Context, Controller, Freshness, Outcome, Owner, Queue, Result, claim_pods, follow_owned,
        patch_status, run_workers,
    },
};

/// A kind that keeps replicas, read through its own types.
pub(crate) trait Replicated: Owner + Serialize {
    const NAME: &'static str;
    /// The component that its events come from.
    const COMPONENT: &'static str;

    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn template(&self) -> Option<&PodTemplateSpec>;
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
    let (view, pods) = context.synced::<(R, Pod)>().await;
    let _own = queue.follow(&view);
    let _of_pods = follow_owned(&queue, &view, &pods, pods::is_active);
    let controller = Arc::new(Replicas {
        freshness: Freshness::new(Arc::clone(&pods)),
        recorder: context.recorder.named(R::COMPONENT),
        context: context.clone(),
        view,
        pods,
    });
    run_workers(controller, queue, workers, &context.cancel).await;
}

impl<R: Replicated> Controller for Replicas<R> {
    type Key = Key;
    const NAME: &'static str = R::NAME;

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.view.by_key(key) else {
            self.freshness.forget(key);
            return Ok(Outcome::Done);
        };
        if object.selector().is_none() || !self.freshness.is_fresh(key) {
            return Ok(Outcome::Done);
        }
        let owned = claim_pods(
            &self.context,
            key,
            object.as_ref(),
            &self.pods,
            &self.freshness,
            pods::is_active,
        )
        .await?;
        let owned = self.freshness.with_deleted(key, owned);
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
