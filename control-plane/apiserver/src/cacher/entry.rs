//! A cached object: the store's bytes and the little that selectors need without parsing them.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use windlass_api::resource::Resource;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_packed::Packed;
use windlass_store::{KeyValue, Revision};

use super::shallow;
use crate::encode;

/// An object as of one revision. The value is shared with the store, and lacks the resourceVersion.
#[derive(Debug)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Packed,
    pub revision: Revision,
    /// The values of the resource's selectable fields in their order, then the labels' keys and values in turn,
    /// each ended by NUL.
    index: Box<str>,
    /// Where in `index` the labels begin.
    labels: u32,
    /// Where in `key` what follows the resource's prefix begins.
    tail: u32,
}

impl Entry {
    pub fn new(resource: &Resource, kv: KeyValue) -> Self {
        let selectable = resource.strategy.selectable();
        let object = kv.value.read(|stored| shallow::read(stored, selectable));
        let mut index = String::new();
        for name in selectable {
            index.extend([&resource.strategy.field(&object, name), "\0"]);
        }
        let labels = index.len();
        for (key, value) in meta::labels(&object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            index.extend([key, "\0", value, "\0"]);
        }
        let tail = (resource.prefix.len() + 1).min(kv.key.len());
        Self {
            key: kv.key,
            value: kv.value,
            revision: kv.mod_revision,
            index: index.into(),
            labels: offset(labels),
            tail: offset(tail),
        }
    }

    /// The same object in another version.
    pub(crate) fn converted(&self, bytes: Bytes) -> Self {
        Self {
            key: self.key.clone(),
            value: Packed::plain(&bytes),
            revision: self.revision,
            index: self.index.clone(),
            labels: self.labels,
            tail: self.tail,
        }
    }

    /// `namespace/name`, or `name` for cluster-scoped resources.
    pub fn path(&self) -> &str {
        &self.key[self.tail as usize..]
    }

    /// Empty for cluster-scoped resources.
    pub fn namespace(&self) -> &str {
        self.path()
            .split_once('/')
            .map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.path()
            .rsplit_once('/')
            .map_or(self.path(), |(_, name)| name)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        let mut texts = self.index[self.labels as usize..].split('\0');
        while let (Some(found), Some(value)) = (texts.next(), texts.next()) {
            if found == key {
                return Some(value);
            }
        }
        None
    }

    /// The value of the `index`th selectable field.
    pub fn field(&self, index: usize) -> &str {
        let fields = &self.index[..self.labels as usize];
        fields.split('\0').nth(index).unwrap_or_default()
    }

    /// The object in its storage version.
    ///
    /// # Errors
    /// 500 when the stored bytes are no object.
    pub fn decode(&self) -> Result<Value, ApiError> {
        self.value
            .read(|stored| encode::decode(stored, self.revision))
    }
}

fn offset(at: usize) -> u32 {
    u32::try_from(at).expect("an object is smaller than 4 GiB")
}
