//! The store in one file, for a control plane that needs no other process.

use std::path::Path;
use std::time::Duration;

/// How much history to keep.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Revisions younger than this stay readable and watchable.
    pub keep_history: Duration,
    /// ... unless the superseded values together exceed this many bytes,
    pub max_history_bytes: usize,
    /// ... or the events this number.
    pub max_history_events: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            keep_history: Duration::from_secs(300),
            max_history_bytes: 64 << 20,
            max_history_events: 250_000,
        }
    }
}

/// The embedded store.
pub struct Embedded {}

impl Embedded {
    /// Opens the file, or creates it.
    pub async fn open(_path: &Path, _options: EmbeddedOptions) -> crate::Result<Self> {
        Err(crate::StoreError::Unavailable("not yet available".into()))
    }
}
