//! The trait that every store implements.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{Expect, KeyValue, Range, Result, Revision, WatchBatch};

/// Ends after its first `Err`: [`Compacted`](crate::StoreError::Compacted) when the reader was too slow
/// for the kept history, [`Unavailable`](crate::StoreError::Unavailable) when the store was closed or lost.
pub type WatchStream = BoxStream<'static, Result<WatchBatch>>;

/// Which keys to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct RangeRequest<'a> {
    /// Keys that begin with this. End it with `/` unless a partial segment is meant.
    pub prefix: &'a str,
    /// Only keys after this one, in byte order.
    pub start_after: Option<&'a str>,
    /// At most this many; 0 for all.
    pub limit: usize,
    /// The store as it was at this revision; `None` for now.
    pub at: Option<Revision>,
}

/// A revisioned key-value store with etcd's semantics.
///
/// Writes are linearizable and durable when they return. A read sees every write that returned before it
/// began, in any process that uses the same store.
///
/// Differences from etcd's own API, chosen because the API server needs no more: one key per write, expiry
/// as a duration on the put instead of a lease, a watch in batches that carry their progress, and the
/// conflicting value in the error of a failed compare.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one key, now or as it was at `at`.
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<KeyValue>>;

    /// Reads keys in byte order, all at one revision.
    async fn range(&self, request: RangeRequest<'_>) -> Result<Range>;

    /// Writes a key and returns the write's revision. With a `ttl` the key is deleted that long after the
    /// write, unless written again before: a later put without `ttl` makes it stay.
    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision>;

    /// Deletes a key; returns the deletion's revision and what was deleted. A key that does not exist is a
    /// conflict with `current: None`, whatever was expected.
    async fn delete(&self, key: &str, expect: Expect) -> Result<(Revision, KeyValue)>;

    /// Every event under `prefix` after `from`, in order, each exactly once, then those to come. Dropping
    /// the stream ends the watch. A slow reader costs no memory: it falls behind, and is told
    /// [`Compacted`](crate::StoreError::Compacted) once what it has not read is gone.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream>;

    /// The revision of the last write. Linearizable: no write that returned before the call is missing.
    async fn current_revision(&self) -> Result<Revision>;

    /// The earliest revision that can still be read and watched from.
    async fn oldest_revision(&self) -> Result<Revision>;

    /// Whether other processes may write it too: what a caller remembers of it may be out of date.
    fn is_shared(&self) -> bool;

    /// Whether the value that a key got at `at` is better written again although it is unchanged: a store that
    /// enciphers wants its present key used.
    fn is_stale(&self, _key: &str, _at: Revision) -> bool {
        false
    }

    /// Forgets the history before `at`: reads and watches from earlier revisions fail from now on. The
    /// embedded store also does so by itself (see [`EmbeddedOptions`](crate::EmbeddedOptions)).
    async fn compact(&self, at: Revision) -> Result<()>;
}
