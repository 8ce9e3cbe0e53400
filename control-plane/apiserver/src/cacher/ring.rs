//! The latest events of a resource, for watchers that resume or fall behind.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass_store::Revision;

use super::CacheEvent;

/// Events kept per resource.
pub(super) const CAPACITY: usize = 16_384;
/// ... and what the objects in them may weigh, in bytes.
const MAX_BYTES: usize = 16 << 20;
/// So many are kept whatever their age: a watcher of what seldom changes resumes after any time, as upstream.
const ALWAYS_KEPT: usize = 100;
/// Older ones than this are let go of, as the store does with its history.
const KEPT_FOR: Duration = Duration::from_secs(300);
/// Age is known to this part of it.
pub(super) const SAMPLED_EVERY: Duration = Duration::from_secs(15);
/// Encoded events are kept for this many of the latest.
const FRAMES_KEPT: usize = 64;

#[derive(Default)]
pub(super) struct Ring {
    events: VecDeque<Arc<CacheEvent>>,
    bytes: usize,
    /// Every event after this revision is here.
    complete_after: Revision,
}

impl Ring {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn complete_after(&self) -> Revision {
        self.complete_after
    }

    /// Events up to `revision` are not told of any more, or were never here.
    pub(super) fn begin_after(&mut self, revision: Revision) {
        self.complete_after = self.complete_after.max(revision);
    }

    pub(super) fn push(&mut self, event: Arc<CacheEvent>) {
        self.bytes += event.entry().value.len();
        self.events.push_back(event);
        let no_longer_latest = self.events.len().checked_sub(FRAMES_KEPT);
        if let Some(old) = no_longer_latest.and_then(|index| self.events.get(index)) {
            old.forget_frames();
        }
        while self.events.len() > CAPACITY || self.bytes > MAX_BYTES {
            self.forget_oldest();
        }
    }

    /// Lets go of what is not after `revision`, but for the latest.
    pub(super) fn forget(&mut self, revision: Revision) {
        while self.events.len() > ALWAYS_KEPT
            && self
                .events
                .front()
                .is_some_and(|event| event.revision <= revision)
        {
            self.forget_oldest();
        }
        if self.events.capacity() > 4 * self.events.len().max(ALWAYS_KEPT) {
            self.events.shrink_to(2 * self.events.len());
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.events.pop_front() {
            self.bytes -= oldest.entry().value.len();
            self.begin_after(oldest.revision);
        }
    }

    pub(super) fn after(&self, revision: Revision) -> impl Iterator<Item = &Arc<CacheEvent>> {
        let start = self
            .events
            .partition_point(|event| event.revision <= revision);
        self.events.range(start..)
    }
}

/// When the caches were at which revision: what is old by now.
#[derive(Default)]
pub(super) struct Ages(VecDeque<(Instant, Revision)>);

impl Ages {
    /// Notes where the caches are, and says up to where events are old.
    pub(super) fn sample(&mut self, now: Instant, reached: Revision) -> Option<Revision> {
        self.0.push_back((now, reached));
        let mut old = None;
        while let Some((at, revision)) = self.0.front()
            && now.duration_since(*at) >= KEPT_FOR
        {
            old = Some(*revision);
            self.0.pop_front();
        }
        old
    }
}
