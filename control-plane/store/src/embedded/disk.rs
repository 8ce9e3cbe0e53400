//! What is on the disk: the log, which makes writes durable, and behind it the database, which keeps them.
//!
//! A thread of its own brings the database up to date, one large transaction for every few megabytes of
//! log, and then removes that part of the log. Nobody waits for it. When it fails, for lack of room for
//! instance, the log grows meanwhile and the step is repeated; when the process ends, the log has it all.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::database::{Database, Step, corrupt, io_error};
use super::log::{Log, LogError};
use super::memory::{Compaction, Memory};
use super::record::Write;
use crate::{Result, StoreError};

const RETRY_INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct Disk {
    log: Log,
    /// In the log, and not yet on its way into the database.
    pending: Step,
    /// When `pending` is worth a transaction.
    step_bytes: usize,
    jobs: Option<mpsc::Sender<Job>>,
    closing: Option<mpsc::Sender<()>>,
    busy: Arc<AtomicBool>,
    checkpointer: Option<JoinHandle<()>>,
}

/// A step, and the segments of the log that are not needed after it.
struct Job {
    step: Step,
    segments: Vec<PathBuf>,
}

impl Disk {
    /// Opens or creates the store and reads it into memory. `step_bytes` is how much of the log may wait.
    pub(super) fn open(path: &Path, step_bytes: usize) -> Result<(Self, Memory)> {
        // First, since it holds the lock.
        let (database, mut memory) = Database::open(path)?;
        let mut pending = Step::default();
        let log = Log::open(path, |write| {
            // Already in the database: the process ended before it could remove the segment.
            if write.revision <= memory.current() {
                return Ok(());
            }
            pending.add(std::slice::from_ref(&write), None);
            let write = memory.packing().pack(write);
            memory.load(write)
        });
        let log = log.map_err(|error| match error {
            LogError::Io(error) => io_error("reading the store's log", error),
            LogError::Damaged(detail) => corrupt(path, detail),
        })?;
        let (jobs, queue) = mpsc::channel();
        let (closing, closed) = mpsc::channel();
        let busy = Arc::new(AtomicBool::new(false));
        let checkpointer = std::thread::Builder::new()
            .name("store-checkpoint".into())
            .spawn({
                let busy = busy.clone();
                move || checkpoint(database, &queue, &closed, &busy)
            })
            .map_err(|error| io_error("starting the store's thread", error))?;
        let disk = Self {
            log,
            pending,
            step_bytes,
            jobs: Some(jobs),
            closing: Some(closing),
            busy,
            checkpointer: Some(checkpointer),
        };
        Ok((disk, memory))
    }

    /// Makes writes durable, all of them or none. A step of compaction becomes durable later: if it is
    /// lost, only more history is kept.
    pub(super) fn commit(
        &mut self,
        writes: &[Write],
        compaction: Option<&Compaction>,
    ) -> Result<()> {
        if let Err(error) = self.log.append(writes) {
            let error = append_error(error);
            tracing::error!(%error, "writing to the store failed");
            return Err(error);
        }
        self.pending.add(writes, compaction);
        if self.pending.bytes() >= self.step_bytes && !self.busy.load(Ordering::Acquire) {
            self.checkpoint();
        }
        Ok(())
    }

    fn checkpoint(&mut self) {
        let segments = match self.log.rotate() {
            Ok(segments) => segments,
            Err(error) => {
                tracing::warn!(%error, "the store's log cannot be ended yet");
                return;
            }
        };
        let step = std::mem::take(&mut self.pending);
        self.busy.store(true, Ordering::Release);
        if let Some(jobs) = &self.jobs {
            // The thread ends only after this sender.
            let _ = jobs.send(Job { step, segments });
        }
    }
}

impl Drop for Disk {
    /// Leaves the database complete and no log, if the disk allows.
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            self.checkpoint();
        }
        self.jobs = None;
        self.closing = None;
        if let Some(checkpointer) = self.checkpointer.take() {
            // A panic there has been reported by its hook, and the log has what it did not do.
            let _ = checkpointer.join();
        }
    }
}

fn checkpoint(
    mut database: Database,
    jobs: &mpsc::Receiver<Job>,
    closed: &mpsc::Receiver<()>,
    busy: &AtomicBool,
) {
    for job in jobs {
        while let Err(error) = database.apply(&job.step) {
            tracing::error!(%error, "the store's database cannot be written, its log grows meanwhile");
            // Closing the store does not wait for a disk that is full.
            if closed.recv_timeout(RETRY_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
        for segment in &job.segments {
            if let Err(error) = std::fs::remove_file(segment) {
                tracing::warn!(%error, path = %segment.display(), "a part of the log cannot be removed");
            }
        }
        busy.store(false, Ordering::Release);
    }
}

fn append_error(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreError::StorageFull
        }
        _ => io_error("writing the store's log", error),
    }
}
