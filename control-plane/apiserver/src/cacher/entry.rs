//! A cached object: the store's bytes and the little that selectors need without parsing them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use windlass_api::resource::Resource;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_store::{KeyValue, Revision};

use crate::encode;

/// An object as of one revision. The bytes are shared with the store, and lack the resourceVersion.
#[derive(Debug)]
pub struct Entry {
    pub key: Arc<str>,
    pub bytes: Bytes,
    pub revision: Revision,
    /// Keys and values in turn, each ended by NUL.
    labels: Box<str>,
    /// The values of the resource's selectable fields in their order, each ended by NUL.
    fields: Box<str>,
    /// Where in `key` what follows the resource's prefix begins.
    tail: usize,
}

/// All that is read of an object whose kind has no selectable fields of its own.
#[derive(Default, Deserialize)]
struct Labelled {
    #[serde(default)]
    metadata: Labels,
}

#[derive(Default, Deserialize)]
struct Labels {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

fn flat<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Box<str> {
    let mut text = String::new();
    for (key, value) in pairs {
        text.extend([key, "\0", value, "\0"]);
    }
    text.into()
}

impl Entry {
    pub fn new(resource: &Resource, kv: KeyValue) -> Self {
        let selectable = resource.strategy.selectable();
        let mut fields = String::new();
        let labels = if selectable.is_empty() {
            let read: Labelled = serde_json::from_slice(&kv.value).unwrap_or_default();
            flat(
                read.metadata
                    .labels
                    .iter()
                    .flatten()
                    .map(|(k, v)| (k.as_str(), v.as_str())),
            )
        } else {
            let value: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
            for name in selectable {
                fields.push_str(&resource.strategy.field(&value, name));
                fields.push('\0');
            }
            let labels = meta::labels(&value).into_iter().flatten();
            flat(labels.filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))))
        };
        Self {
            tail: (resource.prefix.len() + 1).min(kv.key.len()),
            key: kv.key,
            bytes: kv.value,
            revision: kv.mod_revision,
            labels,
            fields: fields.into(),
        }
    }

    /// The same object in another version.
    pub(crate) fn converted(&self, bytes: Bytes) -> Self {
        Self {
            key: self.key.clone(),
            bytes,
            revision: self.revision,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            tail: self.tail,
        }
    }

    /// `namespace/name`, or `name` for cluster-scoped resources.
    pub fn path(&self) -> &str {
        &self.key[self.tail..]
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
        let mut texts = self.labels.split('\0');
        while let (Some(found), Some(value)) = (texts.next(), texts.next()) {
            if found == key {
                return Some(value);
            }
        }
        None
    }

    /// The value of the `index`th selectable field.
    pub fn field(&self, index: usize) -> &str {
        self.fields.split('\0').nth(index).unwrap_or_default()
    }

    /// The object in its storage version.
    ///
    /// # Errors
    /// 500 when the stored bytes are no object.
    pub fn decode(&self) -> Result<Value, ApiError> {
        encode::decode(&self.bytes, self.revision)
    }
}
