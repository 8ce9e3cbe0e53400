//! All keys, and the history that is kept, in memory: what reads and watches are answered from.
//!
//! Pure: no file, no clock, no lock. Multi-version: a key holds its last version and those that some kept
//! revision still shows, so that a read at a revision and a watch from one need nothing else. Compaction is
//! planned first and applied after it has been made durable.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use windlass_packed::Packed;

use super::packing::Packing;
use super::record::{Put, Write};
use crate::{Event, KeyValue, Result, Revision, StoreError};

/// What a superseded version costs beside its value: its slot, its log entry, allocator overhead.
const VERSION_OVERHEAD: usize = 128;

#[derive(Default)]
pub(super) struct Memory {
    keys: BTreeMap<Arc<str>, Vec<Version>>,
    /// The writes after `compacted`, one for each revision without a gap.
    log: VecDeque<Arc<str>>,
    current: Revision,
    compacted: Revision,
    history_bytes: usize,
    packing: Arc<Packing>,
}

/// A key as of one write; oldest first in its vector.
struct Version {
    revision: Revision,
    /// `None`: deleted. Never the first of a key's versions unless its revision is after `compacted`.
    put: Option<Put<Packed>>,
}

/// A step of compaction: which records of the file are no longer needed once history begins at `to`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Compaction {
    pub(super) to: Revision,
    pub(super) removed: Vec<Revision>,
}

/// A range read in progress. It is done in steps, so that a large one does not keep writers out.
pub(super) struct Scan {
    pub(super) prefix: Arc<str>,
    pub(super) after: Option<Arc<str>>,
    pub(super) at: Revision,
    pub(super) limit: usize,
    pub(super) items: Vec<KeyValue>,
    /// Keys seen after `limit` was reached.
    pub(super) remaining: usize,
}

impl Memory {
    /// An empty history that begins at `compacted`; [`load`](Self::load) fills it.
    pub(super) fn new(compacted: Revision) -> Self {
        Self {
            current: compacted,
            compacted,
            ..Self::default()
        }
    }

    /// How this memory packs values: a write is given to it packed, so that the work is done outside of a lock.
    pub(super) fn packing(&self) -> &Arc<Packing> {
        &self.packing
    }

    /// Takes a record from the file. They come in revision order; the error says what contradicts.
    pub(super) fn load(&mut self, write: Write<Packed>) -> Result<(), &'static str> {
        if write.revision > self.compacted {
            if write.revision != self.current.next() {
                return Err("a revision is missing");
            }
            if write.put.is_none() && self.latest(&write.key).is_none() {
                return Err("a key that did not exist was deleted");
            }
            self.apply(write);
            return Ok(());
        }
        if write.put.is_none() || self.keys.contains_key(&write.key) {
            return Err("a compacted revision is still there");
        }
        let version = Version {
            revision: write.revision,
            put: write.put,
        };
        self.keys.insert(write.key, vec![version]);
        Ok(())
    }

    pub(super) fn current(&self) -> Revision {
        self.current
    }

    pub(super) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(super) fn history_bytes(&self) -> usize {
        self.history_bytes
    }

    pub(super) fn history_events(&self) -> usize {
        self.log.len()
    }

    /// The key as it is now.
    pub(super) fn latest(&self, key: &str) -> Option<KeyValue> {
        let (key, versions) = self.keys.get_key_value(key)?;
        versions.last()?.key_value(key)
    }

    /// Every key that will expire, with the revision it was last written at.
    pub(super) fn expiries(&self) -> impl Iterator<Item = (u64, Arc<str>, Revision)> {
        self.keys.iter().filter_map(|(key, versions)| {
            let version = versions.last()?;
            Some((
                version.put.as_ref()?.expires_at?,
                key.clone(),
                version.revision,
            ))
        })
    }

    /// Adds the next write. It must carry the next revision.
    pub(super) fn apply(&mut self, write: Write<Packed>) {
        debug_assert_eq!(write.revision, self.current.next());
        self.current = write.revision;
        let version = Version {
            revision: write.revision,
            put: write.put,
        };
        // One allocation holds the key for its whole life, however often it is written.
        let key = match self.keys.get_key_value(&write.key) {
            Some((key, _)) => key.clone(),
            None => write.key,
        };
        // Nearly all keys have one version nearly always.
        let versions = self
            .keys
            .entry(key.clone())
            .or_insert_with(|| Vec::with_capacity(1));
        if let Some(superseded) = versions.last() {
            self.history_bytes += superseded.weight();
        }
        versions.push(version);
        self.log.push_back(key);
    }

    /// The revision to read at: `at` if the history still and already has it.
    pub(super) fn readable(&self, at: Option<Revision>) -> Result<Revision> {
        let Some(at) = at else {
            return Ok(self.current);
        };
        if at < self.compacted {
            return Err(StoreError::Compacted {
                requested: at,
                compacted: self.compacted,
            });
        }
        if at > self.current {
            return Err(StoreError::Future {
                requested: at,
                current: self.current,
            });
        }
        Ok(at)
    }

    pub(super) fn get(&self, key: &str, at: Revision) -> Option<KeyValue> {
        let (key, versions) = self.keys.get_key_value(key)?;
        visible(versions, at)?.key_value(key)
    }

    /// Reads on for at most `steps` keys; true when the scan is done.
    pub(super) fn scan(&self, scan: &mut Scan, steps: usize) -> Result<bool> {
        self.readable(Some(scan.at))?;
        let from = match &scan.after {
            Some(after) if **after >= *scan.prefix => Bound::Excluded(after.clone()),
            _ => Bound::Included(scan.prefix.clone()),
        };
        let mut last: Option<&Arc<str>> = None;
        for (visited, (key, versions)) in self.keys.range((from, Bound::Unbounded)).enumerate() {
            if !key.starts_with(&*scan.prefix) {
                return Ok(true);
            }
            if visited == steps {
                scan.after = last.cloned();
                return Ok(false);
            }
            last = Some(key);
            let Some(kv) = visible(versions, scan.at).and_then(|v| v.key_value(key)) else {
                continue;
            };
            if scan.limit == 0 || scan.items.len() < scan.limit {
                scan.items.push(kv);
            } else {
                scan.remaining += 1;
            }
        }
        Ok(true)
    }

    /// Adds the writes that make up the state at a revision, of at most `steps` keys after `after`; returns
    /// the last key that was looked at, `None` at the end.
    pub(super) fn state_at(
        &self,
        at: Revision,
        after: Option<&str>,
        steps: usize,
        state: &mut Vec<Write<Packed>>,
    ) -> Option<Arc<str>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (key, versions) in self
            .keys
            .range::<str, _>((from, Bound::Unbounded))
            .take(steps)
        {
            if let Some(version) = visible(versions, at)
                && version.put.is_some()
            {
                let (revision, put) = (version.revision, version.put.clone());
                state.push(Write {
                    revision,
                    key: key.clone(),
                    put,
                });
            }
            last = Some(key.clone());
        }
        last
    }

    /// The events under `prefix` after `from`, looking at no more than `steps` writes; and the revision
    /// that was reached.
    pub(super) fn events_after(
        &self,
        prefix: &str,
        from: Revision,
        steps: usize,
    ) -> Result<(Vec<Event>, Revision)> {
        self.readable(Some(from))?;
        let skip = usize::try_from(from.0 - self.compacted.0).unwrap_or(usize::MAX);
        let mut events = Vec::new();
        let mut reached = from;
        for key in self.log.iter().skip(skip).take(steps) {
            reached = reached.next();
            if key.starts_with(prefix) {
                events.push(self.event(key, reached));
            }
        }
        Ok((events, reached))
    }

    fn event(&self, key: &Arc<str>, revision: Revision) -> Event {
        let versions = &self.keys[key];
        let index = versions
            .binary_search_by_key(&revision, |version| version.revision)
            .expect("a logged write's version is kept as long as its log entry");
        let prev = index
            .checked_sub(1)
            .and_then(|before| versions[before].key_value(key));
        match versions[index].key_value(key) {
            Some(kv) => Event::Put { kv, prev },
            None => Event::Delete {
                revision,
                prev: prev.expect("only what exists is deleted"),
            },
        }
    }

    /// What to remove so that history begins at `target`, or at an earlier revision when that would take
    /// more than `steps` writes. `None` when it already begins there.
    pub(super) fn plan_compaction(&self, target: Revision, steps: usize) -> Option<Compaction> {
        let behind = target.min(self.current).0.saturating_sub(self.compacted.0);
        let steps = steps.min(usize::try_from(behind).unwrap_or(usize::MAX));
        if steps == 0 {
            return None;
        }
        let mut removed = Vec::new();
        let mut to = self.compacted;
        for key in self.log.iter().take(steps) {
            to = to.next();
            let versions = &self.keys[key];
            let index = versions
                .binary_search_by_key(&to, |version| version.revision)
                .expect("a logged write's version is kept as long as its log entry");
            // A deletion before this write was removed by its own entry.
            if let Some(before) = index.checked_sub(1)
                && versions[before].put.is_some()
            {
                removed.push(versions[before].revision);
            }
            if versions[index].put.is_none() {
                removed.push(to);
            }
        }
        Some(Compaction { to, removed })
    }

    /// Forgets what a plan removed. No write may have been compacted since the plan was made.
    pub(super) fn apply_compaction(&mut self, plan: &Compaction) {
        while self.compacted < plan.to {
            self.compacted = self.compacted.next();
            let key = self
                .log
                .pop_front()
                .expect("the log has an entry for each kept revision");
            let Some(versions) = self.keys.get_mut(&key) else {
                continue;
            };
            let shown = versions.partition_point(|version| version.revision <= self.compacted);
            let Some(last) = shown.checked_sub(1) else {
                continue;
            };
            let forget = if versions[last].put.is_none() {
                shown
            } else {
                last
            };
            // The key's newest version, should it be a deletion, has never been counted as superseded.
            let counted = forget.min(versions.len() - 1);
            let weight: usize = versions[..counted].iter().map(Version::weight).sum();
            self.history_bytes -= weight;
            versions.drain(..forget);
            if versions.is_empty() {
                self.keys.remove(&key);
            } else if versions.capacity() > versions.len() * 2 {
                versions.shrink_to_fit();
            }
        }
    }
}

/// The version that a read at a revision sees.
fn visible(versions: &[Version], at: Revision) -> Option<&Version> {
    // Nearly every read is of the present.
    if let Some(last) = versions.last()
        && last.revision <= at
    {
        return Some(last);
    }
    let shown = versions.partition_point(|version| version.revision <= at);
    versions.get(shown.checked_sub(1)?)
}

impl Version {
    fn key_value(&self, key: &Arc<str>) -> Option<KeyValue> {
        let put = self.put.as_ref()?;
        Some(KeyValue {
            key: key.clone(),
            value: put.value.clone(),
            create_revision: put.create_revision,
            mod_revision: self.revision,
        })
    }

    fn weight(&self) -> usize {
        VERSION_OVERHEAD + self.put.as_ref().map_or(0, |put| put.value.len())
    }
}
