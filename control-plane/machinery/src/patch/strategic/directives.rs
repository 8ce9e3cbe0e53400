//! The keys that a strategic merge patch gives a meaning of their own.

use serde_json::{Map, Value};

use crate::patch::rejected;
use crate::status::ApiError;

/// `replace`, `delete`: what happens to the map or list element that holds it.
pub(super) const PATCH: &str = "$patch";
/// The keys that a map keeps.
pub(super) const RETAIN_KEYS: &str = "$retainKeys";
/// Followed by a list's name: values to remove from a list of scalars.
pub(super) const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
/// Followed by a list's name: the order of its elements.
pub(super) const SET_ORDER: &str = "$setElementOrder/";

/// A patch's value as it may be stored: without directives and nulls; nothing, when it says `$patch: delete`.
pub(super) fn without_directives(value: &Value) -> Option<Value> {
    Some(match value {
        Value::Object(map) => {
            if map
                .get(PATCH)
                .is_some_and(|directive| directive == "delete")
            {
                return None;
            }
            let kept = map
                .iter()
                .filter(|(key, value)| !is_directive(key) && !value.is_null());
            Value::Object(
                kept.filter_map(|(key, value)| Some((key.clone(), without_directives(value)?)))
                    .collect(),
            )
        }
        Value::Array(items) => {
            // `{$patch: replace}` among the elements speaks about the list and is no element.
            let is_marker = |item: &Value| {
                item.as_object()
                    .is_some_and(|map| map.len() == 1 && map.contains_key(PATCH))
            };
            let elements = items.iter().filter(|item| !is_marker(item));
            Value::Array(elements.filter_map(without_directives).collect())
        }
        scalar => scalar.clone(),
    })
}

fn is_directive(key: &str) -> bool {
    key == PATCH
        || key == RETAIN_KEYS
        || key.starts_with(DELETE_FROM_LIST)
        || key.starts_with(SET_ORDER)
}

pub(super) fn unknown(directive: &Value, map: &Map<String, Value>) -> ApiError {
    let name = directive
        .as_str()
        .map_or_else(|| directive.to_string(), str::to_owned);
    rejected(format!(
        "unknown patch type: {name} in map: {}",
        Value::Object(map.clone())
    ))
}

pub(super) fn no_merge_key(map: &Map<String, Value>, key: &str) -> ApiError {
    rejected(format!(
        "map: {} does not contain declared merge key: {key}",
        Value::Object(map.clone())
    ))
}
