//! ConfigMaps.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::Tree;
use crate::validate::{same, sentences};

pub struct ConfigMap;

/// The most that a ConfigMap or Secret may hold, in bytes.
pub const MAX_SIZE: usize = 1024 * 1024;

const FROZEN: &str = "field is immutable when `immutable` is set";

impl Strategy for ConfigMap {
    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let mut size = 0;
        for (key, value) in object.entries("data") {
            sentences(
                names::is_config_map_key(key),
                &Path::new("data").key(key),
                key,
                errors,
            );
            if object.at("binaryData").get(key).is_some() {
                errors.invalid(
                    &Path::new("data").key(key),
                    key,
                    "duplicate of key present in binaryData",
                );
            }
            size += value.as_str().map_or(0, str::len);
        }
        for (key, value) in object.entries("binaryData") {
            sentences(
                names::is_config_map_key(key),
                &Path::new("binaryData").key(key),
                key,
                errors,
            );
            size += decoded_len(value.as_str().unwrap_or_default());
        }
        if size > MAX_SIZE {
            // Upstream's path of the whole.
            errors.too_long(&Path::new("[]"), MAX_SIZE);
        }
    }

    fn validate_change(&self, new: &Value, old: &Value, errors: &mut Errors) {
        frozen(new, old, &["data", "binaryData"], errors);
        self.validate(new, Some(old), errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let count = object.entries("data").count() + object.entries("binaryData").count();
        cells![count, age(object, now)]
    }
}

/// What `immutable: true` forbids, for ConfigMaps and Secrets.
pub(super) fn frozen(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if !old.flag("immutable") {
        return;
    }
    if !new.flag("immutable") {
        errors.forbidden(&Path::new("immutable"), FROZEN);
    }
    for field in fields {
        if !same(new.at(field), old.at(field)) {
            errors.forbidden(&Path::new(field), FROZEN);
        }
    }
}

/// How many bytes base64 text stands for.
pub fn decoded_len(base64: &str) -> usize {
    let padding = base64.bytes().rev().take_while(|b| *b == b'=').count();
    (base64.len() / 4 * 3).saturating_sub(padding)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn keys_sizes_and_immutability_are_checked() {
        let object = json!({
            "data": {"a b": "1", "x": "2"},
            "binaryData": {"x": "AAAA", "..": "AA=="},
        });
        let found = lines(|e| ConfigMap.validate(&object, None, e));
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(
            found[0].starts_with(
                "data[a b]: Invalid value: \"a b\": a valid config key must consist of"
            )
        );
        assert_eq!(
            found[1],
            "data[x]: Invalid value: \"x\": duplicate of key present in binaryData"
        );
        assert!(found[2].starts_with("binaryData[..]: Invalid value: \"..\": must not be '..'"));

        let big = json!({"data": {"x": "y".repeat(MAX_SIZE + 1)}});
        assert!(
            lines(|e| ConfigMap.validate(&big, None, e))[0]
                .ends_with("may not be more than 1048576 bytes")
        );

        let old = json!({"immutable": true, "data": {"a": "1"}});
        let new = json!({"data": {"a": "2"}});
        assert_eq!(
            lines(|e| ConfigMap.validate_change(&new, &old, e)),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
    }

    #[test]
    fn the_row_counts_both_kinds_of_data() {
        let object = json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "data": {"a": "1"},
            "binaryData": {"b": "AA=="},
        });
        let now = windlass_machinery::time::parse_seconds("2026-01-01T00:05:00Z").expect("a time");
        assert_eq!(ConfigMap.row(&object, now), [json!(2), json!("5m")]);
    }
}
