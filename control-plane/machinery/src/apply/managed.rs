//! `metadata.managedFields`: who owns which fields.

use serde_json::{Map, Value, json};

use super::set::Set;
use crate::{meta, time};

/// How many managers that update (not apply) are kept apart; the oldest share an entry.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

/// One entry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) manager: String,
    pub(crate) operation: Operation,
    pub(crate) api_version: String,
    pub(crate) subresource: String,
    pub(crate) time: String,
    pub(crate) set: Set,
}

impl Entry {
    /// Whether both are the same owner. One that applies may change its version and stays the same.
    pub(crate) fn same_owner(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    fn read(value: &Value) -> Option<Self> {
        let text = |field: &str| {
            value
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let operation = match value.get("operation")?.as_str()? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let api_version = text("apiVersion");
        if api_version.is_empty() || value.get("fieldsType")? != "FieldsV1" {
            return None;
        }
        let set = Set::from_value(value.get("fieldsV1").unwrap_or(&json!({})))?;
        Some(Self {
            manager: text("manager"),
            operation,
            api_version,
            subresource: text("subresource"),
            time: text("time"),
            set,
        })
    }

    fn to_value(&self) -> Value {
        let mut map = Map::new();
        let operation = match self.operation {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        };
        for (key, text) in [
            ("manager", self.manager.as_str()),
            ("operation", operation),
            ("apiVersion", &self.api_version),
            ("time", &self.time),
            ("fieldsType", "FieldsV1"),
            ("subresource", &self.subresource),
        ] {
            if !text.is_empty() {
                map.insert(key.to_owned(), Value::from(text));
            }
        }
        map.insert("fieldsV1".to_owned(), self.set.to_value());
        Value::Object(map)
    }
}

/// The entries of an object; nothing when one of them is unreadable.
pub(crate) fn read(object: &Value) -> Option<Vec<Entry>> {
    match object
        .get("metadata")
        .and_then(|meta| meta.get("managedFields"))
    {
        Some(Value::Array(entries)) => entries.iter().map(Entry::read).collect(),
        None | Some(Value::Null) => Some(Vec::new()),
        Some(_) => None,
    }
}

/// `managedFields: [{}]` asks for all of them to be forgotten.
pub(crate) fn is_reset(object: &Value) -> bool {
    let entries = object
        .get("metadata")
        .and_then(|meta| meta.get("managedFields"))
        .and_then(Value::as_array);
    entries.is_some_and(
        |entries| matches!(entries.as_slice(), [Value::Object(only)] if only.is_empty()),
    )
}

/// Writes the entries in upstream's order; empty ones are left out.
pub(crate) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.set.is_empty());
    merge_ancient(&mut entries);
    entries.sort_by(|a, b| {
        let key = |e: &Entry| {
            (
                e.operation,
                time::parse_seconds(&e.time).unwrap_or(i64::MIN),
            )
        };
        key(a).cmp(&key(b)).then_with(|| {
            (&a.manager, &a.api_version, &a.subresource).cmp(&(
                &b.manager,
                &b.api_version,
                &b.subresource,
            ))
        })
    });
    if entries.is_empty() {
        meta::remove(object, "managedFields");
    } else {
        let entries: Vec<Value> = entries.iter().map(Entry::to_value).collect();
        meta::set(object, "managedFields", entries);
    }
}

/// Keeps the number of entries bounded: the oldest updaters of each version are merged.
fn merge_ancient(entries: &mut Vec<Entry>) {
    let mut updaters = entries
        .iter()
        .filter(|entry| entry.operation == Operation::Update)
        .count();
    if updaters <= MAX_UPDATERS {
        return;
    }
    entries.sort_by(|a, b| a.time.cmp(&b.time));
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    for mut entry in entries.drain(..) {
        if entry.operation == Operation::Update && updaters > MAX_UPDATERS {
            let bucket = kept.iter_mut().find(|old| {
                old.operation == Operation::Update && old.api_version == entry.api_version
            });
            if let Some(bucket) = bucket {
                ANCIENT.clone_into(&mut bucket.manager);
                bucket.subresource.clear();
                bucket.time = std::mem::take(&mut entry.time);
                bucket.set.union(entry.set);
                updaters -= 1;
                continue;
            }
        }
        kept.push(entry);
    }
    *entries = kept;
}
