//! Creation.

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::Errors;
use windlass_store::{Expect, Revision};

use super::{Part, fill_defaults, invalid, lost, name_check, track};
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
/// # Errors
/// What admission, validation and the store object to; 409 when the name is taken.
pub(crate) async fn create(
    context: &Context,
    endpoint: &Endpoint,
    namespace: &str,
    object: Value,
    options: &WriteOptions,
) -> Result<Stored, ApiError> {
    let generated =
        meta::name(&object).is_empty() && !meta::generate_name_prefix(&object).is_empty();
    let attempts = if generated { NAMES } else { 1 };
    let mut last = ApiError::internal("no name was tried");
    for _ in 0..attempts {
        match create_once(context, endpoint, namespace, object.clone(), options).await {
            Err(error) if error.reason == "AlreadyExists" => last = error,
            other => return other,
        }
    }
    Err(last)
}

async fn create_once(
    context: &Context,
    endpoint: &Endpoint,
    namespace: &str,
    mut object: Value,
    options: &WriteOptions,
) -> Result<Stored, ApiError> {
    let cacher = endpoint.cacher()?;
    let server = &context.server;
    if !meta::resource_version(&object).is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    fill_metadata(&mut object, endpoint, namespace);
    let strategy = endpoint.strategy();
    fill_defaults(endpoint, &mut object);
    let name = meta::name(&object).to_owned();
    let attributes = Attributes {
        context,
        operation: Operation::Create,
        endpoint,
        subresource: "",
        namespace,
        name: &name,
        old: None,
        dry_run: options.dry_run,
    };
    // Before admission: what it adds belongs to nobody.
    track(endpoint, None, &mut object, Part::Main, options);
    server.admission.admit(&attributes, &mut object).await?;

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

    let mut errors = Errors::new();
    let resource = &endpoint.resource;
    meta::validate(
        &object,
        resource.namespaced,
        name_check(resource.name_rule),
        &mut errors,
    );
    strategy.validate(&object, &mut errors);
    // The served kind's own rules: events.k8s.io is stricter than the core group that stores for it.
    resource.strategy.validate_create(&object, &mut errors);
    invalid(endpoint, &name, &errors)?;
    let allocation = server
        .allocate(endpoint, &mut object, None, options.dry_run)
        .await?;
    server
        .admission
        .validate(&attributes, Some(&object))
        .await?;
    for warning in strategy.warnings(&object, None) {
        context.warn(warning);
    }

    let (value, bytes) = encode::for_storage(object);
    let key = cacher.key(namespace, &name);
    if options.dry_run {
        let taken = server
            .caches
            .store()
            .get(&key, None)
            .await
            .map_err(store_error)?
            .is_some();
        return if taken {
            Err(ApiError::already_exists(
                endpoint.group(),
                endpoint.plural(),
                &name,
            ))
        } else {
            Ok(Stored {
                value,
                bytes,
                revision: Revision(0),
            })
        };
    }
    let put = server
        .caches
        .store()
        .put(&key, bytes.clone(), Expect::Absent, endpoint.stored.ttl);
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
            server.admission.withdraw(&attributes, &value).await;
            lost(error)?;
            Err(ApiError::already_exists(
                endpoint.group(),
                endpoint.plural(),
                &name,
            ))
        }
    }
}

/// Sets what only the server sets.
fn fill_metadata(object: &mut Value, endpoint: &Endpoint, namespace: &str) {
    object["apiVersion"] = endpoint.stored_api_version().into();
    object["kind"] = endpoint.stored.kind.as_ref().into();
    if endpoint.resource.namespaced {
        meta::set_namespace(object, namespace);
    }
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
    ] {
        meta::remove(object, field);
    }
    let prefix = meta::generate_name_prefix(object).to_owned();
    if meta::name(object).is_empty() && !prefix.is_empty() {
        let name = meta::generate_name(&prefix, rand::random());
        meta::set_name(object, &name);
    }
    meta::set_uid(object, &uuid::Uuid::new_v4().to_string());
    meta::set_creation_timestamp(object, &now_text());
}
