//! Between etcd's types and the trait's.

use std::sync::Arc;

use etcd_client::{Error, ResponseHeader};
use windlass_packed::Packed;

use crate::{KeyValue, Result, Revision, StoreError};

pub(super) fn key_value(kv: &etcd_client::KeyValue) -> Result<KeyValue> {
    let key = kv.key_str().map_err(|_| {
        StoreError::Unavailable(
            "etcd holds a key that is not UTF-8: another program writes it".into(),
        )
    })?;
    Ok(KeyValue {
        key: Arc::from(key),
        value: Packed::plain(kv.value()),
        create_revision: from_wire(kv.create_revision()),
        mod_revision: from_wire(kv.mod_revision()),
    })
}

pub(super) fn revision(header: Option<&ResponseHeader>) -> Revision {
    from_wire(header.map_or(0, ResponseHeader::revision))
}

pub(super) fn from_wire(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or_default())
}

pub(super) fn wire(revision: Revision) -> Result<i64> {
    i64::try_from(revision.0).map_err(|_| StoreError::Future {
        requested: revision,
        current: Revision(i64::MAX as u64),
    })
}

/// etcd tells these apart only by their texts, which are part of its API (`rpctypes`).
pub(super) fn error(error: Error) -> StoreError {
    let Error::GRpcStatus(status) = &error else {
        return StoreError::Unavailable(format!("etcd: {error}"));
    };
    let text = status.message();
    if text.contains("required revision has been compacted") {
        StoreError::Compacted {
            requested: Revision(0),
            compacted: Revision(0),
        }
    } else if text.contains("required revision is a future revision") {
        StoreError::Future {
            requested: Revision(0),
            current: Revision(0),
        }
    } else if text.contains("database space exceeded") {
        StoreError::StorageFull
    } else {
        StoreError::Unavailable(format!("etcd: {text}"))
    }
}
