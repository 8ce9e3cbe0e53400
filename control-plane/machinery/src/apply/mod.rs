//! Server-side apply, and the record of who set which field.
//!
//! [`apply`] merges a manager's configuration into the live object: fields that the manager applied before and no
//! longer mentions go, unless someone else owns them; fields that others own and the config would change are
//! conflicts, unless forced. [`track_update`] records what every other write changed. Both follow
//! `sigs.k8s.io/structured-merge-diff/merge` and `k8s.io/apimachinery/pkg/util/managedfields`.
//!
//! One thing is simpler here: an entry made under another API version of the kind is compared in the version at
//! hand, not converted. Paths that differ between versions keep their old owner until a manager writes them again.

mod conflict;
mod managed;
mod set;
mod shape;
mod walk;

use std::borrow::Cow;

use serde_json::{Map, Value};

pub use self::conflict::Conflicts;
use self::managed::{Entry, Operation};
use self::set::Set;
use self::shape::Shape;
pub use self::walk::ListError;
use self::walk::{Difference, check_lists, compare, field_set, merge, remove, unset_fields};
use crate::schema::{Schema, TypeId};
use crate::status::ApiError;
use crate::{defaults, json, meta};

/// The annotation in which `kubectl apply` without `--server-side` keeps its last configuration.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The one manager that takes over from client-side apply.
const KUBECTL: &str = "kubectl";
/// Owner of what an object without managedFields held when it was first applied to.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Nobody owns these: they identify the object or are the server's.
const UNOWNED: [&str; 11] = [
    "apiVersion",
    "kind",
    "metadata",
    "metadata.name",
    "metadata.namespace",
    "metadata.creationTimestamp",
    "metadata.selfLink",
    "metadata.uid",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.resourceVersion",
];

/// Who writes, and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The field manager: a query parameter, or what the client calls itself. Empty counts as `unknown`.
    pub manager: &'a str,
    /// The version in which the object stands: `apps/v1`.
    pub api_version: &'a str,
    /// `status`, `scale`, or empty.
    pub subresource: &'a str,
    /// RFC 3339.
    pub now: &'a str,
    /// Fields that this endpoint does not change, so that nobody comes to own them through it: `status` on the main
    /// resource, `spec` on its status. Dotted paths.
    pub reset_fields: &'a [&'a str],
}

impl Writer<'_> {
    fn entry(&self, operation: Operation) -> Entry {
        Entry {
            manager: if self.manager.is_empty() {
                "unknown"
            } else {
                self.manager
            }
            .to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.to_owned(),
            time: self.now.to_owned(),
            set: Set::default(),
        }
    }

    fn reset(&self) -> Set {
        Set::of_fields(self.reset_fields.iter().copied())
    }
}

/// Why an apply did not happen.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{}", ApiError::from(.0).message)]
    Conflicts(Conflicts),
    #[error("failed to create typed patch object: {0}")]
    List(#[from] ListError),
    #[error("metadata.managedFields must be nil")]
    ManagedFieldsInConfig,
    #[error("the applied configuration is not an object")]
    NotAnObject,
}

impl From<ApplyError> for ApiError {
    fn from(error: ApplyError) -> Self {
        match &error {
            ApplyError::Conflicts(conflicts) => conflicts.into(),
            _ => Self::bad_request(error.to_string()),
        }
    }
}

/// Applies `config` for a manager and returns the whole object, with its managedFields. Without `live` it is created.
///
/// An apply that changes nothing returns `live` as it was, so the caller can see that there is nothing to write.
pub fn apply(
    schema: &Schema,
    id: TypeId,
    live: Option<&Value>,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    if !config.is_object() {
        return Err(ApplyError::NotAnObject);
    }
    if config["metadata"]
        .get("managedFields")
        .is_some_and(|fields| !fields.is_null())
    {
        return Err(ApplyError::ManagedFieldsInConfig);
    }
    let shape = Shape::Struct(id);
    check_lists(schema, shape, config)?;
    let operation = Apply {
        schema,
        shape,
        live,
        config,
        writer,
    };
    let outcome = match operation.run(force) {
        // kubectl may take over what its client-side self wrote, as long as nobody changed it since.
        Err(ApplyError::Conflicts(conflicts)) if writer.manager == KUBECTL => {
            let mut foreign = conflicts.set.clone();
            foreign.subtract(&operation.owned_by_client_side_apply());
            if foreign.is_empty() {
                operation.run(true)
            } else {
                Err(ApplyError::Conflicts(conflicts))
            }
        }
        other => other,
    };
    let mut object = outcome?;
    if writer.manager == KUBECTL && meta::annotation(&object, LAST_APPLIED).is_some() {
        // Tools that still apply on the client side must see what was applied last.
        let mut last = config.clone();
        meta::set_annotation(&mut last, LAST_APPLIED, None);
        meta::set_annotation(&mut object, LAST_APPLIED, Some(&format!("{last}\n")));
    }
    Ok(object)
}

struct Apply<'a> {
    schema: &'a Schema,
    shape: Shape<'a>,
    live: Option<&'a Value>,
    config: &'a Value,
    writer: &'a Writer<'a>,
}

impl Apply<'_> {
    fn run(&self, force: bool) -> Result<Value, ApplyError> {
        let (schema, shape) = (self.schema, self.shape);
        let unowned = Set::of_fields(UNOWNED);
        let mut live = self
            .live
            .cloned()
            .unwrap_or_else(|| Value::Object(Map::new()));
        let mut entries = managed::read(&live).unwrap_or_default();
        let untouched = meta::remove(&mut live, "managedFields");
        if entries.is_empty() && self.live.is_some() {
            let mut before = self.writer.entry(Operation::Update);
            BEFORE_FIRST_APPLY.clone_into(&mut before.manager);
            before.subresource.clear();
            before.set = compare(schema, shape, Some(&nothing(schema, shape)), Some(&live)).added;
            before.set.subtract(&unowned);
            entries.push(before);
        }

        let mut mine = self.writer.entry(Operation::Apply);
        mine.set = field_set(schema, shape, self.config);
        mine.set.subtract_below(&self.writer.reset());
        mine.set.subtract(&unowned);
        let last = entries
            .iter()
            .position(|entry| entry.same_owner(&mine))
            .map(|at| entries.swap_remove(at));

        let mut merged = merge(schema, shape, Some(live.clone()), self.config);
        if let Some(last) = &last {
            let owned = entries.iter().map(|entry| &entry.set).chain([&mine.set]);
            merged = self.prune(merged, &last.set, owned);
        }

        // As Go holds them: what is written of a struct that a config leaves empty is no difference.
        let (before, after) = (filled(schema, shape, &live), filled(schema, shape, &merged));
        let mut difference = compare(schema, shape, Some(&before), Some(&after));
        let changed = !difference.is_empty();
        difference.ignore(&self.writer.reset());
        let taken = changes(&difference);
        let conflicts: Vec<_> = entries
            .iter()
            .map(|entry| (entry, entry.set.intersection(&taken)))
            .filter(|(_, set)| !set.is_empty())
            .collect();
        if !force && let Some(conflicts) = Conflicts::new(conflicts) {
            return Err(ApplyError::Conflicts(conflicts));
        }
        for entry in &mut entries {
            entry.set.subtract(&taken);
            entry.set.subtract(&difference.removed);
        }

        let same_set = last
            .as_ref()
            .is_some_and(|last| last.set == mine.set && last.api_version == mine.api_version);
        if !changed && same_set {
            // Nothing happened: not even the time of the entry moves.
            if let Some(entries) = untouched {
                meta::set(&mut merged, "managedFields", entries);
            }
            return Ok(merged);
        }
        entries.push(mine);
        managed::write(&mut merged, entries);
        Ok(merged)
    }

    /// Removes what this manager applied last time, does not apply now, and nobody else owns.
    fn prune<'s>(&self, merged: Value, last: &Set, owners: impl Iterator<Item = &'s Set>) -> Value {
        let (schema, shape) = (self.schema, self.shape);
        let named = |set: &Set| set.with_named_fields(schema, shape);
        let mut owned = Set::default();
        for set in owners {
            owned.union(set.clone());
        }
        let all = named(&field_set(schema, shape, &merged));
        let last = named(last);

        // Without anything of the last configuration …
        let mut pruned = merged.clone();
        remove(schema, shape, &mut pruned, &last);
        // … but with what someone owns …
        let mut kept = named(&field_set(schema, shape, &pruned));
        kept.union(named(&owned));
        let mut gone = all.clone();
        gone.subtract(&kept);
        gone.subtract(&unset_fields(schema, shape, &merged));
        let mut pruned = merged.clone();
        remove(schema, shape, &mut pruned, &gone);
        // … and nothing gone that the last configuration did not hold.
        let mut gone = all;
        gone.subtract(&named(&field_set(schema, shape, &pruned)));
        let mut result = merged;
        remove(schema, shape, &mut result, &gone.intersection(&last));
        result
    }

    /// What the annotation of client-side apply holds and the live object still has unchanged.
    fn owned_by_client_side_apply(&self) -> Set {
        let annotation = self
            .live
            .and_then(|live| meta::annotation(live, LAST_APPLIED));
        let Some(decoded) = annotation.and_then(|text| json::decode(text.as_bytes()).ok()) else {
            return Set::default();
        };
        let last = decoded.value;
        if last["apiVersion"] != self.writer.api_version {
            return Set::default();
        }
        let mut set = field_set(self.schema, self.shape, &last);
        let difference = compare(self.schema, self.shape, Some(&last), self.live);
        for changed in [&difference.modified, &difference.added, &difference.removed] {
            set.subtract(changed);
        }
        set
    }
}

/// An object with what Go holds in the fields that are not set.
fn filled(schema: &Schema, shape: Shape<'_>, object: &Value) -> Value {
    let mut object = object.clone();
    if let Shape::Struct(id) = shape {
        defaults::zeros(schema, id, &mut object);
    }
    object
}

/// What Go compares a new object with: one of which nothing is set.
fn nothing(schema: &Schema, shape: Shape<'_>) -> Value {
    filled(schema, shape, &Value::Object(Map::new()))
}

fn changes(difference: &Difference) -> Set {
    let mut changes = difference.modified.clone();
    changes.union(difference.added.clone());
    changes
}

/// Records in `new` that a writer made it out of `live` by a write that is not an apply. Ownership of changed fields
/// moves to the writer; the time of its entry moves only when it changed something.
///
/// `new` may bring managedFields of its own: they replace the live ones (`[{}]` removes them), but not through a
/// subresource.
pub fn track_update(
    schema: &Schema,
    id: TypeId,
    live: Option<&Value>,
    new: &mut Value,
    writer: &Writer<'_>,
) {
    let reset = writer.subresource.is_empty() && managed::is_reset(new);
    let brought = if writer.subresource.is_empty() {
        managed::read(new).unwrap_or_default()
    } else {
        Vec::new()
    };
    meta::remove(new, "managedFields");
    let mut entries = match live {
        _ if reset => Vec::new(),
        _ if !brought.is_empty() => brought,
        Some(live) => managed::read(live).unwrap_or_default(),
        None => Vec::new(),
    };
    // An object that exists and has no managedFields is not tracked until it is applied to.
    if entries.is_empty() && live.is_some() {
        return;
    }
    let shape = Shape::Struct(id);
    let before = live.map_or_else(|| Cow::Owned(nothing(schema, shape)), Cow::Borrowed);
    let mut difference = compare(schema, shape, Some(&before), Some(new));
    difference.ignore(&writer.reset());
    let unowned = Set::of_fields(UNOWNED);
    for set in [
        &mut difference.added,
        &mut difference.modified,
        &mut difference.removed,
    ] {
        set.subtract(&unowned);
    }
    let taken = changes(&difference);
    for entry in &mut entries {
        entry.set.subtract(&taken);
        entry.set.subtract(&difference.removed);
    }
    if !taken.is_empty() {
        let mut mine = writer.entry(Operation::Update);
        mine.set = taken;
        match entries.iter_mut().find(|entry| entry.same_owner(&mine)) {
            Some(entry) => {
                entry.set.union(mine.set);
                entry.time = mine.time;
            }
            None => entries.push(mine),
        }
    }
    managed::write(new, entries);
}

#[cfg(test)]
mod tests;
