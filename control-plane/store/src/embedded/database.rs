//! The database: redb with one row for each kept write, in revision order.
//!
//! Keyed by revision as etcd's own file is: writes only ever touch the right edge of the tree, history
//! survives a restart (a client's watch resumes across one), and compaction deletes rows. It is read once,
//! when the store is opened, and then written in large steps from what the log has made durable before. A
//! step repeated is the same step, so a failed one is simply done again.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use redb::{DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::memory::{Compaction, Memory};
use super::record::Write;
use crate::{Result, Revision, StoreError};

const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Raised when an older build could not read what this one writes: 2 has a log beside it.
const FORMAT: u64 = 2;
const OLDEST_FORMAT: u64 = 1;

/// Everything is read from memory: the cache serves only the tree's inner pages while writing.
const CACHE_BYTES: usize = 8 << 20;

/// Rows go from the thread that reads to the one that packs by so many at once: waking a thread for each row costs
/// a fifth of a start.
const ROWS_AT_ONCE: usize = 256;
/// How many of those may wait.
const BATCHES_WAITING: usize = 4;

pub(super) struct Database {
    path: PathBuf,
    /// `None` after a failed write: redb refuses to go on, the next one opens it again.
    redb: Option<redb::Database>,
}

/// What the database has not got yet.
#[derive(Default)]
pub(super) struct Step {
    writes: Vec<Write>,
    removed: HashSet<Revision>,
    compacted: Option<Revision>,
    bytes: usize,
}

impl Step {
    pub(super) fn add(&mut self, writes: &[Write], compaction: Option<&Compaction>) {
        for write in writes {
            let value = write.put.as_ref().map_or(0, |put| put.value.len());
            self.bytes += write.key.len() + value + 64;
        }
        self.writes.extend_from_slice(writes);
        if let Some(compaction) = compaction {
            self.bytes += compaction.removed.len() * 64;
            self.removed.extend(&compaction.removed);
            self.compacted = Some(compaction.to);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.compacted.is_none()
    }

    /// Roughly what it takes in memory and in the log.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Database {
    /// Opens or creates the file, locks it, and reads it into memory.
    pub(super) fn open(path: &Path) -> Result<(Self, Memory)> {
        let redb = open_database(path)?;
        // redb trusts its pages; what a damaged one may make it do includes panics.
        let memory = catch_unwind(AssertUnwindSafe(|| load(path, &redb)))
            .unwrap_or_else(|panic| Err(corrupt(path, panic_message(panic.as_ref()))))?;
        Ok((
            Self {
                path: path.to_owned(),
                redb: Some(redb),
            },
            memory,
        ))
    }

    /// Makes a step durable, all of it or nothing.
    pub(super) fn apply(&mut self, step: &Step) -> Result<()> {
        let redb = match self.redb.take() {
            Some(redb) => redb,
            None => open_database(&self.path)?,
        };
        let result = catch_unwind(AssertUnwindSafe(|| apply(&redb, step)))
            .unwrap_or_else(|panic| Err(redb::Error::Corrupted(panic_message(panic.as_ref()))));
        match result {
            Ok(()) => {
                self.redb = Some(redb);
                Ok(())
            }
            Err(error) => Err(write_error(&self.path, error)),
        }
    }
}

fn open_raw(path: &Path) -> Result<redb::Database, DatabaseError> {
    // Made before redb would, for its mode: Secrets will be in it. What cannot be made, redb reports.
    let _ = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let open = || {
        redb::Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_repair_callback(|session| {
                let progress = session.progress();
                tracing::info!(progress, "checking the store's file after a crash");
            })
            .create(path)
    };
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| {
        let detail = panic_message(panic.as_ref());
        Err(DatabaseError::Storage(redb::StorageError::Corrupted(
            detail,
        )))
    })
}

fn open_database(path: &Path) -> Result<redb::Database> {
    open_raw(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::Locked {
            path: path.to_owned(),
        },
        // redb tells a file that is none of its own by these two.
        DatabaseError::Storage(redb::StorageError::Io(error))
            if !matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            io_error("opening the store's file", error)
        }
        other => corrupt(path, other.to_string()),
    })
}

fn load(path: &Path, database: &redb::Database) -> Result<Memory> {
    let damaged = |error: redb::Error| match error {
        redb::Error::Io(error) => io_error("reading the store's file", error),
        other => corrupt(path, other.to_string()),
    };
    if is_new(database).map_err(damaged)? {
        initialise(database).map_err(|error| write_error(path, error))?;
        return Ok(Memory::default());
    }
    match read_format(database).map_err(damaged)? {
        FORMAT => {}
        // Before anything is written that the build that knows only this one would not find.
        OLDEST_FORMAT..FORMAT => {
            apply(database, &Step::default()).map_err(|error| write_error(path, error))?;
        }
        0 => return Err(corrupt(path, "it says no format".into())),
        found => {
            return Err(StoreError::Newer {
                path: path.to_owned(),
                found,
                known: FORMAT,
            });
        }
    }
    read_history(database)
        .map_err(damaged)?
        .map_err(|problem| corrupt(path, problem))
}

fn read_format(database: &redb::Database) -> Result<u64, redb::Error> {
    let meta = database.begin_read()?.open_table(META)?;
    Ok(meta
        .get("format")?
        .map(|format| format.value())
        .unwrap_or_default())
}

/// The inner error says what of the content contradicts itself.
fn read_history(database: &redb::Database) -> Result<Result<Memory, String>, redb::Error> {
    let transaction = database.begin_read()?;
    let compacted = transaction.open_table(META)?.get("compacted")?;
    let mut memory = Memory::new(Revision(
        compacted.map(|row| row.value()).unwrap_or_default(),
    ));
    let packing = memory.packing().clone();
    let history = transaction.open_table(HISTORY)?;
    let (rows, read) = sync_channel(BATCHES_WAITING);
    // One thread reads and checks while this one packs and builds the memory.
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || -> Result<(), redb::Error> {
            let mut batch = Vec::with_capacity(ROWS_AT_ONCE);
            for row in history.iter()? {
                let (revision, record) = row?;
                let revision = Revision(revision.value());
                let write = Write::decode(revision, record.value()).map(Write::into_owned);
                batch.push((revision, write));
                if batch.len() == ROWS_AT_ONCE {
                    let full = std::mem::replace(&mut batch, Vec::with_capacity(ROWS_AT_ONCE));
                    if rows.send(full).is_err() {
                        return Ok(());
                    }
                }
            }
            // Nobody waits for it where the other thread has given up.
            let _ = rows.send(batch);
            Ok(())
        });
        let mut outcome = Ok(());
        for (revision, write) in read.into_iter().flatten() {
            outcome = write
                .and_then(|write| memory.load(packing.pack(write)))
                .map_err(|problem| format!("revision {revision}: {problem}"));
            if outcome.is_err() {
                break;
            }
        }
        // A panic goes on in this thread, whose caller expects it.
        reader.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok(outcome.map(|()| memory))
    })
}

fn is_new(database: &redb::Database) -> Result<bool, redb::Error> {
    Ok(database.begin_read()?.list_tables()?.next().is_none())
}

fn initialise(database: &redb::Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("format", FORMAT)?;
    transaction.open_table(HISTORY)?;
    transaction.commit()?;
    Ok(())
}

fn apply(database: &redb::Database, step: &Step) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut history = transaction.open_table(HISTORY)?;
        let mut record = Vec::new();
        for write in &step.writes {
            // Written and compacted between two steps: it has never been there and need not be.
            if !step.removed.contains(&write.revision) {
                write.encode(&mut record);
                history.insert(write.revision.0, record.as_slice())?;
            }
        }
        for revision in &step.removed {
            history.remove(revision.0)?;
        }
        let mut meta = transaction.open_table(META)?;
        if let Some(compacted) = step.compacted {
            meta.insert("compacted", compacted.0)?;
        }
        if meta
            .get("format")?
            .is_none_or(|format| format.value() != FORMAT)
        {
            meta.insert("format", FORMAT)?;
        }
    }
    // Durability::Immediate is the default: returns after fdatasync.
    transaction.commit()?;
    Ok(())
}

fn write_error(path: &Path, error: redb::Error) -> StoreError {
    match error {
        redb::Error::Io(error) => match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => StoreError::StorageFull,
            _ => io_error("writing the store's file", error),
        },
        other => corrupt(path, other.to_string()),
    }
}

pub(super) fn io_error(doing: &'static str, source: io::Error) -> StoreError {
    StoreError::Io {
        doing,
        source: Arc::new(source),
    }
}

pub(super) fn corrupt(path: &Path, detail: String) -> StoreError {
    StoreError::Corrupt {
        path: path.to_owned(),
        detail,
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("the database panicked").to_owned()
}
