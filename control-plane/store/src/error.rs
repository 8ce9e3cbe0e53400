//! Why a store operation failed, in the terms that the API server answers with.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::{KeyValue, Revision};

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A write's expectation did not hold. `current` is what the key holds, so that a retry needs no read;
    /// `None`: the key does not exist. HTTP 409, or 404 for a delete of what is not there.
    #[error("the key's present state is not the expected one")]
    Conflict { current: Option<Box<KeyValue>> },

    /// The revision is older than the history that is kept. HTTP 410: the client lists again.
    #[error("revision {requested} has been compacted, the oldest kept is {compacted}")]
    Compacted {
        requested: Revision,
        compacted: Revision,
    },

    /// The revision has not been reached. A client got it from another store, or from this one before it
    /// was restored from an older snapshot.
    #[error("revision {requested} is in the future, the current one is {current}")]
    Future {
        requested: Revision,
        current: Revision,
    },

    /// There is no room for the write; it has not happened. Writes succeed again once there is room, reads
    /// and watches go on meanwhile. HTTP 507.
    #[error(
        "no space left for the store: free some room on its file system, nothing else is needed"
    )]
    StorageFull,

    /// The store cannot be reached or has been closed. Whether a write has happened is unknown.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),

    /// A value cannot be deciphered: the key that it is under is not known (any more).
    #[error("{key} cannot be read: {why}")]
    Unreadable { key: String, why: String },

    /// The file could not be read or written. Whether a write has happened is unknown.
    #[error("{doing} failed: {source}")]
    Io {
        doing: &'static str,
        source: Arc<io::Error>,
    },

    /// Another process has the file open.
    #[error("{} is in use by another process: stop that one first", path.display())]
    Locked { path: PathBuf },

    /// The file is damaged or is not a store. It is left as it is.
    #[error(
        "{} is damaged ({detail}) and was left untouched: restore a snapshot in its place, or move it \
         away to start with an empty store",
        path.display()
    )]
    Corrupt { path: PathBuf, detail: String },

    /// The file was written by a later build.
    #[error(
        "{} has format {found} and this build knows only {known}: use the build that wrote it, or restore a \
         snapshot that was taken before",
        path.display()
    )]
    Newer {
        path: PathBuf,
        found: u64,
        known: u64,
    },
}
