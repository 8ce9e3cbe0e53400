//! A watch: what a client was given at the start, then the events that its queue receives.

use std::sync::Arc;

use windlass_machinery::status::ApiError;
use windlass_store::Revision;

use super::{Cacher, Caches, Entry, Filter, Queue, Seen, Trigger};
use crate::cacher::CacheEvent;

/// One client's view of a resource from some revision on. Dropping it ends it.
pub struct Watch {
    caches: Arc<Caches>,
    cacher: Arc<Cacher>,
    filter: Filter,
    trigger: Trigger,
    queue: Arc<Queue>,
    /// The objects that exist at the start; taken by the reader, each to be shown as ADDED.
    pub initial: Vec<Arc<Entry>>,
    /// Everything up to here is in `initial` or was before the watch.
    pub start: Revision,
}

/// Where a watch starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The present objects, then what follows.
    Now { with_initial: bool },
    /// The events after a revision.
    After(Revision),
}

impl Caches {
    /// Starts a watch. The caller has waited for the revision that it needs.
    ///
    /// # Errors
    /// 410 when events after the revision are not kept any more; what a conversion says that the filter needs.
    pub fn watch(
        self: &Arc<Self>,
        cacher: &Arc<Cacher>,
        filter: Filter,
        from: From,
    ) -> Result<Watch, ApiError> {
        let reached = self.revision();
        let trigger = cacher.trigger(&filter);
        let mut state = cacher.state.write();
        let (initial, start, queue) = match from {
            From::Now { with_initial } => {
                let start = reached.max(state.revision);
                let initial = if with_initial {
                    let scope = cacher.scope(&filter);
                    state
                        .scan(&scope, None)
                        .filter(|e| filter.matches(e))
                        .cloned()
                        .collect()
                } else {
                    Vec::new()
                };
                (initial, start, Queue::starting_at(start))
            }
            From::After(revision) => {
                if revision < state.ring.complete_after() {
                    return Err(too_old(revision, state.ring.complete_after()));
                }
                let queue = Queue::starting_at(revision);
                queue.refill(state.ring.after(revision));
                (Vec::new(), revision, queue)
            }
        };
        let queue = Arc::new(queue);
        state.watchers.add(&trigger, queue.clone());
        drop(state);
        let mut watch = Watch {
            caches: self.clone(),
            cacher: cacher.clone(),
            filter,
            trigger,
            queue,
            initial,
            start,
        };
        if let Some(converted) = watch.filter.converted() {
            converted.retain(&mut watch.initial)?;
        }
        Ok(watch)
    }
}

impl Watch {
    /// The next events, at least one unless the wait was only woken.
    ///
    /// # Errors
    /// 410 when the reader was so slow that events have been lost; what a conversion says that the filter needs.
    pub async fn next(&self) -> Result<Vec<(Arc<CacheEvent>, Seen)>, ApiError> {
        loop {
            let (events, behind) = self.queue.take();
            if let Some(revision) = behind {
                self.catch_up(revision)?;
                continue;
            }
            let mut seen = Vec::new();
            for event in events {
                if let Some(as_seen) = event.seen_through(&self.filter)? {
                    seen.push((event, as_seen));
                }
            }
            if !seen.is_empty() {
                return Ok(seen);
            }
            self.queue.wait().await;
        }
    }

    fn catch_up(&self, after: Revision) -> Result<(), ApiError> {
        let state = self.cacher.state.read();
        if after < state.ring.complete_after() {
            return Err(too_old(after, state.ring.complete_after()));
        }
        self.queue.refill(state.ring.after(after));
        Ok(())
    }

    /// A revision up to which everything has been delivered, if nothing is waiting: a bookmark.
    pub fn delivered(&self) -> Option<Revision> {
        // Before looking: whatever is not queued by then lies after it.
        let reached = self.caches.revision();
        self.queue.is_empty().then_some(reached)
    }

    pub(crate) fn cacher(&self) -> &Arc<Cacher> {
        &self.cacher
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cacher
            .state
            .write()
            .watchers
            .remove(&self.trigger, &self.queue);
    }
}

fn too_old(requested: Revision, oldest: Revision) -> ApiError {
    ApiError::expired(format!("too old resource version: {requested} ({oldest})"))
}
