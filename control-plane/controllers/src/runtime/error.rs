//! What can go wrong in a reconciliation: the API refused or could not be reached.

use thiserror::Error;

/// An error of one reconciliation; the worker logs it and retries the key with back-off.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// A call to the API server failed.
    #[error("{action}: {source}")]
    Api {
        /// What was being done, to which object.
        action: String,
        /// What the client or the server said.
        source: Box<kube::Error>,
    },
    /// The object cannot be worked on as it is; retrying helps only after it was changed.
    #[error("{0}")]
    Invalid(String),
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Invalid(_) => None,
        }
    }

    /// What the API server said, or else the error: for users, who read it in conditions and events.
    pub(crate) fn words(&self) -> String {
        self.status()
            .map_or_else(|| self.to_string(), |status| status.message.clone())
    }

    fn code(&self) -> u16 {
        self.status().map_or(0, |status| status.code)
    }

    /// The object is not there (any more).
    pub(crate) fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// Somebody else was faster: our view was stale, or the name is taken.
    pub(crate) fn is_conflict(&self) -> bool {
        self.code() == 409
    }

    /// A create was refused because the object exists.
    pub(crate) fn is_already_exists(&self) -> bool {
        self.status()
            .is_some_and(|status| status.reason == "AlreadyExists")
    }

    /// A create was refused because its namespace is being deleted: nothing to retry.
    pub(crate) fn is_namespace_terminating(&self) -> bool {
        self.status().is_some_and(|status| {
            status.code == 403
                && (status.message.contains("is being terminated")
                    || status.details.as_ref().is_some_and(|details| {
                        details
                            .causes
                            .iter()
                            .any(|cause| cause.reason == "NamespaceTerminating")
                    }))
        })
    }
}

/// Adds to a client error what was being done.
pub(crate) trait ResultExt<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ResultExt<T> for kube::Result<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Api {
            action: action(),
            source: Box::new(source),
        })
    }
}
