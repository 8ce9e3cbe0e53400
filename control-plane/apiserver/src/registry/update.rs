//! Change of an existing object: PUT, PATCH, and the writes of subresources.

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};
use windlass_store::{Expect, KeyValue};

use super::{
    ATTEMPTS, fill_defaults, fill_zeros, invalid, lost, name_check, owners, same_spec, stored,
    too_contended, track,
};
use crate::admission::{Attributes, Operation};
use crate::catalog::Endpoint;
use crate::context::Context;
use crate::encode;
use crate::options::WriteOptions;
use crate::storage::{Stored, store_error};

/// Makes the new object from the present one (which carries its resourceVersion), in the storage version. Is
/// called again when somebody else was faster.
pub(super) type Change<'c> = dyn FnMut(&Value) -> Result<Value, ApiError> + Send + 'c;

/// Which part of the object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but status, for kinds that have it as a subresource.
    Main,
    /// The replicas, through the scale subresource; otherwise as `Main`.
    Scale,
    /// Status, and the metadata that upstream's status strategies let through.
    Status,
    /// What the handler of this subresource has decided; only immutable metadata is protected.
    Other(&'static str),
}

impl Part {
    pub(crate) fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Scale => "scale",
            Self::Status => "status",
            Self::Other(name) => name,
        }
    }
}

/// An update's result.
pub(crate) enum Update {
    Written(Stored),
    /// It removed the last finalizer of an object that was being deleted.
    Deleted(Stored),
    /// There is no such object.
    Absent,
}

/// Changes the object `namespace/name`.
///
/// # Errors
/// 409 for a stale resourceVersion or another uid; what admission and validation object to.
pub(crate) async fn update(
    context: &Context,
    endpoint: &Endpoint,
    (namespace, name): (&str, &str),
    part: Part,
    options: &WriteOptions,
    change: &mut Change<'_>,
) -> Result<Update, ApiError> {
    let key = endpoint.cacher()?.key(namespace, name);
    let store = context.server.caches.store();
    let mut current = store.get(&key, None).await.map_err(store_error)?;
    for _ in 0..ATTEMPTS {
        let Some(kv) = current else {
            return Ok(Update::Absent);
        };
        match attempt(
            context,
            endpoint,
            (namespace, name),
            part,
            options,
            &kv,
            change,
        )
        .await?
        {
            Attempt::Done(update) => return Ok(update),
            Attempt::Lost(newer) => current = newer,
        }
    }
    Err(too_contended(endpoint, name))
}

enum Attempt {
    Done(Update),
    Lost(Option<KeyValue>),
}

async fn attempt(
    context: &Context,
    endpoint: &Endpoint,
    (namespace, name): (&str, &str),
    part: Part,
    options: &WriteOptions,
    kv: &KeyValue,
    change: &mut Change<'_>,
) -> Result<Attempt, ApiError> {
    let server = &context.server;
    let store = server.caches.store();
    let old = stored(endpoint, kv)?;
    let mut new = change(&old.versioned())?;
    check_preconditions(endpoint, name, &new, &old)?;
    protect_metadata(&mut new, &old.value);
    owners::dedup(context, &mut new);

    let attributes = Attributes {
        context,
        operation: Operation::Update,
        endpoint,
        subresource: part.subresource(),
        namespace,
        name,
        old: Some(&old.value),
        deletion: None,
        dry_run: options.dry_run,
    };
    fill_defaults(endpoint, &mut new);
    // Before admission: what it adds belongs to nobody.
    track(endpoint, Some(&old.value), &mut new, part, options);
    server.admission.admit(&attributes, &mut new).await?;
    let mut new = prepare(endpoint, new, &old.value, part);
    fill_zeros(endpoint, &mut new);
    validate(endpoint, name, &new, &old.value, part)?;
    let allocation = server
        .allocate(endpoint, &mut new, Some(&old.value), options.dry_run)
        .await?;
    server.admission.validate(&attributes, Some(&new)).await?;
    for warning in endpoint.strategy().warnings(&new, Some(&old.value)) {
        context.warn(warning);
    }

    if options.apply && timeless(&new) == timeless(&old.value) {
        new = old.value.clone();
    }
    let (value, bytes) = encode::for_storage(new);
    if bytes == old.bytes && !store.is_stale(&kv.key, old.revision) {
        return Ok(Attempt::Done(Update::Written(old)));
    }
    let revision = old.revision;
    let expect = Expect::ModRevision(revision);
    if ends_deletion(&value, &old.value) {
        if options.dry_run {
            return Ok(Attempt::Done(Update::Deleted(Stored {
                value,
                bytes,
                revision,
            })));
        }
        return match store.delete(&kv.key, expect).await {
            Ok((revision, _)) => {
                server.take_back(endpoint, &old.value).await;
                Ok(Attempt::Done(Update::Deleted(Stored {
                    value,
                    bytes,
                    revision,
                })))
            }
            Err(error) => lost(error).map(Attempt::Lost),
        };
    }
    if options.dry_run {
        return Ok(Attempt::Done(Update::Written(Stored {
            value,
            bytes,
            revision,
        })));
    }
    match store
        .put(&kv.key, bytes.clone(), expect, endpoint.stored.ttl)
        .await
    {
        Ok(revision) => {
            allocation.keep().await;
            Ok(Attempt::Done(Update::Written(Stored {
                value,
                bytes,
                revision,
            })))
        }
        Err(error) => {
            server.admission.withdraw(&attributes, &value).await;
            lost(error).map(Attempt::Lost)
        }
    }
}

/// The resourceVersion and uid that the new object names must be the present ones.
/// An object without the times of its managedFields. An applied list that is owned as a whole differs from the live one until
/// its defaults are filled in; when nothing else does, nothing has happened.
fn timeless(object: &Value) -> Value {
    let mut object = object.clone();
    let entries = object.pointer_mut("/metadata/managedFields");
    for entry in entries.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(entry) = entry.as_object_mut() {
            entry.remove("time");
        }
    }
    object
}

fn check_preconditions(
    endpoint: &Endpoint,
    name: &str,
    new: &Value,
    old: &Stored,
) -> Result<(), ApiError> {
    let version = meta::resource_version(new);
    if version.is_empty() || version == "0" {
        if !endpoint.strategy().unconditional_update() {
            let mut errors = Errors::new();
            let path = Path::new("metadata").child("resourceVersion");
            errors.invalid(&path, 0, "must be specified for an update");
            // By the resource's name: upstream's store knows no kinds.
            let (group, plural) = (endpoint.group(), endpoint.plural());
            return Err(ApiError::invalid(group, plural, name, &errors));
        }
    } else if version != old.revision.to_string() {
        if version.parse::<u64>().is_err() {
            let mut errors = Errors::new();
            let path = Path::new("metadata").child("resourceVersion");
            errors.invalid(&path, version, "must be an integer");
            return invalid(endpoint, name, &errors);
        }
        return Err(ApiError::stale(endpoint.group(), endpoint.plural(), name));
    }
    let (uid, present) = (meta::uid(new), meta::uid(&old.value));
    if !uid.is_empty() && uid != present {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {present}"
        );
        return Err(ApiError::conflict(
            endpoint.group(),
            endpoint.plural(),
            name,
            &why,
        ));
    }
    Ok(())
}

/// Restores the metadata that no client may change.
fn protect_metadata(new: &mut Value, old: &Value) {
    const KEPT: [&str; 5] = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "generation",
    ];
    /// What a client may leave out, but not change.
    const UNLESS_SAID: [&str; 2] = ["deletionTimestamp", "deletionGracePeriodSeconds"];
    let keep = |new: &mut Value, field: &str| {
        let kept = old["metadata"].get(field).cloned().unwrap_or_default();
        meta::set(new, field, kept);
    };
    for field in KEPT {
        keep(new, field);
    }
    for field in UNLESS_SAID {
        let is_fixed = field == "deletionTimestamp" && meta::is_deleting(old);
        if is_fixed || new["metadata"][field].is_null() {
            keep(new, field);
        }
    }
    meta::remove(new, "resourceVersion");
    meta::remove(new, "selfLink");
    new["apiVersion"] = old["apiVersion"].clone();
    new["kind"] = old["kind"].clone();
}

/// Keeps the part that this write may not change, then applies the kind's own rules.
fn prepare(endpoint: &Endpoint, mut new: Value, old: &Value, part: Part) -> Value {
    let strategy = endpoint.strategy();
    match part {
        Part::Main | Part::Scale => {
            if endpoint.has_status() {
                move_field(&mut new, old.get("status").cloned(), "status");
            }
            strategy.prepare_for_update(&mut new, old);
            if strategy.has_generation() && !same_spec(&new, old) {
                meta::set_generation(&mut new, meta::generation(old) + 1);
            }
            new
        }
        Part::Status => {
            let mut kept = old.clone();
            let status = new.get_mut("status").map(Value::take);
            move_field(&mut kept, status, "status");
            let writable = strategy.status_metadata().iter().chain(&["managedFields"]);
            for field in writable {
                let value = new["metadata"]
                    .get_mut(field)
                    .map(Value::take)
                    .unwrap_or_default();
                meta::set(&mut kept, field, value);
            }
            strategy.prepare_for_status_update(&mut kept, old);
            kept
        }
        // Where a pod runs is not its user's wish: its generation stays that of its creation (KEP-5067).
        Part::Other("binding") => new,
        Part::Other(_) => {
            if strategy.has_generation() && !same_spec(&new, old) {
                meta::set_generation(&mut new, meta::generation(old) + 1);
            }
            new
        }
    }
}

fn move_field(object: &mut Value, value: Option<Value>, field: &str) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    match value.filter(|value| !value.is_null()) {
        Some(value) => {
            map.insert(field.to_owned(), value);
        }
        None => {
            map.remove(field);
        }
    }
}

fn validate(
    endpoint: &Endpoint,
    name: &str,
    new: &Value,
    old: &Value,
    part: Part,
) -> Result<(), ApiError> {
    let resource = &endpoint.resource;
    let mut errors = Errors::new();
    meta::validate_update(new, old, &mut errors);
    super::standard_finalizers(resource, new, &mut errors);
    // Custom resources obey the schema of the version that was written.
    let asked = match endpoint.own() {
        Some(own) => {
            let mut pair = [new.clone(), old.clone()];
            own.asked(&mut pair)?;
            Some((own.strategy(), pair))
        }
        None => None,
    };
    let (strategy, new, old) = match &asked {
        Some((strategy, [new, old])) => (*strategy, new, old),
        None => (endpoint.strategy(), new, old),
    };
    match part {
        Part::Status => strategy.validate_status_update(new, old, &mut errors),
        Part::Main | Part::Scale => {
            meta::validate(
                new,
                resource.namespaced,
                name_check(resource.name_rule),
                &mut errors,
            );
            strategy.validate_change(new, old, &mut errors);
        }
        Part::Other(subresource) => {
            strategy.validate(new, Some(old), &mut errors);
            strategy.validate_subresource(subresource, new, old, &mut errors);
        }
    }
    invalid(endpoint, name, &errors)
}

/// Whether the write took the last thing away that kept a deleted object alive.
fn ends_deletion(new: &Value, old: &Value) -> bool {
    meta::is_deleting(old)
        && meta::finalizers(new).next().is_none()
        && new["spec"]["finalizers"]
            .as_array()
            .is_none_or(Vec::is_empty)
        && meta::deletion_grace_period_seconds(old).unwrap_or(0) == 0
}
