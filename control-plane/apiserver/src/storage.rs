//! The store as the handlers use it: objects in, objects out, errors in API terms.

use bytes::Bytes;
use serde_json::Value;
use windlass_machinery::status::ApiError;
use windlass_store::{KeyValue, Revision, StoreError};

use crate::encode;

/// An object as of one revision, in its storage version, without its resourceVersion in `value`.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub value: Value,
    pub bytes: Bytes,
    pub revision: Revision,
}

impl Stored {
    /// # Errors
    /// 500 when what is stored is no object.
    pub(crate) fn read(kv: &KeyValue) -> Result<Self, ApiError> {
        let bytes = Bytes::from(kv.value.to_vec());
        let value = serde_json::from_slice(&bytes).map_err(|e| {
            ApiError::internal(format!("the stored object {} cannot be read: {e}", kv.key))
        })?;
        Ok(Self {
            value,
            bytes,
            revision: kv.mod_revision,
        })
    }

    /// The object with its resourceVersion; a dry run's creation has none.
    pub(crate) fn versioned(&self) -> Value {
        let mut value = self.value.clone();
        if self.revision != Revision(0) {
            encode::set_version(&mut value, self.revision);
        }
        value
    }
}

/// A failure of the store that no caller has an answer for.
pub(crate) fn store_error(error: StoreError) -> ApiError {
    match &error {
        StoreError::Compacted {
            requested,
            compacted,
        } => ApiError::expired(format!(
            "too old resource version: {requested} ({compacted})"
        )),
        StoreError::Future { requested, current } => ApiError::timeout(format!(
            "Too large resource version: {requested}, current: {current}"
        )),
        StoreError::StorageFull => ApiError::new(507, "StorageError", error.to_string()),
        StoreError::Unavailable(_) => {
            tracing::error!(%error, "the store is unavailable");
            ApiError::service_unavailable(error.to_string())
        }
        _ => {
            tracing::error!(%error, "the store failed");
            ApiError::internal(error)
        }
    }
}
