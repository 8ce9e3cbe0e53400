//! A change of one object, as watchers see it; encoded once and shared by all of them.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use windlass_machinery::status::ApiError;
use windlass_store::Revision;

use super::{Entry, Filter};
use crate::encode;

/// `type` of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

#[derive(Debug)]
pub struct CacheEvent {
    pub revision: Revision,
    /// The object before, `None` where it was created.
    pub before: Option<Arc<Entry>>,
    /// The object after, `None` where it was deleted.
    pub after: Option<Arc<Entry>>,
    /// The encoded event by type, in the storage version.
    frames: Mutex<[Option<Bytes>; 3]>,
}

/// An event as one watcher sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: EventType,
    /// The object to show; for a deletion its last state.
    pub entry: Arc<Entry>,
    /// The resourceVersion to show it with.
    pub revision: Revision,
}

impl CacheEvent {
    pub fn new(revision: Revision, before: Option<Arc<Entry>>, after: Option<Arc<Entry>>) -> Self {
        Self {
            revision,
            before,
            after,
            frames: Mutex::default(),
        }
    }

    /// The object that the event is about, in whichever state there is.
    pub fn entry(&self) -> &Arc<Entry> {
        self.after
            .as_ref()
            .or(self.before.as_ref())
            .expect("an event is about an object")
    }

    /// What a watcher with this filter sees: an object that enters the selection is ADDED, one that leaves it
    /// is DELETED.
    ///
    /// # Errors
    /// When the object would have to be converted first, and that fails.
    pub(crate) fn seen_through(&self, filter: &Filter) -> Result<Option<Seen>, ApiError> {
        let (before, after) = (
            admitted(self.before.as_ref(), filter)?,
            admitted(self.after.as_ref(), filter)?,
        );
        let (kind, entry) = match (before, after) {
            (None, None) => return Ok(None),
            (None, Some(entry)) => (EventType::Added, entry),
            (Some(_), Some(entry)) => (EventType::Modified, entry),
            (Some(entry), None) => (EventType::Deleted, entry),
        };
        Ok(Some(Seen {
            kind,
            entry: entry.clone(),
            revision: self.revision,
        }))
    }

    /// The line of a JSON watch, in the storage version.
    pub fn frame(&self, seen: &Seen) -> Bytes {
        let slot = seen.kind as usize;
        let mut frames = self.frames.lock();
        frames[slot]
            .get_or_insert_with(|| frame(seen.kind, &seen.entry, seen.revision))
            .clone()
    }

    /// Forgets the encoded forms; they are made again should a late watcher ask.
    pub(super) fn forget_frames(&self) {
        *self.frames.lock() = Default::default();
    }
}

fn admitted<'e>(
    entry: Option<&'e Arc<Entry>>,
    filter: &Filter,
) -> Result<Option<&'e Arc<Entry>>, ApiError> {
    match entry {
        Some(entry) => Ok(filter.admits(entry)?.then_some(entry)),
        None => Ok(None),
    }
}

/// Encodes one event in the storage version.
pub fn frame(kind: EventType, entry: &Entry, revision: Revision) -> Bytes {
    let mut out = Vec::with_capacity(entry.value.len() + 80);
    open_frame(&mut out, kind.as_str());
    let splice = |stored: &[u8]| encode::splice(&mut out, stored, revision);
    entry.value.read(splice);
    out.extend_from_slice(b"}\n");
    out.into()
}

/// Begins `{"type":"…","object":`; the object and `}\n` follow.
pub(crate) fn open_frame(out: &mut Vec<u8>, kind: &str) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
}
