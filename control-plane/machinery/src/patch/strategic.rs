//! Strategic merge patch: a merge that knows which lists are sets and which are keyed, and takes directives.
//!
//! Follows `k8s.io/apimachinery/pkg/util/strategicpatch`, directive by directive, including the order in which
//! merged lists come out. Where the schema knows nothing (free JSON, unknown fields) maps merge and lists replace.

mod directives;
mod lists;

use std::collections::HashSet;

use serde_json::{Map, Value};

use self::directives::{DELETE_FROM_LIST, PATCH, RETAIN_KEYS, SET_ORDER, without_directives};
use super::no_map;
use super::rejected;
use crate::schema::{Field, FieldType, Schema, TypeId};
use crate::status::ApiError;

/// Applies `patch` to `object` in place.
pub fn strategic(
    schema: &Schema,
    id: TypeId,
    object: &mut Value,
    patch: &Value,
) -> Result<(), ApiError> {
    let patch = match patch {
        Value::Object(patch) => patch,
        Value::Null => return Ok(()),
        other => return Err(no_map(other)),
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Value::Object(map) = object else {
        return Ok(());
    };
    Merge { schema }.map(Shape::Object(id), map, patch)
}

/// What is known about a map that is merged.
#[derive(Clone, Copy)]
enum Shape<'s> {
    Object(TypeId),
    Map(&'s FieldType),
    Unknown,
}

struct Merge<'s> {
    schema: &'s Schema,
}

impl<'s> Merge<'s> {
    /// The shape of a value of this type, if it is a map.
    fn shape(ty: &'s FieldType) -> Shape<'s> {
        match ty {
            FieldType::Object(id) => Shape::Object(*id),
            FieldType::Map(inner) => Shape::Map(inner),
            _ => Shape::Unknown,
        }
    }

    fn field(&self, shape: Shape<'s>, key: &str) -> Option<&'s Field> {
        match shape {
            Shape::Object(id) => self.schema.get(id).field(key),
            _ => None,
        }
    }

    fn map(
        &self,
        shape: Shape<'s>,
        original: &mut Map<String, Value>,
        patch: &Map<String, Value>,
    ) -> Result<(), ApiError> {
        if let Some(directive) = patch.get(PATCH) {
            match directive.as_str() {
                Some("replace") => {
                    *original = patch.clone();
                    original.remove(PATCH);
                }
                Some("delete") => original.clear(),
                _ => return Err(directives::unknown(directive, patch)),
            }
            return Ok(());
        }
        retain_keys(original, patch)?;
        let ordered = self.set_orders(shape, original, patch)?;
        for (key, change) in patch {
            if key == RETAIN_KEYS || key.starts_with(SET_ORDER) || ordered.contains(key.as_str()) {
                continue;
            }
            if let Some(list) = key.strip_prefix(DELETE_FROM_LIST) {
                lists::delete_from(original.get_mut(list), change)?;
                continue;
            }
            if change.is_null() {
                original.remove(key);
                continue;
            }
            let field = self.field(shape, key);
            match (original.get_mut(key), change) {
                (Some(Value::Object(current)), Value::Object(change)) => {
                    let shape = match shape {
                        Shape::Map(inner) => Self::shape(inner),
                        _ => field.map_or(Shape::Unknown, |field| Self::shape(&field.ty)),
                    };
                    self.map(shape, current, change)?;
                }
                (Some(Value::Array(current)), Value::Array(change)) => match field {
                    Some(field) if field.patch_strategy.merge => {
                        self.list(field, current, change)?
                    }
                    _ => current.clone_from(change),
                },
                (_, change) => {
                    if let Some(value) = without_directives(change) {
                        original.insert(key.clone(), value);
                    }
                }
            }
        }
        Ok(())
    }

    /// Merges the lists whose order the patch states; returns their names, which are done then.
    fn set_orders<'p>(
        &self,
        shape: Shape<'s>,
        original: &mut Map<String, Value>,
        patch: &'p Map<String, Value>,
    ) -> Result<HashSet<&'p str>, ApiError> {
        let mut done = HashSet::new();
        for (key, order) in patch {
            let Some(name) = key.strip_prefix(SET_ORDER) else {
                continue;
            };
            let Value::Array(order) = order else {
                return Err(ApiError::bad_request(
                    "invalid patch format of setElementOrder list",
                ));
            };
            let field = self.field(shape, name);
            let merge_key = field.and_then(|field| field.patch_merge_key.as_deref());
            let change = patch.get(name).and_then(Value::as_array);
            if let Some(change) = change {
                lists::check_order(change, order, merge_key)?;
            }
            let current = original.get(name).and_then(Value::as_array).cloned();
            let merged = match (&current, change) {
                (None, None) => continue,
                (Some(current), None) => current.clone(),
                (None, Some(change)) => change.iter().filter_map(without_directives).collect(),
                (Some(current), Some(change)) => {
                    let mut merged = current.clone();
                    match field {
                        Some(field) if field.patch_strategy.merge => {
                            self.list(field, &mut merged, change)?
                        }
                        _ => merged.clone_from(change),
                    }
                    merged
                }
            };
            let before = current.unwrap_or_default();
            original.insert(
                name.to_owned(),
                Value::Array(lists::ordered(merged, order, &before, merge_key)),
            );
            if change.is_some() {
                done.insert(name);
            }
        }
        Ok(done)
    }

    /// Merges a list of the strategy `merge`.
    fn list(
        &self,
        field: &'s Field,
        current: &mut Vec<Value>,
        change: &[Value],
    ) -> Result<(), ApiError> {
        if current.is_empty() && change.is_empty() {
            return Ok(());
        }
        let before = current.clone();
        let objects = before.iter().chain(change).all(Value::is_object);
        if !objects {
            if before
                .iter()
                .chain(change)
                .any(|item| item.is_object() || item.is_array())
            {
                return Err(rejected(format!(
                    "the elements of {} are of different types",
                    field.name
                )));
            }
            lists::merge_scalars(current, change);
            *current = lists::ordered(std::mem::take(current), change, &before, None);
            return Ok(());
        }
        let Some(merge_key) = field.patch_merge_key.as_deref() else {
            return Err(rejected(format!(
                "cannot merge lists without merge key for {}",
                field.name
            )));
        };
        let Some(plain) = lists::special_elements(current, change, merge_key)? else {
            return Ok(());
        };
        let shape = match &field.ty {
            FieldType::List(inner) => Self::shape(inner),
            _ => Shape::Unknown,
        };
        let mut index = lists::index(current, merge_key);
        for item in &plain {
            let Some(map) = item.as_object() else {
                continue;
            };
            let Some(key) = map.get(merge_key) else {
                return Err(directives::no_merge_key(map, merge_key));
            };
            match index.get(key).and_then(|at| current.get_mut(*at)) {
                Some(Value::Object(existing)) => self.map(shape, existing, map)?,
                _ => {
                    index.insert(key.clone(), current.len());
                    current.extend(without_directives(item));
                }
            }
        }
        let plain: Vec<Value> = plain.into_iter().cloned().collect();
        *current = lists::ordered(std::mem::take(current), &plain, &before, Some(merge_key));
        Ok(())
    }
}

/// `$retainKeys`: what is not listed goes, and the patch may set nothing else.
fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), ApiError> {
    let Some(keys) = patch.get(RETAIN_KEYS) else {
        return Ok(());
    };
    let malformed = || ApiError::bad_request("invalid patch format of retainKeys");
    let keys: HashSet<&str> = keys
        .as_array()
        .ok_or_else(malformed)?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let contradicts = patch.iter().any(|(key, value)| {
        !value.is_null()
            && key != RETAIN_KEYS
            && !key.starts_with(DELETE_FROM_LIST)
            && !key.starts_with(SET_ORDER)
            && !keys.contains(key.as_str())
    });
    if contradicts {
        return Err(malformed());
    }
    original.retain(|key, _| keys.contains(key.as_str()));
    Ok(())
}

#[cfg(test)]
mod tests;
