//! Lists in strategic merge patches: membership, removal and order.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::directives::{PATCH, no_merge_key, unknown};
use crate::patch::rejected;
use crate::status::ApiError;

/// What identifies an element: its merge key's value, or itself.
fn identity<'a>(item: &'a Value, merge_key: Option<&str>) -> &'a Value {
    merge_key.and_then(|key| item.get(key)).unwrap_or(item)
}

/// Positions by merge key; the first one counts.
pub(super) fn index(items: &[Value], merge_key: &str) -> HashMap<Value, usize> {
    let mut index = HashMap::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        if let Some(key) = item.get(merge_key) {
            index.entry(key.clone()).or_insert(at);
        }
    }
    index
}

/// `$deleteFromPrimitiveList`
pub(super) fn delete_from(current: Option<&mut Value>, delete: &Value) -> Result<(), ApiError> {
    let Value::Array(delete) = delete else {
        return Err(ApiError::bad_request(
            "invalid patch format of primitive list",
        ));
    };
    if let Some(Value::Array(items)) = current {
        let delete: HashSet<&Value> = delete.iter().collect();
        items.retain(|item| !delete.contains(item));
    }
    Ok(())
}

/// A union in order of first appearance.
pub(super) fn merge_scalars(current: &mut Vec<Value>, change: &[Value]) {
    let mut seen = HashSet::new();
    current.extend(change.iter().cloned());
    current.retain(|item| seen.insert(item.clone()));
}

/// Acts on the elements that hold `$patch`. Returns those that are merged, or nothing when the list was replaced.
pub(super) fn special_elements<'p>(
    current: &mut Vec<Value>,
    change: &'p [Value],
    merge_key: &str,
) -> Result<Option<Vec<&'p Value>>, ApiError> {
    let mut plain = Vec::with_capacity(change.len());
    let mut deleted = HashSet::new();
    let mut replace = false;
    for item in change {
        let Some(map) = item.as_object() else {
            continue;
        };
        match map.get(PATCH) {
            None => plain.push(item),
            Some(directive) => match directive.as_str() {
                Some("delete") => {
                    deleted.insert(
                        map.get(merge_key)
                            .ok_or_else(|| no_merge_key(map, merge_key))?,
                    );
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(rejected(
                        "merging lists cannot yet be specified in the patch",
                    ));
                }
                _ => return Err(unknown(directive, map)),
            },
        }
    }
    if replace {
        *current = plain.into_iter().cloned().collect();
        return Ok(None);
    }
    if !deleted.is_empty() {
        current.retain(|item| item.get(merge_key).is_none_or(|key| !deleted.contains(key)));
    }
    Ok(Some(plain))
}

/// The patch's elements must appear in the stated order, in that order.
pub(super) fn check_order(
    change: &[Value],
    order: &[Value],
    merge_key: Option<&str>,
) -> Result<(), ApiError> {
    let deletes = |item: &Value| {
        item.get(PATCH)
            .is_some_and(|directive| directive == "delete")
    };
    let mut stated = order.iter();
    for item in change
        .iter()
        .filter(|item| merge_key.is_none() || !deletes(item))
    {
        // `$patch: replace` stands for the list, not for an element.
        if merge_key.is_some_and(|key| item.get(key).is_none()) && item.get(PATCH).is_some() {
            continue;
        }
        if !stated.any(|other| identity(other, merge_key) == identity(item, merge_key)) {
            return Err(rejected(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                Value::from(change),
                Value::from(order)
            )));
        }
    }
    Ok(())
}

/// Orders a merged list: elements of the patch as `order` has them, the server's own between them where they
/// stood before.
pub(super) fn ordered(
    merged: Vec<Value>,
    order: &[Value],
    before: &[Value],
    merge_key: Option<&str>,
) -> Vec<Value> {
    let positions = |items: &[Value]| -> HashMap<Value, usize> {
        let mut positions = HashMap::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            positions
                .entry(identity(item, merge_key).clone())
                .or_insert(at);
        }
        positions
    };
    let (in_order, in_before) = (positions(order), positions(before));
    let position =
        |map: &HashMap<Value, usize>, item: &Value| map.get(identity(item, merge_key)).copied();
    let (mut listed, mut own): (Vec<Value>, Vec<Value>) = merged
        .into_iter()
        .partition(|item| position(&in_order, item).is_some());
    listed.sort_by_key(|item| position(&in_order, item));
    own.sort_by_key(|item| position(&in_before, item).unwrap_or(usize::MAX));

    let mut all = Vec::with_capacity(listed.len() + own.len());
    let (mut listed, mut own) = (listed.into_iter().peekable(), own.into_iter().peekable());
    loop {
        let own_first = match (own.peek(), listed.peek()) {
            (None, None) => return all,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(own), Some(listed)) => {
                match (position(&in_before, own), position(&in_before, listed)) {
                    (Some(own), Some(listed)) => own < listed,
                    _ => false,
                }
            }
        };
        all.extend(if own_first { own.next() } else { listed.next() });
    }
}
