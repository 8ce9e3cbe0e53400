//! Why a volume is not there yet.

use std::io;
use std::path::{Path, PathBuf};

/// A volume could not be set up or taken down. Most of these pass when the user
/// creates what is missing, so callers retry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A referenced object does not exist and is not optional.
    #[error("{kind} {name:?} not found")]
    Missing {
        /// "configmap" or "secret".
        kind: &'static str,
        /// Its name in the pod's namespace.
        name: String,
    },
    /// A referenced object exists without the key.
    #[error("references non-existent {kind} key: {key}")]
    MissingKey {
        /// "config" or "secret".
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// The API server could not be asked.
    #[error("{0}")]
    Cluster(String),
    /// The volume's source is none that this agent knows.
    #[error("volume {name:?} has a source that this agent does not support")]
    Unsupported {
        /// The volume.
        name: String,
    },
    /// A path that would leave the volume.
    #[error("path {path:?} is not a plain relative path")]
    Path {
        /// As the user gave it.
        path: String,
    },
    /// A hostPath that is not what its type says.
    #[error("hostPath type check failed: {} is not a {expected}", path.display())]
    HostPathType {
        /// On the host.
        path: PathBuf,
        /// "directory", "file", ...
        expected: &'static str,
    },
    /// A CSI driver refused, or did not answer.
    #[error("{message}")]
    Driver {
        /// In its own words.
        message: String,
        /// It did nothing, and will not.
        is_final: bool,
    },
    /// A field or quantity that cannot be evaluated.
    #[error("{0}")]
    Field(String),
    /// The node's file system refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// "create", "mount", ...
        doing: &'static str,
        /// Which path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Says what was being done to which path, when the kernel refuses it.
pub(crate) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        doing,
        path,
        source,
    }
}
