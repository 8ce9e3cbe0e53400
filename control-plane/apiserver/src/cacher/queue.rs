//! What is waiting for one watcher: a bounded queue that, when it is full, falls back to the shared ring.
//!
//! A stalled watcher therefore costs at most [`CAPACITY`] pointers. Once it reads again it catches up from the
//! ring; only if the ring has moved on is it cut off with 410.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use windlass_store::Revision;

use super::CacheEvent;

/// Events queued for one watcher.
pub(super) const CAPACITY: usize = 256;

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<Arc<CacheEvent>>,
    /// Set when an event found no room: everything after this revision must come from the ring.
    behind: Option<Revision>,
    /// The revision of the last event that was queued, or of the watch's start.
    last: Revision,
}

impl Queue {
    pub(super) fn starting_at(revision: Revision) -> Self {
        let waiting = Waiting {
            last: revision,
            ..Waiting::default()
        };
        Self {
            waiting: Mutex::new(waiting),
            wake: Notify::new(),
        }
    }

    /// Called by the feed in revision order.
    pub(super) fn push(&self, event: &Arc<CacheEvent>) {
        let mut waiting = self.waiting.lock();
        if waiting.behind.is_some() || event.revision < waiting.last {
            return;
        }
        // Events that share a revision stay together: a reader goes on from revision to revision.
        if waiting.events.len() >= CAPACITY && event.revision != waiting.last {
            waiting.behind = Some(waiting.last);
        } else {
            waiting.last = event.revision;
            waiting.events.push_back(event.clone());
        }
        drop(waiting);
        self.wake.notify_one();
    }

    /// Sends the reader to the ring, as if an event had found no room.
    pub(super) fn overflow(&self) {
        let mut waiting = self.waiting.lock();
        waiting.behind = Some(waiting.last);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Everything queued; when there is nothing, the revision from which to catch up, if the queue overflowed.
    pub(super) fn take(&self) -> (VecDeque<Arc<CacheEvent>>, Option<Revision>) {
        let mut waiting = self.waiting.lock();
        let events = std::mem::take(&mut waiting.events);
        let behind = if events.is_empty() {
            waiting.behind
        } else {
            None
        };
        (events, behind)
    }

    /// Refills an empty queue from `ring`; the caller holds the lock that keeps the feed out.
    pub(super) fn refill<'a>(&self, ring: impl Iterator<Item = &'a Arc<CacheEvent>>) {
        let mut waiting = self.waiting.lock();
        waiting.behind = None;
        for event in ring {
            if waiting.events.len() >= CAPACITY && event.revision != waiting.last {
                waiting.behind = Some(waiting.last);
                break;
            }
            waiting.last = event.revision;
            waiting.events.push_back(event.clone());
        }
    }

    /// Whether everything has been taken.
    pub(super) fn is_empty(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.events.is_empty() && waiting.behind.is_none()
    }

    pub(super) async fn wait(&self) {
        self.wake.notified().await;
    }
}
