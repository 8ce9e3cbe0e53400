//! The file: a redb database with one row per kept write, in revision order.
//!
//! Keyed by revision as etcd's own file is: writes only ever touch the right edge of the tree, history
//! survives a restart (a client's watch resumes across one), and compaction deletes rows. The file is read
//! once, when it is opened; after that it is only written.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::memory::{Compaction, Memory};
use super::record::Write;
use crate::{Result, Revision, StoreError};

const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Raised when an older build could not read what this one writes.
const FORMAT: u64 = 1;

/// After a failed write the file is reopened, which walks all of it; not more often than this.
const REOPEN_INTERVAL: Duration = Duration::from_millis(500);

/// Everything is read from memory: the cache serves only the tree's inner pages while writing.
const CACHE_BYTES: usize = 8 << 20;

pub(super) struct Disk {
    path: PathBuf,
    /// `None` after a failed write: redb refuses to go on, the next write reopens.
    database: Option<Database>,
    /// The last revision that was made durable and reported so.
    committed: Revision,
    failure: Option<Failure>,
}

/// Why the last write failed, and when to try again.
struct Failure {
    error: StoreError,
    retry_at: Instant,
}

impl Disk {
    /// Opens or creates the file and reads it into memory.
    pub(super) fn open(path: &Path) -> Result<(Self, Memory)> {
        let database = open_database(path)?;
        // redb trusts its pages; what a damaged one may make it do includes panics.
        let memory = catch_unwind(AssertUnwindSafe(|| load(path, &database)))
            .unwrap_or_else(|panic| Err(corrupt(path, panic_message(panic.as_ref()))))?;
        let committed = memory.current();
        let disk = Self {
            path: path.to_owned(),
            database: Some(database),
            committed,
            failure: None,
        };
        Ok((disk, memory))
    }

    /// Makes writes and a step of compaction durable, both or neither.
    pub(super) fn commit(
        &mut self,
        writes: &[Write],
        compaction: Option<&Compaction>,
    ) -> Result<()> {
        if let Some(failure) = &self.failure
            && Instant::now() < failure.retry_at
        {
            return Err(failure.error.clone());
        }
        let result = self.database().and_then(|database| {
            catch_unwind(AssertUnwindSafe(|| write(database, writes, compaction)))
                .unwrap_or_else(|panic| Err(redb::Error::Corrupted(panic_message(panic.as_ref()))))
        });
        let Err(error) = result else {
            if let Some(last) = writes.last() {
                self.committed = last.revision;
            }
            self.failure = None;
            return Ok(());
        };
        self.database = None;
        let error = write_error(&self.path, error);
        tracing::error!(%error, path = %self.path.display(), "writing to the store failed");
        // At once, so that what is reported as failed cannot come back after a crash.
        if let Err(error) = self.database() {
            tracing::warn!(%error, "the store's file cannot be reopened yet");
        }
        self.failure = Some(Failure {
            error: error.clone(),
            retry_at: Instant::now() + REOPEN_INTERVAL,
        });
        Err(error)
    }

    /// The database; after a failed write it is opened again, and whatever of that write had become
    /// durable is taken back.
    fn database(&mut self) -> Result<&Database, redb::Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let database = open_raw(&self.path)?;
                roll_back(&database, self.committed)?;
                database
            }
        };
        Ok(self.database.insert(database))
    }
}

fn open_raw(path: &Path) -> Result<Database, DatabaseError> {
    let open = || {
        Database::builder()
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

fn open_database(path: &Path) -> Result<Database> {
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

fn load(path: &Path, database: &Database) -> Result<Memory> {
    let damaged = |error: redb::Error| match error {
        redb::Error::Io(error) => io_error("reading the store's file", error),
        other => corrupt(path, other.to_string()),
    };
    if is_new(database).map_err(damaged)? {
        initialise(database).map_err(|error| write_error(path, error))?;
        return Ok(Memory::default());
    }
    (|| -> Result<Result<Memory, String>, redb::Error> {
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let read_meta = |name| -> Result<u64, redb::Error> {
            Ok(meta
                .get(name)?
                .map(|value| value.value())
                .unwrap_or_default())
        };
        let format = read_meta("format")?;
        if format != FORMAT {
            return Ok(Err(format!(
                "format {format} is not {FORMAT}, which this build writes"
            )));
        }
        let mut memory = Memory::new(Revision(read_meta("compacted")?));
        for row in transaction.open_table(HISTORY)?.iter()? {
            let (revision, record) = row?;
            let revision = Revision(revision.value());
            let loaded =
                Write::decode(revision, record.value()).and_then(|write| memory.load(write));
            if let Err(problem) = loaded {
                return Ok(Err(format!("revision {revision}: {problem}")));
            }
        }
        Ok(Ok(memory))
    })()
    .map_err(damaged)?
    .map_err(|problem| corrupt(path, problem))
}

fn is_new(database: &Database) -> Result<bool, redb::Error> {
    Ok(database.begin_read()?.list_tables()?.next().is_none())
}

fn initialise(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("format", FORMAT)?;
    transaction.open_table(HISTORY)?;
    transaction.commit()?;
    Ok(())
}

fn write(
    database: &Database,
    writes: &[Write],
    compaction: Option<&Compaction>,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut history = transaction.open_table(HISTORY)?;
        let mut record = Vec::new();
        for write in writes {
            write.encode(&mut record);
            history.insert(write.revision.0, record.as_slice())?;
        }
        if let Some(compaction) = compaction {
            for revision in &compaction.removed {
                history.remove(revision.0)?;
            }
            transaction
                .open_table(META)?
                .insert("compacted", compaction.to.0)?;
        }
    }
    // Durability::Immediate is the default: returns after fdatasync.
    transaction.commit()?;
    Ok(())
}

/// Removes what lies after `committed`: writes whose failure was reported although they reached the disk.
fn roll_back(database: &Database, committed: Revision) -> Result<(), redb::Error> {
    let last = {
        let transaction = database.begin_read()?;
        let history = transaction.open_table(HISTORY)?;
        history.last()?.map(|(revision, _)| revision.value())
    };
    let Some(last) = last.filter(|last| *last > committed.0) else {
        return Ok(());
    };
    let transaction = database.begin_write()?;
    {
        let mut history = transaction.open_table(HISTORY)?;
        for revision in committed.0 + 1..=last {
            history.remove(revision)?;
        }
    }
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

fn io_error(doing: &'static str, source: io::Error) -> StoreError {
    StoreError::Io {
        doing,
        source: Arc::new(source),
    }
}

fn corrupt(path: &Path, detail: String) -> StoreError {
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
