//! Runs a controller: N workers take keys, reconcile, and put failures back with back-off.

use std::{
    fmt::Display, future::Future, hash::Hash, panic::AssertUnwindSafe, sync::Arc, time::Duration,
};

use futures::{FutureExt, future::join_all};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{Error, Queue, Result};

/// When a key that was worked on is to be worked on again without a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// At the next change.
    Done,
    /// After this time, whatever happens.
    Again(Duration),
}

/// One controller: brings the world of one key to what its object asks for.
pub(crate) trait Controller: Send + Sync + 'static {
    /// What the queue is keyed by.
    type Key: Clone + Eq + Hash + Display + Send + Sync + 'static;
    /// For the log.
    const NAME: &'static str;

    /// Must be idempotent: it may run at any time, on a view that lags.
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<Outcome>> + Send;
}

/// Works the queue until `cancel`; a worker finishes the key that it holds.
pub(crate) async fn run_workers<C: Controller>(
    controller: Arc<C>,
    queue: Arc<Queue<C::Key>>,
    workers: usize,
    cancel: &CancellationToken,
) {
    let workers = (0..workers).map(|_| {
        let (controller, queue, cancel) =
            (Arc::clone(&controller), Arc::clone(&queue), cancel.clone());
        tokio::spawn(async move {
            loop {
                let key = tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    key = queue.next() => key,
                };
                // A fault over one object must not cost all others a worker.
                let attempt = AssertUnwindSafe(controller.reconcile(&key))
                    .catch_unwind()
                    .await;
                match attempt {
                    Ok(result) => settle::<C>(&queue, &key, result),
                    Err(_panic) => {
                        error!(controller = C::NAME, %key, "reconciliation panicked, retrying");
                        queue.add_rate_limited(key.clone());
                    }
                }
                queue.done(&key);
            }
        })
    });
    for finished in join_all(workers).await {
        if let Err(panic) = finished {
            warn!(controller = C::NAME, %panic, "worker ended");
        }
    }
}

fn settle<C: Controller>(queue: &Queue<C::Key>, key: &C::Key, result: Result<Outcome>) {
    match result {
        Ok(outcome) => {
            queue.forget(key);
            if let Outcome::Again(delay) = outcome {
                queue.add_after(key.clone(), delay);
            }
        }
        Err(error) => {
            tell::<C>(key, &error);
            queue.add_rate_limited(key.clone());
        }
    }
}

/// Conflicts are ordinary life: the view was a moment old.
fn tell<C: Controller>(key: &C::Key, error: &Error) {
    if error.is_conflict() || error.is_not_found() {
        debug!(controller = C::NAME, %key, %error, "stale view, retrying");
    } else {
        warn!(controller = C::NAME, %key, %error, "reconciliation failed, retrying");
    }
}
