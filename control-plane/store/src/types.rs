//! The values that cross the [`Store`](crate::Store) boundary.
//!
//! Keys and values are reference counted: a clone of a [`KeyValue`] copies no bytes, so a watch cache that
//! keeps what the store hands out shares the store's memory. A value that the embedded store keeps is packed
//! among others of its folder; whoever looks at it unpacks it.

use std::fmt;
use std::sync::Arc;

use windlass_packed::Packed;

/// A point in the history of the whole store. Every write (put, delete, expiry) makes the next one.
///
/// `Revision(0)` is the empty store before its first write. An object's `resourceVersion` is the
/// revision of its last write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision that the next write makes.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key's value as of its last write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Arc<str>,
    pub value: Packed,
    /// The write that brought the key into being (after its last deletion).
    pub create_revision: Revision,
    /// The last write.
    pub mod_revision: Revision,
}

/// What a write demands of the key's present state; otherwise it fails with
/// [`StoreError::Conflict`](crate::StoreError::Conflict).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist. A delete with this expectation always fails.
    Absent,
    /// The key exists and was last written at this revision.
    ModRevision(Revision),
    /// Whatever is there. A delete of a key that does not exist still fails.
    Any,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was written; `prev` is what it held before, `None` where this write created it.
    Put {
        kv: KeyValue,
        prev: Option<KeyValue>,
    },
    /// The key was deleted (or expired). The deletion has a revision of its own, later than
    /// `prev.mod_revision`.
    Delete { revision: Revision, prev: KeyValue },
}

impl Event {
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { kv, .. } => kv.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }

    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { kv, .. } => &kv.key,
            Self::Delete { prev, .. } => &prev.key,
        }
    }
}

/// What a watch yields: events in revision order, and how far the watch has come.
///
/// An empty batch is a progress notification: other keys were written, this prefix was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    pub events: Vec<Event>,
    /// Every event under the prefix up to and including this revision has now been delivered. A watch
    /// resumed from here misses and repeats nothing.
    pub revision: Revision,
}

/// One page of keys in byte order, all read at the same revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub items: Vec<KeyValue>,
    /// The revision of the read: the one asked for, or the store's current one. Pass it as `at` for the
    /// next page, and as `from` to a watch that continues where this read ends.
    pub revision: Revision,
    /// Keys under the prefix that follow the last item, at the same revision.
    pub remaining: usize,
}

impl Range {
    pub fn more(&self) -> bool {
        self.remaining > 0
    }
}
