//! The walks over typed values that server-side apply is made of: which fields there are, what changed, merging
//! and removing.
//!
//! Each follows its namesake in `sigs.k8s.io/structured-merge-diff/typed`, including where empty maps count as
//! leaves and in which order merged lists come out.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::set::Set;
use super::shape::Shape;
use crate::schema::Schema;

/// A keyed list with two elements of the same key, or one without any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("duplicate entries for key {0}")]
    Duplicate(String),
    #[error("an element omits all key fields {0}")]
    NoKey(String),
}

/// The fields that a value sets.
pub(crate) fn field_set(schema: &Schema, shape: Shape<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_) | Shape::Untyped, Value::Object(map)) => {
            for (key, value) in map {
                let edge = format!("f:{key}");
                let mut below = field_set(schema, shape.at_key(schema, key), value);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                below.here |= empty || !shape.has_field(schema, &edge);
                set.put(edge, below);
            }
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(items)) => {
            for item in items {
                let Some(edge) = shape.edge(schema, item) else {
                    continue;
                };
                let mut below = field_set(schema, shape.at_element(schema), item);
                below.here = true;
                set.put(edge, below);
            }
        }
        _ => set.here = true,
    }
    set
}

/// Fields that hold what they hold in Go while nobody has set them: who removes one finds it there again.
pub(crate) fn unset_fields(schema: &Schema, shape: Shape<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(map)) => {
            for (key, value) in map {
                let below = match shape.unset(schema, key) {
                    Some(unset) if unset == *value => Set::leaf(),
                    _ => unset_fields(schema, shape.at_key(schema, key), value),
                };
                set.put(format!("f:{key}"), below);
            }
        }
        (Shape::Keyed(..), Value::Array(items)) => {
            for item in items {
                if let Some(edge) = shape.edge(schema, item) {
                    let element = shape.at_element(schema);
                    set.put(edge, unset_fields(schema, element, item));
                }
            }
        }
        _ => {}
    }
    set
}

/// The first fault of the keyed lists in a value.
pub(crate) fn check_lists(
    schema: &Schema,
    shape: Shape<'_>,
    value: &Value,
) -> Result<(), ListError> {
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(map)) => map
            .iter()
            .try_for_each(|(key, value)| check_lists(schema, shape.at_key(schema, key), value)),
        (Shape::Set | Shape::Keyed(..), Value::Array(items)) => {
            let mut seen = HashSet::new();
            for item in items {
                let edge = shape.edge(schema, item).ok_or_else(|| match shape {
                    Shape::Keyed(keys, _) => ListError::NoKey(format!("{keys:?}")),
                    _ => ListError::NoKey(String::new()),
                })?;
                check_lists(schema, shape.at_element(schema), item)?;
                if !seen.insert(edge.clone()) {
                    let mut path = String::new();
                    let mut set = Set::default();
                    set.put(edge, Set::leaf());
                    set.each_path(|text| path = text.to_owned());
                    return Err(ListError::Duplicate(path));
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What differs between two values.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// Only in the new one.
    pub(crate) added: Set,
    pub(crate) modified: Set,
    /// Only in the old one.
    pub(crate) removed: Set,
}

impl Difference {
    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    fn put(&mut self, edge: &str, below: Difference) {
        for (set, below) in [
            (&mut self.added, below.added),
            (&mut self.modified, below.modified),
            (&mut self.removed, below.removed),
        ] {
            if !below.is_empty() {
                set.put(edge.to_owned(), below);
            }
        }
    }

    /// Takes out what `fields` names and all below it.
    pub(crate) fn ignore(&mut self, fields: &Set) {
        for set in [&mut self.added, &mut self.modified, &mut self.removed] {
            set.subtract_below(fields);
        }
    }
}

/// Compares; `None` is absence.
pub(crate) fn compare(
    schema: &Schema,
    shape: Shape<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Difference {
    let mut difference = Difference::default();
    if old == new {
        return difference;
    }
    let divided = |value: Option<&Value>| value.is_none_or(|value| shape.is_divided(value));
    let filled = |value: Option<&Value>| value.is_some_and(|value| !is_empty(value));
    if divided(old) && divided(new) && (filled(old) || filled(new)) {
        match shape {
            Shape::Set | Shape::Keyed(..) => {
                compare_lists(schema, shape, old, new, &mut difference)
            }
            _ => compare_maps(schema, shape, old, new, &mut difference),
        }
        // What came or went as a whole is itself a change, beside its parts.
        difference.added.here = old.is_none();
        difference.removed.here = new.is_none();
        return difference;
    }
    match (old, new) {
        (None, _) => difference.added.here = true,
        (_, None) => difference.removed.here = true,
        _ => difference.modified.here = true,
    }
    difference
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn compare_maps(
    schema: &Schema,
    shape: Shape<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    difference: &mut Difference,
) {
    let (old, new) = (
        old.and_then(Value::as_object),
        new.and_then(Value::as_object),
    );
    // In a Go struct that is there, a field that is no pointer never is away.
    let unset = |holder: Option<&Map<String, Value>>, key: &str| {
        holder.and_then(|_| shape.unset(schema, key))
    };
    for (key, value) in new.into_iter().flatten() {
        let before = old.and_then(|old| old.get(key));
        if before != Some(value) {
            let empty = before.is_none().then(|| unset(old, key)).flatten();
            let before = before.or(empty.as_ref());
            let below = compare(schema, shape.at_key(schema, key), before, Some(value));
            difference.put(&format!("f:{key}"), below);
        }
    }
    for (key, value) in old.into_iter().flatten() {
        if new.is_none_or(|new| !new.contains_key(key)) {
            let empty = unset(new, key);
            let below = compare(
                schema,
                shape.at_key(schema, key),
                Some(value),
                empty.as_ref(),
            );
            difference.put(&format!("f:{key}"), below);
        }
    }
}

fn item(list: Option<&Value>, at: usize) -> Option<&Value> {
    list.and_then(|list| list.get(at))
}

fn compare_lists(
    schema: &Schema,
    shape: Shape<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    difference: &mut Difference,
) {
    let element = shape.at_element(schema);
    let index = |list: Option<&'_ Value>| -> Vec<(String, usize)> {
        let items = list
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .enumerate();
        items
            .filter_map(|(at, item)| Some((shape.edge(schema, item)?, at)))
            .collect()
    };
    let before: HashMap<String, usize> = index(old).into_iter().collect();
    let mut seen = HashSet::new();
    for (edge, at) in index(new) {
        let (was, is) = (
            before.get(&edge).and_then(|at| item(old, *at)),
            item(new, at),
        );
        let mut below = compare(schema, element, was, is);
        below.added.here |= was.is_none();
        difference.put(&edge, below);
        seen.insert(edge);
    }
    for (edge, at) in before {
        if !seen.contains(&edge) {
            let was = item(old, at);
            let mut below = compare(schema, element, was, None);
            below.removed.here = true;
            difference.put(&edge, below);
        }
    }
}

/// Merges `config` into `live`: what the config sets wins, what it does not mention stays.
pub(crate) fn merge(
    schema: &Schema,
    shape: Shape<'_>,
    live: Option<Value>,
    config: &Value,
) -> Value {
    match (shape, live, config) {
        (
            Shape::Struct(_) | Shape::Map(_) | Shape::Untyped,
            Some(Value::Object(mut map)),
            Value::Object(config),
        ) => {
            for (key, value) in config {
                let before = map.remove(key);
                let merged = merge(schema, shape.at_key(schema, key), before, value);
                map.insert(key.clone(), merged);
            }
            Value::Object(map)
        }
        (Shape::Set | Shape::Keyed(..), Some(Value::Array(live)), Value::Array(config)) => {
            Value::Array(merge_lists(schema, shape, live, config))
        }
        (_, _, config) => config.clone(),
    }
}

/// The config's order for what it names, the rest where it stood.
fn merge_lists(
    schema: &Schema,
    shape: Shape<'_>,
    live: Vec<Value>,
    config: &[Value],
) -> Vec<Value> {
    let element = shape.at_element(schema);
    let edges = |items: &[Value]| -> Vec<String> {
        let edge = |item: &Value| {
            shape
                .edge(schema, item)
                .unwrap_or_else(|| format!("v:{item}"))
        };
        items.iter().map(edge).collect()
    };
    let (left, right) = (edges(&live), edges(config));
    let in_left: HashSet<&str> = left.iter().map(String::as_str).collect();
    let in_right: HashSet<&str> = right.iter().map(String::as_str).collect();
    let mut live: HashMap<&str, std::collections::VecDeque<Value>> = {
        let mut map: HashMap<&str, std::collections::VecDeque<Value>> = HashMap::new();
        for (edge, item) in left.iter().zip(live) {
            map.entry(edge).or_default().push_back(item);
        }
        map
    };
    let mut take = |edge: &str| {
        live.get_mut(edge)
            .and_then(std::collections::VecDeque::pop_front)
    };
    let mut shared = right
        .iter()
        .filter(|edge| in_left.contains(edge.as_str()))
        .peekable();
    let mut merged: HashSet<&str> = HashSet::new();
    let mut out = Vec::with_capacity(left.len().max(right.len()));
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if let (Some(edge), Some(theirs)) = (left.get(l), right.get(r)) {
            if edge == theirs {
                merged.insert(edge);
                out.push(merge(schema, element, take(edge), &config[r]));
                (l, r) = (l + 1, r + 1);
                shared.next();
                continue;
            }
            // Shared, but not the one that comes next in the config's order: it is placed there.
            if in_right.contains(edge.as_str()) && shared.peek().is_some_and(|next| *next != edge) {
                l += 1;
                continue;
            }
        }
        if let Some(edge) = left.get(l) {
            if !in_right.contains(edge.as_str()) {
                out.extend(take(edge));
                l += 1;
                continue;
            }
            if merged.contains(edge.as_str()) {
                l += 1;
            }
        }
        if let Some(edge) = right.get(r) {
            merged.insert(edge);
            out.push(merge(schema, element, take(edge), &config[r]));
            r += 1;
            if shared.peek().is_some_and(|next| *next == edge) {
                shared.next();
            }
        }
    }
    out
}

/// Removes the members of a set from a value, and what lies below them.
pub(crate) fn remove(schema: &Schema, shape: Shape<'_>, value: &mut Value, set: &Set) {
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_) | Shape::Untyped, Value::Object(map)) => {
            map.retain(|key, value| match set.children.get(&format!("f:{key}")) {
                None => true,
                Some(below) if below.here => false,
                Some(below) => {
                    remove(schema, shape.at_key(schema, key), value, below);
                    true
                }
            });
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(items)) => {
            items.retain_mut(|item| {
                match shape
                    .edge(schema, item)
                    .and_then(|edge| set.children.get(&edge))
                {
                    None => true,
                    Some(below) if below.here => false,
                    Some(below) => {
                        remove(schema, shape.at_element(schema), item, below);
                        true
                    }
                }
            });
        }
        _ => {}
    }
}
