//! Object metadata: accessors over a [`Value`], and the rules that hold for every kind.

mod validate;

use serde_json::{Map, Value};

pub use validate::{annotations as validate_annotations, labels as validate_labels};
pub use validate::{standard_finalizer, validate, validate_update};

/// The alphabet of generated names: no vowels and no look-alikes, as upstream chose.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const GENERATED_SUFFIX: usize = 5;
/// A generated name must still be a DNS label.
const GENERATED_MAX: usize = 63;

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get("metadata")
        .and_then(|meta| meta.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn map<'a>(object: &'a Value, field: &str) -> Option<&'a Map<String, Value>> {
    object.get("metadata")?.get(field)?.as_object()
}

/// Empty when absent, like the other texts here.
pub fn name(object: &Value) -> &str {
    text(object, "name")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

/// The prefix that a client asks a name to be made from.
pub fn generate_name_prefix(object: &Value) -> &str {
    text(object, "generateName")
}

pub fn creation_timestamp(object: &Value) -> Option<&str> {
    Some(text(object, "creationTimestamp")).filter(|time| !time.is_empty())
}

pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    Some(text(object, "deletionTimestamp")).filter(|time| !time.is_empty())
}

pub fn is_deleting(object: &Value) -> bool {
    deletion_timestamp(object).is_some()
}

pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    object
        .get("metadata")?
        .get("deletionGracePeriodSeconds")?
        .as_i64()
}

pub fn generation(object: &Value) -> i64 {
    object
        .get("metadata")
        .and_then(|meta| meta.get("generation"))
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    map(object, "labels")
}

pub fn annotations(object: &Value) -> Option<&Map<String, Value>> {
    map(object, "annotations")
}

pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object)?.get(key)?.as_str()
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    list(object, "finalizers").iter().filter_map(Value::as_str)
}

pub fn owner_references(object: &Value) -> &[Value] {
    list(object, "ownerReferences")
}

/// The owner that manages the object.
pub fn controller(object: &Value) -> Option<&Value> {
    owner_references(object)
        .iter()
        .find(|owner| owner["controller"] == true)
}

fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    let list = object
        .get("metadata")
        .and_then(|meta| meta.get(field))
        .and_then(Value::as_array);
    list.map(Vec::as_slice).unwrap_or_default()
}

/// The metadata to write into; made when it is missing. The object must be a JSON object.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let meta = &mut object["metadata"];
    if !meta.is_object() {
        *meta = Value::Object(Map::new());
    }
    meta.as_object_mut().expect("made an object above")
}

/// Sets or, with an empty text, removes a field of metadata.
pub fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    let value = value.into();
    let meta = metadata_mut(object);
    if value.is_null() || value == "" {
        meta.remove(field);
    } else {
        meta.insert(field.to_owned(), value);
    }
}

pub fn remove(object: &mut Value, field: &str) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove(field)
}

pub fn set_name(object: &mut Value, name: &str) {
    set(object, "name", name);
}

pub fn set_namespace(object: &mut Value, namespace: &str) {
    set(object, "namespace", namespace);
}

pub fn set_uid(object: &mut Value, uid: &str) {
    set(object, "uid", uid);
}

pub fn set_resource_version(object: &mut Value, version: &str) {
    set(object, "resourceVersion", version);
}

pub fn set_generation(object: &mut Value, generation: i64) {
    set(object, "generation", generation);
}

pub fn set_creation_timestamp(object: &mut Value, time: &str) {
    set(object, "creationTimestamp", time);
}

/// Sets a label, or removes it with `None`.
pub fn set_label(object: &mut Value, key: &str, value: Option<&str>) {
    set_entry(object, "labels", key, value);
}

/// Sets an annotation, or removes it with `None`.
pub fn set_annotation(object: &mut Value, key: &str, value: Option<&str>) {
    set_entry(object, "annotations", key, value);
}

fn set_entry(object: &mut Value, field: &str, key: &str, value: Option<&str>) {
    let meta = metadata_mut(object);
    let map = meta
        .entry(field)
        .or_insert_with(|| Value::Object(Map::new()));
    if !map.is_object() {
        *map = Value::Object(Map::new());
    }
    let Some(entries) = map.as_object_mut() else {
        return;
    };
    match value {
        Some(value) => {
            entries.insert(key.to_owned(), Value::from(value));
        }
        None => {
            entries.remove(key);
        }
    }
    if entries.is_empty() {
        meta.remove(field);
    }
}

/// `web-` -> `web-x7k2p`; `random` decides the suffix.
pub fn generate_name(base: &str, mut random: u64) -> String {
    let mut end = base.len().min(GENERATED_MAX - GENERATED_SUFFIX);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    for _ in 0..GENERATED_SUFFIX {
        let digits = ALPHABET.len() as u64;
        name.push(char::from(ALPHABET[(random % digits) as usize]));
        random /= digits;
    }
    name
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn accessors_read_and_write_metadata() {
        let mut object = json!({"kind": "Pod"});
        assert_eq!(
            (name(&object), namespace(&object), generation(&object)),
            ("", "", 0)
        );
        set_name(&mut object, "a");
        set_resource_version(&mut object, "7");
        set_label(&mut object, "app", Some("web"));
        set_annotation(&mut object, "x", Some("y"));
        set_annotation(&mut object, "x", None);
        assert_eq!(
            object,
            json!({"kind": "Pod", "metadata": {"name": "a", "resourceVersion": "7", "labels": {"app": "web"}}})
        );
        assert_eq!(label(&object, "app"), Some("web"));
        set_resource_version(&mut object, "");
        assert_eq!(resource_version(&object), "");
        assert!(object["metadata"].get("resourceVersion").is_none());
    }

    #[test]
    fn the_controller_is_the_owner_that_says_so() {
        let object = json!({"metadata": {"ownerReferences": [
            {"uid": "1"}, {"uid": "2", "controller": true},
        ]}});
        assert_eq!(controller(&object).unwrap()["uid"], "2");
    }

    #[test]
    fn generated_names_fit_into_a_label() {
        let name = generate_name(&"a".repeat(100), 12_345_678);
        assert_eq!(name.len(), 63);
        assert!(generate_name("web-", 1).starts_with("web-"));
        assert_ne!(generate_name("web-", 1), generate_name("web-", 2));
    }
}
