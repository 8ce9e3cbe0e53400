//! Decides where the kept history begins: by age, and sooner when it grows too large.

use std::collections::VecDeque;
use std::time::Instant;

use super::EmbeddedOptions;
use super::memory::Memory;
use crate::Revision;

/// Age is known to this part of what is kept; finer would only cost memory.
const PRECISION: u32 = 64;

pub(super) struct Retention {
    options: EmbeddedOptions,
    /// The revision at a time, oldest first. The first is the newest that is old enough, once there is one.
    samples: VecDeque<(Instant, Revision)>,
}

impl Retention {
    pub(super) fn new(options: EmbeddedOptions, current: Revision, now: Instant) -> Self {
        Self {
            options,
            samples: VecDeque::from([(now, current)]),
        }
    }

    /// Notes that the store has come to `current`.
    pub(super) fn observe(&mut self, current: Revision, now: Instant) {
        let interval = self.options.keep_history / PRECISION;
        if self
            .samples
            .back()
            .is_none_or(|(at, _)| now.duration_since(*at) >= interval)
        {
            self.samples.push_back((now, current));
        }
        while self
            .samples
            .get(1)
            .is_some_and(|(at, _)| self.is_old(*at, now))
        {
            self.samples.pop_front();
        }
    }

    /// Where history should begin now.
    pub(super) fn begin(&self, memory: &Memory, now: Instant) -> Revision {
        let by_age = self
            .samples
            .iter()
            .take_while(|(at, _)| self.is_old(*at, now))
            .last();
        let by_age = by_age.map_or(Revision::default(), |(_, revision)| *revision);
        let too_large = memory.history_bytes() > self.options.max_history_bytes
            || memory.history_events() > self.options.max_history_events;
        if !too_large {
            return by_age;
        }
        // A quarter at a time: what is left lets ordinary watches resume, and the next time is not at once.
        let kept = memory.current().0 - memory.compacted().0;
        by_age.max(Revision(memory.compacted().0 + kept.div_ceil(4)))
    }

    fn is_old(&self, at: Instant, now: Instant) -> bool {
        now.duration_since(at) >= self.options.keep_history
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::record::{Put, Write};
    use super::*;

    fn memory_with(events: u64, value: usize) -> Memory {
        let mut memory = Memory::default();
        for revision in 1..=events {
            let value = windlass_packed::Packed::plain(&vec![0; value]);
            let put = Put {
                value,
                create_revision: Revision(1),
                expires_at: None,
            };
            memory.apply(Write {
                revision: Revision(revision),
                key: "/k".into(),
                put: Some(put),
            });
        }
        memory
    }

    #[test]
    fn history_begins_at_the_newest_revision_that_is_old_enough() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut retention = Retention::new(EmbeddedOptions::default(), Revision(3), start);
        for (seconds, revision) in [(100, 10), (200, 20), (350, 30)] {
            retention.observe(Revision(revision), at(seconds));
        }
        let memory = memory_with(1, 1);
        assert_eq!(retention.begin(&memory, at(299)), Revision(0));
        assert_eq!(retention.begin(&memory, at(350)), Revision(3));
        assert_eq!(retention.begin(&memory, at(400)), Revision(10));
        assert_eq!(retention.begin(&memory, at(1000)), Revision(30));
    }

    #[test]
    fn a_large_history_begins_later_than_its_age_asks_for() {
        let now = Instant::now();
        let many = EmbeddedOptions {
            max_history_events: 100,
            ..Default::default()
        };
        let large = EmbeddedOptions {
            max_history_bytes: 50_000,
            ..Default::default()
        };
        let small = memory_with(100, 10);
        assert_eq!(
            Retention::new(many.clone(), Revision(0), now).begin(&small, now),
            Revision(0)
        );
        let more = memory_with(101, 10);
        assert_eq!(
            Retention::new(many, Revision(0), now).begin(&more, now),
            Revision(26)
        );
        let heavy = memory_with(100, 1_000);
        assert_eq!(
            Retention::new(large, Revision(0), now).begin(&heavy, now),
            Revision(25)
        );
    }
}
