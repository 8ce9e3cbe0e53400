//! The store in one file, for a control plane that needs no other process.
//!
//! The true copy is the file, and the log beside it. Reads and watches are answered from memory, which holds only what is durable:
//! a write is first committed, then shown, then answered. One thread owns the file ([`committer`]).

mod committer;
mod database;
mod disk;
mod log;
mod memory;
mod packing;
mod record;
mod retention;
mod snapshot;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch as progress};

use self::committer::{Change, Committed, Committer, Request};
use self::disk::Disk;
use self::memory::{Memory, Scan};
use self::watch::Watcher;
use crate::{
    Expect, KeyValue, Range, RangeRequest, Result, Revision, Store, StoreError, WatchStream,
};

/// Requests that wait for the committer before senders wait in turn.
const QUEUE: usize = 4_096;

/// Keys read under one lock: about 100 us.
const SCAN_STEP: usize = 1_024;

/// How much history to keep.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Revisions younger than this stay readable and watchable.
    pub keep_history: Duration,
    /// ... unless the superseded values together exceed this many bytes,
    pub max_history_bytes: usize,
    /// ... or the events this number.
    pub max_history_events: usize,
    /// How far the database may be behind the log, in bytes: more is less to write, and more to read after
    /// a crash.
    pub checkpoint_bytes: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            keep_history: Duration::from_secs(300),
            max_history_bytes: 64 << 20,
            max_history_events: 250_000,
            checkpoint_bytes: 4 << 20,
        }
    }
}

/// The embedded store. Dropping it finishes the writes that wait and closes the file.
pub struct Embedded {
    memory: Arc<RwLock<Memory>>,
    progress: progress::Receiver<Revision>,
    requests: Option<mpsc::Sender<Request>>,
    committer: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens the file at `path`, or creates it; its folder must exist. The file is locked until the store
    /// is dropped; a log lies beside it, as `<path>.log.*`.
    ///
    /// # Errors
    /// [`Locked`](StoreError::Locked), [`Corrupt`](StoreError::Corrupt), [`Io`](StoreError::Io) or
    /// [`StorageFull`](StoreError::StorageFull).
    pub async fn open(path: &Path, options: EmbeddedOptions) -> Result<Self> {
        let path = path.to_owned();
        let (opened, open) = oneshot::channel();
        let committer = std::thread::Builder::new()
            .name("store-committer".into())
            .spawn(move || {
                let (disk, memory) = match Disk::open(&path, options.checkpoint_bytes) {
                    Ok(parts) => parts,
                    Err(error) => return drop(opened.send(Err(error))),
                };
                let current = memory.current();
                let memory = Arc::new(RwLock::new(memory));
                let (progress, observed) = progress::channel(current);
                let (requests, queue) = mpsc::channel(QUEUE);
                let committer = Committer::new(disk, memory.clone(), progress, options);
                if opened.send(Ok((memory, observed, requests))).is_ok() {
                    // Only for its timer: the thread belongs to the committer alone.
                    match tokio::runtime::Builder::new_current_thread()
                        .enable_time()
                        .build()
                    {
                        Ok(runtime) => runtime.block_on(committer.run(queue)),
                        Err(error) => tracing::error!(%error, "the store cannot start a timer"),
                    }
                }
            })
            .map_err(|source| StoreError::Io {
                doing: "starting the store's thread",
                source: Arc::new(source),
            })?;
        let (memory, progress, requests) = open.await.map_err(|_| closed())??;
        Ok(Self {
            memory,
            progress,
            requests: Some(requests),
            committer: Some(committer),
        })
    }

    /// Writes the present state into a file of its own, while the store goes on; returns its revision. The
    /// file is a store without history: [`restore`](Self::restore) makes one to work with from it.
    ///
    /// # Errors
    /// Also when there is a file of that name.
    pub async fn save_snapshot(&self, to: &Path) -> Result<Revision> {
        let at = self.memory.read().current();
        let mut state = Vec::new();
        let mut after: Option<Arc<str>> = None;
        loop {
            let memory = self.memory.read();
            memory.readable(Some(at))?;
            after = memory.state_at(at, after.as_deref(), SCAN_STEP, &mut state);
            if after.is_none() {
                break;
            }
        }
        // As the file keeps them.
        state.sort_by_key(|write| write.revision);
        let to = to.to_owned();
        blocking(move || snapshot::write(&to, &state, at)).await?;
        Ok(at)
    }

    /// Makes a store at `to` from a snapshot; returns its revision. That is later than the snapshot's, by
    /// `skip`: clients that have seen revisions after the snapshot must not take what is written from now
    /// on for what they know. With a `skip` beyond what was written since, they are told to list again.
    ///
    /// # Errors
    /// Also when there is a file at `to`, and when the snapshot is damaged.
    pub async fn restore(from: &Path, to: &Path, skip: u64) -> Result<Revision> {
        let (from, to) = (from.to_owned(), to.to_owned());
        blocking(move || {
            let (state, revision) = snapshot::read(&from)?;
            let revision = Revision(revision.0 + skip);
            snapshot::write(&to, &state, revision)?;
            Ok(revision)
        })
        .await
    }

    async fn write(&self, key: &str, change: Change, expect: Expect) -> Result<Committed> {
        let (reply, outcome) = oneshot::channel();
        self.request(Request::Write {
            key: Arc::from(key),
            change,
            expect,
            reply,
        })
        .await?;
        outcome.await.map_err(|_| closed())?
    }

    async fn request(&self, request: Request) -> Result<()> {
        let requests = self.requests.as_ref().expect("is taken only by drop");
        requests.send(request).await.map_err(|_| closed())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(committer) = self.committer.take() {
            // Waits for at most the batch in progress. A panic there has been reported by its hook.
            let _ = committer.join();
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Unavailable(error.to_string())),
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store was closed".into())
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<KeyValue>> {
        let memory = self.memory.read();
        let at = memory.readable(at)?;
        Ok(memory.get(key, at))
    }

    async fn range(&self, request: RangeRequest<'_>) -> Result<Range> {
        let at = self.memory.read().readable(request.at)?;
        let mut scan = Scan {
            prefix: Arc::from(request.prefix),
            after: request.start_after.map(Arc::from),
            at,
            limit: request.limit,
            items: Vec::new(),
            remaining: 0,
        };
        while !self.memory.read().scan(&mut scan, SCAN_STEP)? {
            tokio::task::yield_now().await;
        }
        Ok(Range {
            items: scan.items,
            revision: at,
            remaining: scan.remaining,
        })
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision> {
        let committed = self.write(key, Change::Put { value, ttl }, expect).await?;
        Ok(committed.revision)
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<(Revision, KeyValue)> {
        let committed = self.write(key, Change::Delete, expect).await?;
        let prev = committed
            .prev
            .expect("deleting what does not exist is a conflict");
        Ok((committed.revision, prev))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream> {
        let position = self.memory.read().readable(Some(from))?;
        let watcher = Watcher {
            memory: self.memory.clone(),
            progress: self.progress.clone(),
            prefix: Arc::from(prefix),
            position,
        };
        Ok(watcher.into_stream())
    }

    async fn current_revision(&self) -> Result<Revision> {
        Ok(self.memory.read().current())
    }

    async fn oldest_revision(&self) -> Result<Revision> {
        Ok(self.memory.read().compacted())
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn compact(&self, at: Revision) -> Result<()> {
        let (reply, outcome) = oneshot::channel();
        self.request(Request::Compact { at, reply }).await?;
        outcome.await.map_err(|_| closed())?
    }
}
