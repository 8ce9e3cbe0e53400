//! The one thread that writes: it gathers what waits, makes it durable in one transaction, shows it to the
//! readers and then answers. While one fdatasync runs, the next batch gathers by itself; no timer delays a
//! lone write.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch};
use windlass_packed::Packed;

use super::EmbeddedOptions;
use super::disk::Disk;
use super::memory::{Compaction, Memory};
use super::packing::Packing;
use super::record::{Put, Write};
use super::retention::Retention;
use crate::{Expect, KeyValue, Result, Revision, StoreError};

/// Bounds a transaction, and with it how long the first of many waiting writers waits.
const MAX_BATCH: usize = 512;

/// Writes whose history one transaction removes, beside what it writes.
const COMPACTION_STEP: usize = 2_000;

/// How often the age of the history is looked at when nothing else happens.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(10);

/// How soon expiry and compaction try again after the disk refused; a request tries at once.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

pub(super) enum Request {
    Write {
        key: Arc<str>,
        change: Change,
        expect: Expect,
        reply: oneshot::Sender<Result<Committed>>,
    },
    Compact {
        at: Revision,
        reply: oneshot::Sender<Result<()>>,
    },
}

pub(super) enum Change {
    Put { value: Bytes, ttl: Option<Duration> },
    Delete,
}

pub(super) struct Committed {
    pub(super) revision: Revision,
    pub(super) prev: Option<KeyValue>,
}

pub(super) struct Committer {
    disk: Disk,
    memory: Arc<RwLock<Memory>>,
    packing: Arc<Packing>,
    /// What is durable and readable; its end tells watchers that the store is closed.
    progress: watch::Sender<Revision>,
    expiries: BinaryHeap<Reverse<(u64, Arc<str>, Revision)>>,
    retention: Retention,
    /// Callers of `compact` who wait until history begins at their revision.
    compactions: Vec<(Revision, oneshot::Sender<Result<()>>)>,
    /// The last commit failed.
    failing: bool,
}

/// Writes that have passed their expectation and got a revision, in a batch that is not durable yet.
#[derive(Default)]
struct Batch {
    writes: Vec<Write>,
    /// Index of a key's last write in `writes`.
    last: HashMap<Arc<str>, usize>,
    replies: Vec<(oneshot::Sender<Result<Committed>>, Result<Committed>)>,
}

impl Committer {
    pub(super) fn new(
        disk: Disk,
        memory: Arc<RwLock<Memory>>,
        progress: watch::Sender<Revision>,
        options: EmbeddedOptions,
    ) -> Self {
        let (expiries, packing) = {
            let memory = memory.read();
            let expiries = memory.expiries().map(Reverse).collect();
            (expiries, memory.packing().clone())
        };
        let retention = Retention::new(options, *progress.borrow(), Instant::now());
        Self {
            disk,
            memory,
            packing,
            progress,
            expiries,
            retention,
            compactions: Vec::new(),
            failing: false,
        }
    }

    /// Runs until every sender is gone. Blocks the thread it runs on while it writes.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut waiting = Vec::with_capacity(MAX_BATCH);
        loop {
            let idle = self.idle_time();
            match tokio::time::timeout(idle, requests.recv_many(&mut waiting, MAX_BATCH)).await {
                Ok(0) => return,
                Ok(_) | Err(_) => self.commit(waiting.drain(..)),
            }
        }
    }

    /// How long there is nothing to do unless a request comes.
    fn idle_time(&self) -> Duration {
        if self.failing {
            return RETRY_INTERVAL;
        }
        if self.compaction_target() > self.memory.read().compacted() {
            return Duration::ZERO;
        }
        let next_expiry = self
            .expiries
            .peek()
            .map(|Reverse((at, ..))| Duration::from_millis(at.saturating_sub(unix_milliseconds())));
        next_expiry.map_or(HOUSEKEEPING_INTERVAL, |next| {
            next.min(HOUSEKEEPING_INTERVAL)
        })
    }

    fn commit(&mut self, requests: impl Iterator<Item = Request>) {
        self.failing = false;
        let mut batch = Batch::default();
        let expired = self.take_expired();
        {
            let memory = self.memory.read();
            for request in requests {
                match request {
                    Request::Write {
                        key,
                        change,
                        expect,
                        reply,
                    } => {
                        let outcome = batch.stage(&memory, key, change, expect);
                        batch.replies.push((reply, outcome));
                    }
                    Request::Compact { at, reply } => match memory.readable(Some(at)) {
                        Ok(_) => self.compactions.push((at, reply)),
                        Err(StoreError::Compacted { .. }) => answer(reply, Ok(())),
                        Err(error) => answer(reply, Err(error)),
                    },
                }
            }
            for (key, revision) in expired {
                // A conflict means that the key was written again since, and perhaps lives on.
                let _ = batch.stage(&memory, key, Change::Delete, Expect::ModRevision(revision));
            }
        }
        let compaction = self.plan_compaction();
        if !batch.writes.is_empty() || compaction.is_some() {
            let result = self.disk.commit(&batch.writes, compaction.as_ref());
            self.failing = result.is_err();
            if let Err(error) = result {
                return self.fail(batch, &error);
            }
            self.publish(std::mem::take(&mut batch.writes), compaction.as_ref());
        }
        for (reply, outcome) in batch.replies {
            answer(reply, outcome);
        }
        // After the answers: whoever wrote waits for one thing, and watchers share the processors with it.
        self.wake_watchers();
        let compacted = self.memory.read().compacted();
        for (_, reply) in self.compactions.extract_if(.., |(at, _)| *at <= compacted) {
            answer(reply, Ok(()));
        }
    }

    /// Shows a durable batch to readers.
    fn publish(&mut self, writes: Vec<Write>, compaction: Option<&Compaction>) {
        for write in &writes {
            if let Some(expires_at) = write.put.as_ref().and_then(|put| put.expires_at) {
                let entry = (expires_at, write.key.clone(), write.revision);
                self.expiries.push(Reverse(entry));
            }
        }
        let pack = |write| self.packing.pack(write);
        let writes: Vec<_> = writes.into_iter().map(pack).collect();
        let current = {
            let mut memory = self.memory.write();
            for write in writes {
                memory.apply(write);
            }
            if let Some(compaction) = compaction {
                memory.apply_compaction(compaction);
            }
            memory.current()
        };
        self.retention.observe(current, Instant::now());
    }

    fn wake_watchers(&self) {
        let current = self.memory.read().current();
        self.progress.send_if_modified(|progress| {
            let advanced = *progress < current;
            *progress = current;
            advanced
        });
    }

    /// Nothing of the batch has happened: everyone in it is told, even those whose expectation failed,
    /// since it may have failed against a write of this batch.
    fn fail(&mut self, batch: Batch, error: &StoreError) {
        for (reply, _) in batch.replies {
            answer(reply, Err(error.clone()));
        }
        for (_, reply) in self.compactions.drain(..) {
            answer(reply, Err(error.clone()));
        }
        for write in batch.writes.iter().filter(|write| write.put.is_none()) {
            // Expired keys of the batch are still there: look at them again when writing works.
            if let Some(kv) = self.memory.read().latest(&write.key) {
                let later = unix_milliseconds() + 1_000;
                self.expiries
                    .push(Reverse((later, write.key.clone(), kv.mod_revision)));
            }
        }
    }

    /// Keys whose time has come, with the write that gave them that time.
    fn take_expired(&mut self) -> Vec<(Arc<str>, Revision)> {
        let now = unix_milliseconds();
        let mut expired = Vec::new();
        while expired.len() < MAX_BATCH
            && self
                .expiries
                .peek()
                .is_some_and(|Reverse((at, ..))| *at <= now)
            && let Some(Reverse((_, key, revision))) = self.expiries.pop()
        {
            expired.push((key, revision));
        }
        expired
    }

    fn compaction_target(&self) -> Revision {
        let asked_for = self
            .compactions
            .iter()
            .map(|(at, _)| *at)
            .max()
            .unwrap_or_default();
        let memory = self.memory.read();
        asked_for.max(self.retention.begin(&memory, Instant::now()))
    }

    fn plan_compaction(&self) -> Option<Compaction> {
        let target = self.compaction_target();
        self.memory.read().plan_compaction(target, COMPACTION_STEP)
    }
}

impl Batch {
    /// Checks the expectation against the batch so far and the memory below it, and adds the write.
    fn stage(
        &mut self,
        memory: &Memory,
        key: Arc<str>,
        change: Change,
        expect: Expect,
    ) -> Result<Committed> {
        let prev = self.latest(memory, &key);
        let met = match expect {
            Expect::Any => true,
            Expect::Absent => prev.is_none(),
            Expect::ModRevision(revision) => {
                prev.as_ref().is_some_and(|kv| kv.mod_revision == revision)
            }
        };
        let possible = prev.is_some() || matches!(change, Change::Put { .. });
        if !met || !possible {
            return Err(StoreError::Conflict {
                current: prev.map(Box::new),
            });
        }
        let revision = Revision(memory.current().0 + self.writes.len() as u64).next();
        let put = match change {
            Change::Delete => None,
            Change::Put { value, ttl } => Some(Put {
                value,
                create_revision: prev.as_ref().map_or(revision, |kv| kv.create_revision),
                expires_at: ttl.map(expiry),
            }),
        };
        self.last.insert(key.clone(), self.writes.len());
        self.writes.push(Write { revision, key, put });
        Ok(Committed { revision, prev })
    }

    fn latest(&self, memory: &Memory, key: &Arc<str>) -> Option<KeyValue> {
        let Some(index) = self.last.get(key) else {
            return memory.latest(key);
        };
        let write = &self.writes[*index];
        let put = write.put.as_ref()?;
        Some(KeyValue {
            key: key.clone(),
            value: Packed::plain(&put.value),
            create_revision: put.create_revision,
            mod_revision: write.revision,
        })
    }
}

/// The caller may have gone away; what it asked for has happened all the same.
fn answer<T>(reply: oneshot::Sender<Result<T>>, outcome: Result<T>) {
    let _ = reply.send(outcome);
}

fn expiry(ttl: Duration) -> u64 {
    unix_milliseconds().saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}

/// Wall-clock time, since an expiry must survive a restart of the machine.
fn unix_milliseconds() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
