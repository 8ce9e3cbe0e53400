//! What holds for any bytes at the doors of the API server, whoever sent them: one function for each door, which panics
//! where it does not hold.
//!
//! Two things call them: libFuzzer with what it invents (`fuzz/`, by `cargo fuzz`), and the tests below with a fixed
//! sequence of damaged objects, so that every run of the tests goes through all of them in a second or two and a
//! failure comes back by itself. Not part of the crate's interface.

use serde_json::Value;

use crate::apply::{self, Writer};
use crate::schema::{Schema, TypeId};
use crate::selector::{FieldSelector, LabelSelector};
use crate::{fields, json, patch, protobuf, yaml};

/// Between the object and its patch.
pub const SEPARATOR: u8 = 0;

/// The type that the first two bytes choose, and the other bytes.
fn chosen<'a>(schema: &Schema, bytes: &'a [u8]) -> Option<(TypeId, &'a [u8])> {
    let (choice, rest) = bytes.split_first_chunk::<2>()?;
    let choice = usize::from(u16::from_le_bytes(*choice)) % schema.types().count();
    let (id, _) = schema.types().nth(choice)?;
    Some((id, rest))
}

/// What the API server works on after it has read a body: an object in canonical form, without a finding.
fn object(schema: &Schema, id: TypeId, bytes: &[u8]) -> Option<Value> {
    let mut value = json::decode(bytes).ok()?.value;
    let report = fields::check(schema, id, &mut value);
    (value.is_object() && report.errors.is_empty()).then_some(value)
}

/// Object and patch.
fn pair(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == SEPARATOR)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

fn has_fractions(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(has_fractions),
        Value::Object(map) => map.values().any(has_fractions),
        _ => false,
    }
}

/// A message that is read at all is written and read again as the same object.
pub fn protobuf(bytes: &[u8]) {
    let _ = protobuf::decode_envelope(bytes);
    let schema = Schema::builtin();
    let Some((id, message)) = chosen(&schema, bytes) else {
        return;
    };
    let Ok(object) = protobuf::decode(&schema, id, message) else {
        return;
    };
    if let Ok(written) = protobuf::encode(&schema, id, &object) {
        let back = protobuf::decode(&schema, id, &written).expect("what was written can be read");
        assert_eq!(back, object, "{}", schema.get(id).name);
    }
}

/// Checking what has been checked finds nothing and changes nothing.
pub fn document(bytes: &[u8]) {
    let schema = Schema::builtin();
    let Some((id, text)) = chosen(&schema, bytes) else {
        return;
    };
    if let Some(object) = object(&schema, id, text) {
        let mut again = object.clone();
        let report = fields::check(&schema, id, &mut again);
        assert!(
            report.errors.is_empty() && report.unknown.is_empty(),
            "{report:?} in {object}"
        );
        assert_eq!(again, object);
    }
    if let Ok(decoded) = yaml::decode(text) {
        let text = decoded.value.to_string();
        let back = json::decode(text.as_bytes()).expect("a value of YAML is one of JSON");
        // The last bit of a number of many digits may differ.
        if !has_fractions(&decoded.value) {
            assert_eq!(back.value, decoded.value);
        }
    }
}

/// Patches end, with an object or an error; a merge patch leads where it already led.
pub fn patches(bytes: &[u8]) {
    let schema = Schema::builtin();
    let Some((id, rest)) = chosen(&schema, bytes) else {
        return;
    };
    let Some((text, change)) = pair(rest) else {
        return;
    };
    let (Some(object), Ok(change)) = (object(&schema, id, text), json::decode(change)) else {
        return;
    };
    let change = change.value;
    let _ = patch::json(&mut object.clone(), &change);
    let _ = patch::strategic(&schema, id, &mut object.clone(), &change);
    let mut merged = object;
    patch::merge(&mut merged, &change);
    let once = merged.clone();
    patch::merge(&mut merged, &change);
    assert_eq!(merged, once, "after {change}");
}

/// Applying twice is applying once, on nothing and on what somebody else made.
pub fn server_side_apply(bytes: &[u8]) {
    let schema = Schema::builtin();
    let Some((id, rest)) = chosen(&schema, bytes) else {
        return;
    };
    let Some((text, config)) = pair(rest) else {
        return;
    };
    let (Some(live), Some(config)) = (object(&schema, id, text), object(&schema, id, config))
    else {
        return;
    };
    let writer = |manager| Writer {
        manager,
        api_version: "v1",
        subresource: "",
        now: "2026-01-02T03:04:05Z",
        reset_fields: &[],
    };
    for live in [None, Some(&live)] {
        let Ok(once) = apply::apply(&schema, id, live, &config, &writer("fuzz"), true) else {
            continue;
        };
        let twice = apply::apply(&schema, id, Some(&once), &config, &writer("fuzz"), false)
            .expect("what was applied can be applied again without force");
        assert_eq!(twice, once, "{config}");
    }
}

/// A selector that parses prints as one that means the same.
pub fn selectors(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _ = FieldSelector::parse(text);
    if let Ok(selector) = LabelSelector::parse(text) {
        let printed = selector.to_string();
        assert_eq!(
            LabelSelector::parse(&printed),
            Ok(selector),
            "printed as {printed}"
        );
    }
}

#[cfg(test)]
mod tests;
