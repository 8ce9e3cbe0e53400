//! Deletion: preconditions, finalizers of the garbage collector, grace, and the end.

use serde_json::Value;
use windlass_api::resource::Deletion;
use windlass_machinery::status::ApiError;
use windlass_machinery::{meta, time};
use windlass_store::{Expect, KeyValue};

use super::{ATTEMPTS, lost, stored, too_contended};
use crate::admission::{Attributes, Operation};
use crate::catalog::Endpoint;
use crate::context::{Context, now};
use crate::encode;
use crate::options::{DeleteOptions, Propagation};
use crate::storage::{Stored, store_error};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

const JOBS: (&str, &str) = ("batch", "jobs");
/// Whose dependents stay when the deletion does not say what becomes of them, as it was before there was a choice.
const ORPHANING: [(&str, &str); 2] = [("", "replicationcontrollers"), JOBS];
const PODS_STAY: &str = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background \
     to remove them or set propagationPolicy=Orphan to suppress this warning";

/// A deletion's result.
pub(crate) enum Deleted {
    /// The object is gone; its last state.
    Gone(Stored),
    /// It stays, marked, until its finalizers or its grace have ended.
    Marked(Stored),
}

impl Deleted {
    pub(crate) fn stored(&self) -> &Stored {
        match self {
            Self::Gone(stored) | Self::Marked(stored) => stored,
        }
    }
}

/// Deletes the object `namespace/name`.
///
/// # Errors
/// 404 when there is none, 409 when a precondition fails, what admission objects to.
pub(crate) async fn delete(
    context: &Context,
    endpoint: &Endpoint,
    (namespace, name): (&str, &str),
    options: &DeleteOptions,
) -> Result<Deleted, ApiError> {
    if options.propagation.is_none() && (endpoint.group(), endpoint.plural()) == JOBS {
        context.warn(PODS_STAY);
    }
    let store = context.server.caches.store();
    let key = endpoint.cacher()?.key(namespace, name);
    let mut current = store.get(&key, None).await.map_err(store_error)?;
    let mut admitted = false;
    for _ in 0..ATTEMPTS {
        let kv = current.ok_or_else(|| endpoint.not_found(name))?;
        let old = stored(endpoint, &kv)?;
        check_preconditions(endpoint, name, &old, options)?;
        if !admitted {
            let shown = DeleteOptions {
                grace_seconds: grace(endpoint, &old.value, options),
                ..options.clone()
            };
            let attributes = Attributes {
                context,
                operation: Operation::Delete,
                endpoint,
                subresource: "",
                namespace,
                name,
                old: Some(&old.value),
                deletion: Some(&shown),
                dry_run: options.dry_run,
            };
            context.server.admission.validate(&attributes, None).await?;
            admitted = true;
        }
        match attempt(context, endpoint, &kv, old, options).await? {
            Ok(deleted) => return Ok(deleted),
            Err(newer) => current = newer,
        }
    }
    Err(too_contended(endpoint, name))
}

/// The seconds that admission is told: a graceful deletion's as they come to be, where the client names none.
fn grace(endpoint: &Endpoint, old: &Value, options: &DeleteOptions) -> Option<i64> {
    match endpoint.strategy().deletion(old, options.grace_seconds) {
        Deletion::Graceful { seconds } => Some(seconds),
        Deletion::Immediate => options.grace_seconds,
    }
}

fn check_preconditions(
    endpoint: &Endpoint,
    name: &str,
    old: &Stored,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    // Upstream names the kind here, not the resource.
    let conflict = |what: &str, wanted: &str, present: &str, done: &str| {
        let why = format!(
            "the {what} in the precondition ({wanted}) does not match the {what} in record ({present}). The object might \
             have been {done}"
        );
        Err(ApiError::conflict(
            endpoint.group(),
            endpoint.kind(),
            name,
            &why,
        ))
    };
    if let Some(wanted) = options.uid.as_deref()
        && wanted != meta::uid(&old.value)
    {
        let done = "deleted and then recreated";
        return conflict("UID", wanted, meta::uid(&old.value), done);
    }
    if let Some(wanted) = options.resource_version.as_deref()
        && wanted != old.revision.to_string()
    {
        let present = old.revision.to_string();
        return conflict("ResourceVersion", wanted, &present, "modified");
    }
    Ok(())
}

/// What a DELETE does to the object as it is.
enum Step {
    Remove,
    Mark(Value),
    /// It is being deleted already, and this request does not hurry it.
    Nothing,
}

async fn attempt(
    context: &Context,
    endpoint: &Endpoint,
    kv: &KeyValue,
    old: Stored,
    options: &DeleteOptions,
) -> Result<Result<Deleted, Option<KeyValue>>, ApiError> {
    let server = &context.server;
    let store = server.caches.store();
    let expect = Expect::ModRevision(old.revision);
    match step(endpoint, &old.value, options) {
        Step::Nothing => Ok(Ok(Deleted::Marked(old))),
        Step::Remove if options.dry_run => Ok(Ok(Deleted::Gone(old))),
        Step::Remove => match store.delete(&kv.key, expect).await {
            Ok((revision, _)) => {
                server.take_back(endpoint, &old.value).await;
                Ok(Ok(Deleted::Gone(Stored { revision, ..old })))
            }
            Err(error) => lost(error).map(Err),
        },
        Step::Mark(marked) => {
            let (value, bytes) = encode::for_storage(marked);
            let revision = old.revision;
            if options.dry_run || bytes == old.bytes {
                return Ok(Ok(Deleted::Marked(Stored {
                    value,
                    bytes,
                    revision,
                })));
            }
            match store
                .put(&kv.key, bytes.clone(), expect, endpoint.stored.ttl)
                .await
            {
                Ok(revision) => Ok(Ok(Deleted::Marked(Stored {
                    value,
                    bytes,
                    revision,
                }))),
                Err(error) => lost(error).map(Err),
            }
        }
    }
}

fn step(endpoint: &Endpoint, old: &Value, options: &DeleteOptions) -> Step {
    let pending = meta::deletion_grace_period_seconds(old).filter(|_| meta::is_deleting(old));
    if let Some(pending) = pending.filter(|seconds| *seconds > 0) {
        // Graceful deletion has begun: it can only be shortened.
        return match options.grace_seconds {
            Some(wanted) if wanted < pending => shorten(old, pending, wanted),
            _ => Step::Nothing,
        };
    }
    let grace = if meta::is_deleting(old) {
        0
    } else {
        match endpoint.strategy().deletion(old, options.grace_seconds) {
            Deletion::Immediate => 0,
            Deletion::Graceful { seconds } => seconds.max(0),
        }
    };
    let orphaning = ORPHANING.contains(&(endpoint.group(), endpoint.plural()));
    let finalizers = finalizers_after(old, options.propagation, orphaning);
    let held = !finalizers.is_empty() || has_spec_finalizers(old);
    if grace == 0 && !held {
        return Step::Remove;
    }
    let mut marked = old.clone();
    meta::set(
        &mut marked,
        "finalizers",
        if finalizers.is_empty() {
            Value::Null
        } else {
            finalizers.into()
        },
    );
    if !meta::is_deleting(old) {
        mark(endpoint, &mut marked, grace);
    }
    Step::Mark(marked)
}

fn shorten(old: &Value, pending: i64, wanted: i64) -> Step {
    let wanted = wanted.max(0);
    if wanted == 0 && meta::finalizers(old).next().is_none() {
        return Step::Remove;
    }
    let begun = meta::deletion_timestamp(old)
        .and_then(time::parse_seconds)
        .map(|end| end - pending);
    let mut marked = old.clone();
    let end = begun.unwrap_or_else(now) + wanted;
    meta::set(&mut marked, "deletionTimestamp", time::format(end));
    meta::set(&mut marked, "deletionGracePeriodSeconds", wanted);
    Step::Mark(marked)
}

fn mark(endpoint: &Endpoint, object: &mut Value, grace: i64) {
    meta::set(object, "deletionTimestamp", time::format(now() + grace));
    meta::set(object, "deletionGracePeriodSeconds", grace);
    if meta::generation(object) > 0 {
        let next = meta::generation(object) + 1;
        meta::set_generation(object, next);
    }
    if is_namespace(endpoint) {
        object["status"]["phase"] = "Terminating".into();
        // Upstream's namespaces have no grace period.
        meta::remove(object, "deletionGracePeriodSeconds");
    }
}

fn is_namespace(endpoint: &Endpoint) -> bool {
    endpoint.group().is_empty() && endpoint.plural() == "namespaces"
}

/// Namespaces are held by `spec.finalizers` as well.
fn has_spec_finalizers(object: &Value) -> bool {
    object["kind"] == "Namespace"
        && object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|list| !list.is_empty())
}

/// The finalizers with those that the propagation policy asks the garbage collector for.
fn finalizers_after(
    object: &Value,
    propagation: Option<Propagation>,
    orphaning: bool,
) -> Vec<String> {
    let had = |name: &str| meta::finalizers(object).any(|f| f == name);
    let (orphan, foreground) = match propagation {
        Some(Propagation::Orphan) => (true, false),
        Some(Propagation::Foreground) => (false, true),
        Some(Propagation::Background) => (false, false),
        None if had(FOREGROUND) => (had(ORPHAN), true),
        None => (orphaning || had(ORPHAN), false),
    };
    let mut finalizers: Vec<String> = meta::finalizers(object)
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .map(str::to_owned)
        .collect();
    if orphan {
        finalizers.push(ORPHAN.to_owned());
    }
    if foreground {
        finalizers.push(FOREGROUND.to_owned());
    }
    finalizers
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_policy_decides_which_finalizer_the_collector_gets() {
        let object = json!({"metadata": {"finalizers": ["a", "orphan"]}});
        assert_eq!(finalizers_after(&object, None, false), ["a", "orphan"]);
        let bare = json!({"metadata": {}});
        assert_eq!(finalizers_after(&bare, None, true), ["orphan"]);
        let waits = json!({"metadata": {"finalizers": ["foregroundDeletion"]}});
        assert_eq!(finalizers_after(&waits, None, true), ["foregroundDeletion"]);
        assert_eq!(
            finalizers_after(&object, Some(Propagation::Background), true),
            ["a"]
        );
        assert_eq!(
            finalizers_after(&object, Some(Propagation::Foreground), true),
            ["a", "foregroundDeletion"]
        );
    }
}
