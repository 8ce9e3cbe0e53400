//! Reading JSON values that a schema has already checked.

use serde_json::Value;

/// The texts of a list; none when it is not there.
pub(crate) fn strings(list: &Value) -> Vec<String> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}
