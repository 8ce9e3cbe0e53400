//! Creation.

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::Errors;
use windlass_store::{Expect, KeyValue, Revision};

use super::{Part, fill_defaults, fill_zeros, invalid, lost, name_check, owners, track};
use crate::admission::{Attributes, Operation};
use crate::catalog::Endpoint;
use crate::context::{Context, now_text};
use crate::encode;
use crate::options::WriteOptions;
use crate::storage::{Stored, store_error};

/// Names that are tried for a `generateName` before giving up, as upstream.
const NAMES: usize = 8;

/// Creates `object`, which has been decoded and checked against its schema.
///
/// As upstream, what may change the object sees it without name and uid where the server makes them up, and is asked
/// once; a name that is taken costs another name, and what may refuse the object is asked about that one too.
///
/// # Errors
/// What admission, validation and the store object to; 409 when the name is taken.
pub(crate) async fn create(
    context: &Context,
    endpoint: &Endpoint,
    namespace: &str,
    mut object: Value,
    options: &WriteOptions,
) -> Result<Stored, ApiError> {
    if !meta::resource_version(&object).is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    wipe_metadata(&mut object, endpoint, namespace);
    owners::dedup(context, &mut object);
    fill_defaults(endpoint, &mut object);
    // Before admission: what it adds belongs to nobody.
    track(endpoint, None, &mut object, Part::Main, options);
    let asked = meta::name(&object).to_owned();
    let attributes = Attributes {
        context,
        operation: Operation::Create,
        endpoint,
        subresource: "",
        namespace,
        name: &asked,
        old: None,
        deletion: None,
        dry_run: options.dry_run,
    };
    let server = &context.server;
    server.admission.admit(&attributes, &mut object).await?;

    let prefix = meta::generate_name_prefix(&object).to_owned();
    let generates = meta::name(&object).is_empty() && !prefix.is_empty();
    let attempts = if generates { NAMES } else { 1 };
    let mut last = ApiError::internal("no name was tried");
    for left in (0..attempts).rev() {
        let mut candidate = if left == 0 {
            std::mem::take(&mut object)
        } else {
            object.clone()
        };
        if generates {
            let name = meta::generate_name(&prefix, rand::random());
            meta::set_name(&mut candidate, &name);
        }
        meta::set_uid(&mut candidate, &uuid::Uuid::new_v4().to_string());
        meta::set_creation_timestamp(&mut candidate, &now_text());
        let name = meta::name(&candidate).to_owned();
        let named = Attributes {
            name: &name,
            ..attributes
        };
        match create_named(&named, candidate).await {
            Err(error) if generates && error.reason == "AlreadyExists" => {
                last = ApiError::name_not_generated(endpoint.group(), endpoint.plural(), &name);
            }
            other => return other,
        }
    }
    Err(last)
}

/// Validates and stores an object that has all its metadata, under the name that `attributes` say.
async fn create_named(attributes: &Attributes<'_>, mut object: Value) -> Result<Stored, ApiError> {
    let Attributes {
        context,
        endpoint,
        namespace,
        name,
        dry_run,
        ..
    } = *attributes;
    let cacher = endpoint.cacher()?;
    let server = &context.server;
    let strategy = endpoint.strategy();
    // A Node brings its own status: the kubelet registers with it.
    if endpoint.has_status()
        && endpoint.plural() != "nodes"
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    if strategy.has_generation() {
        meta::set_generation(&mut object, 1);
    } else {
        meta::remove(&mut object, "generation");
    }
    strategy.prepare_for_create(&mut object);
    fill_zeros(endpoint, &mut object);
    check(endpoint, name, &object)?;
    let allocation = server
        .allocate(endpoint, &mut object, None, dry_run)
        .await?;
    server.admission.validate(attributes, Some(&object)).await?;
    for warning in strategy.warnings(&object, None) {
        context.warn(warning);
    }

    let (value, bytes) = encode::for_storage(object);
    let key = cacher.key(namespace, name);
    let store = server.caches.store();
    if dry_run {
        return match store.get(&key, None).await.map_err(store_error)? {
            Some(present) => Err(taken(endpoint, name, &present)),
            None => Ok(Stored {
                value,
                bytes,
                revision: Revision(0),
            }),
        };
    }
    let put = store.put(&key, bytes.clone(), Expect::Absent, endpoint.stored.ttl);
    match put.await {
        Ok(revision) => {
            allocation.keep().await;
            Ok(Stored {
                value,
                bytes,
                revision,
            })
        }
        Err(error) => {
            server.admission.withdraw(attributes, &value).await;
            Err(match lost(error)? {
                Some(present) => taken(endpoint, name, &present),
                None => ApiError::already_exists(endpoint.group(), endpoint.plural(), name),
            })
        }
    }
}

fn check(endpoint: &Endpoint, name: &str, object: &Value) -> Result<(), ApiError> {
    let resource = &endpoint.resource;
    let mut errors = Errors::new();
    meta::validate(
        object,
        resource.namespaced,
        name_check(resource.name_rule),
        &mut errors,
    );
    super::standard_finalizers(resource, object, &mut errors);
    match endpoint.own() {
        Some(own) => {
            let mut asked = object.clone();
            own.asked(std::slice::from_mut(&mut asked))?;
            own.strategy().validate(&asked, None, &mut errors);
        }
        None => endpoint.strategy().validate(object, None, &mut errors),
    }
    // The served kind's own rules: events.k8s.io is stricter than the core group that stores for it.
    resource.strategy.validate_create(object, &mut errors);
    invalid(endpoint, name, &errors)
}

/// The error of a name that `present` has; it says so when that is on its way out.
fn taken(endpoint: &Endpoint, name: &str, present: &KeyValue) -> ApiError {
    let mut error = ApiError::already_exists(endpoint.group(), endpoint.plural(), name);
    if Stored::read(present).is_ok_and(|present| meta::is_deleting(&present.value)) {
        error.message = format!("object is being deleted: {}", error.message);
    }
    error
}

/// Sets and removes what no client may say.
fn wipe_metadata(object: &mut Value, endpoint: &Endpoint, namespace: &str) {
    object["apiVersion"] = endpoint.stored_api_version().into();
    object["kind"] = endpoint.stored.kind.as_ref().into();
    if endpoint.resource.namespaced {
        meta::set_namespace(object, namespace);
    }
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
    ] {
        meta::remove(object, field);
    }
}
