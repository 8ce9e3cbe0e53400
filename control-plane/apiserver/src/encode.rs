//! The bytes of an object: written once, spliced with its resourceVersion whenever they are sent.
//!
//! An object is stored without `metadata.resourceVersion`, since its revision is only known once it is written.
//! The canonical order `kind`, `apiVersion`, `metadata`, then the rest puts `"metadata":{` near the start, so
//! that the version can be spliced in without parsing, and the cache can share the store's bytes.

use bytes::Bytes;
use serde_json::{Map, Value};
use windlass_machinery::status::ApiError;
use windlass_store::Revision;

const METADATA: &[u8] = b"\"metadata\":{";

/// Encodes an object in canonical order. For storage the caller has removed the resourceVersion.
pub(crate) fn object(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write_object(&mut out, value);
    out
}

/// Like [`object`], appending.
pub(crate) fn write_object(out: &mut Vec<u8>, value: &Value) {
    let Some(map) = value.as_object() else {
        return write_value(out, value);
    };
    if value["kind"] == "Status" && value["apiVersion"] == "v1" {
        return write_status(out, map);
    }
    if value["kind"] == "APIResourceList" {
        return write_resources(out, map);
    }
    out.push(b'{');
    write_entries(out, map, &HEAD);
    out.push(b'}');
}

/// What comes first in every object.
const HEAD: [&str; 3] = ["kind", "apiVersion", "metadata"];

/// The entries of `first`, in that order, then the others.
fn write_entries(out: &mut Vec<u8>, map: &Map<String, Value>, first: &[&str]) {
    for key in first {
        if let Some(value) = map.get(*key) {
            write_entry(out, key, value);
        }
    }
    for (key, value) in map {
        if !first.contains(&key.as_str()) {
            write_entry(out, key, value);
        }
    }
}

/// A `Status`, in the order of upstream's structs: clients print it as it comes, and their users compare what is printed.
fn write_status(out: &mut Vec<u8>, status: &Map<String, Value>) {
    out.push(b'{');
    for key in HEAD.iter().chain(&["status", "message", "reason"]) {
        if let Some(value) = status.get(*key) {
            write_entry(out, key, value);
        }
    }
    if let Some(details) = status.get("details").and_then(Value::as_object) {
        out.extend_from_slice(b",\"details\":{");
        for key in ["name", "group", "kind", "uid"] {
            if let Some(value) = details.get(key) {
                write_entry(out, key, value);
            }
        }
        if let Some(causes) = details.get("causes").and_then(Value::as_array) {
            if out.last() != Some(&b'{') {
                out.push(b',');
            }
            out.extend_from_slice(b"\"causes\":[");
            for (index, cause) in causes.iter().enumerate() {
                out.extend_from_slice(if index == 0 { b"{" } else { b",{" });
                if let Some(cause) = cause.as_object() {
                    write_entries(out, cause, &["reason", "message", "field"]);
                }
                out.push(b'}');
            }
            out.push(b']');
        }
        if let Some(value) = details.get("retryAfterSeconds") {
            write_entry(out, "retryAfterSeconds", value);
        }
        out.push(b'}');
    }
    if let Some(code) = status.get("code") {
        write_entry(out, "code", code);
    }
    out.push(b'}');
}

/// An `APIResourceList`, each resource in the order of upstream's struct: scripts look for pieces of its text.
fn write_resources(out: &mut Vec<u8>, list: &Map<String, Value>) {
    const ORDER: [&str; 10] = [
        "name",
        "singularName",
        "namespaced",
        "group",
        "version",
        "kind",
        "verbs",
        "shortNames",
        "categories",
        "storageVersionHash",
    ];
    out.push(b'{');
    for key in ["kind", "apiVersion", "groupVersion"] {
        if let Some(value) = list.get(key) {
            write_entry(out, key, value);
        }
    }
    out.extend_from_slice(b",\"resources\":[");
    let resources = list.get("resources").and_then(Value::as_array);
    for (index, resource) in resources.into_iter().flatten().enumerate() {
        out.extend_from_slice(if index == 0 { b"{" } else { b",{" });
        if let Some(resource) = resource.as_object() {
            write_entries(out, resource, &ORDER);
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
}

fn write_entry(out: &mut Vec<u8>, key: &str, value: &Value) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    write_value(out, &Value::from(key));
    out.push(b':');
    write_value(out, value);
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(out, value)
        .expect("a Value has only string keys and a Vec takes every write");
}

/// The stored bytes of `value`: without its resourceVersion.
pub(crate) fn for_storage(mut value: Value) -> (Value, Bytes) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    // Kept for long: without the room that the buffer has left.
    let bytes = object(&value).into_boxed_slice().into();
    (value, bytes)
}

/// Where in stored bytes the resourceVersion belongs.
fn splice_point(stored: &[u8]) -> Option<usize> {
    // `kind` and `apiVersion` come before it and are short.
    let head = &stored[..stored.len().min(512)];
    head.windows(METADATA.len())
        .position(|window| window == METADATA)
        .map(|at| at + METADATA.len())
}

/// Appends stored bytes with `revision` as their resourceVersion.
pub(crate) fn splice(out: &mut Vec<u8>, stored: &[u8], revision: Revision) {
    let Some(at) = splice_point(stored) else {
        out.extend_from_slice(stored);
        return;
    };
    out.extend_from_slice(&stored[..at]);
    out.extend_from_slice(b"\"resourceVersion\":\"");
    out.extend_from_slice(revision.to_string().as_bytes());
    out.push(b'"');
    if stored.get(at) != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(&stored[at..]);
}

/// Stored bytes with their resourceVersion.
pub(crate) fn spliced(stored: &[u8], revision: Revision) -> Vec<u8> {
    let mut out = Vec::with_capacity(stored.len() + 48);
    splice(&mut out, stored, revision);
    out
}

/// The object in stored bytes, with its resourceVersion.
///
/// # Errors
/// 500 when what is stored is no object: somebody else wrote into the store.
pub(crate) fn decode(stored: &[u8], revision: Revision) -> Result<Value, ApiError> {
    let mut value: Value = serde_json::from_slice(stored)
        .map_err(|e| ApiError::internal(format!("a stored object cannot be read: {e}")))?;
    set_version(&mut value, revision);
    Ok(value)
}

/// Sets `metadata.resourceVersion`.
pub(crate) fn set_version(value: &mut Value, revision: Revision) {
    if let Some(object) = value.as_object_mut() {
        let metadata = object
            .entry("metadata")
            .or_insert_with(|| Value::Object(Map::new()));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use windlass_machinery::status::{Cause, Details};

    use super::*;

    #[test]
    fn a_version_spliced_in_reads_as_if_it_had_been_written() {
        for metadata in [json!({"name": "x", "labels": {"metadata": "{"}}), json!({})] {
            let value = json!({"spec": {"metadata": {"a": 1}}, "apiVersion": "v1", "kind": "Pod", "metadata": metadata});
            let (_, stored) = for_storage(value.clone());
            let read: Value = serde_json::from_slice(&spliced(&stored, Revision(42))).unwrap();
            let mut expected = value;
            set_version(&mut expected, Revision(42));
            assert_eq!(read, expected);
            assert_eq!(decode(&stored, Revision(42)).unwrap(), expected);
        }
    }

    /// What the Python client's own tests compare character by character.
    #[test]
    fn a_status_has_upstreams_order() {
        let mut error = ApiError::already_exists("g.k8s.io", "things", "a");
        assert_eq!(
            String::from_utf8(object(&error.to_status())).unwrap(),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"things.g.k8s.io \"a\" already exists","reason":"AlreadyExists","details":{"name":"a","group":"g.k8s.io","kind":"things"},"code":409}"#
        );
        let details = error.details.as_mut().unwrap();
        **details = Details {
            causes: vec![
                Cause {
                    reason: "r".into(),
                    message: "m".into(),
                    field: "f".into(),
                };
                2
            ],
            retry_after_seconds: Some(3),
            ..Details::default()
        };
        let text = String::from_utf8(object(&error.to_status())).unwrap();
        let cause = r#"{"reason":"r","message":"m","field":"f"}"#;
        let expected = format!(
            r#""details":{{"causes":[{cause},{cause}],"retryAfterSeconds":3}},"code":409}}"#
        );
        assert!(text.ends_with(&expected), "{text}");
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read, error.to_status());
    }

    #[test]
    fn kind_and_version_come_first() {
        let bytes = object(
            &json!({"data": {}, "metadata": {"name": "a"}, "kind": "ConfigMap", "apiVersion": "v1"}),
        );
        assert!(
            bytes.starts_with(br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}"#)
        );
    }
}
