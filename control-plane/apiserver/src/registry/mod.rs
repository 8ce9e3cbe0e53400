//! The life of an object in the store: creation, change and deletion, the same for every kind.
//!
//! Follows upstream's generic registry (`k8s.io/apiserver/pkg/registry`): what a client may set, the order of
//! defaults, admission and validation, optimistic loops on the revision, finalizers and grace. Objects are in
//! their storage version here.

mod create;
mod delete;
mod owners;
mod update;

use serde_json::Value;
use windlass_api::resource::{Conversion, NameRule, Resource};
use windlass_machinery::apply::{self, Writer};
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};
use windlass_machinery::{defaults, meta, names};
use windlass_store::{KeyValue, StoreError};

pub(crate) use self::create::create;
pub(crate) use self::delete::{Deleted, delete};
pub(crate) use self::update::{Part, Update, update};
use crate::catalog::Endpoint;
use crate::context::{Context, now_text, to_present};
use crate::options::WriteOptions;
use crate::storage::{Stored, store_error};

/// How often a write starts over because somebody else was faster.
const ATTEMPTS: usize = 64;

fn name_check(rule: NameRule) -> fn(&str) -> Vec<String> {
    match rule {
        NameRule::DnsSubdomain => names::is_dns1123_subdomain,
        NameRule::DnsLabel => names::is_dns1123_label,
        NameRule::Dns1035Label => names::is_dns1035_label,
        NameRule::PathSegment => names::is_path_segment,
    }
}

/// The groups whose kinds may have no finalizers of the cluster's own domain but Kubernetes' own.
const STANDARD_FINALIZERS: [&str; 12] = [
    "",
    "apps",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
];

fn standard_finalizers(resource: &Resource, object: &Value, errors: &mut Errors) {
    let path = Path::new("metadata").child("finalizers");
    let finalizers = meta::finalizers(object).enumerate();
    if STANDARD_FINALIZERS.contains(&&*resource.group) {
        finalizers.for_each(|(i, f)| meta::standard_finalizer(f, &path.index(i), errors));
    }
}

fn invalid(endpoint: &Endpoint, name: &str, errors: &Errors) -> Result<(), ApiError> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(
        endpoint.group(),
        endpoint.kind(),
        name,
        errors,
    ))
}

/// Reads an object from the store.
///
/// # Errors
/// 404 when there is none.
pub(crate) async fn read(
    context: &Context,
    endpoint: &Endpoint,
    namespace: &str,
    name: &str,
) -> Result<Stored, ApiError> {
    stored(
        endpoint,
        &read_bytes(context, endpoint, namespace, name).await?,
    )
}

/// What a key holds, in the present storage version.
fn stored(endpoint: &Endpoint, kv: &KeyValue) -> Result<Stored, ApiError> {
    let mut stored = Stored::read(kv)?;
    to_present(endpoint, &mut stored.value)?;
    // An older build may have written it, and what is compared with it has them.
    fill_zeros(endpoint, &mut stored.value);
    Ok(stored)
}

/// Reads an object from the store, without decoding it.
///
/// # Errors
/// 404 when there is none.
pub(crate) async fn read_bytes(
    context: &Context,
    endpoint: &Endpoint,
    namespace: &str,
    name: &str,
) -> Result<KeyValue, ApiError> {
    let key = endpoint.cacher()?.key(namespace, name);
    let found = context
        .server
        .caches
        .store()
        .get(&key, None)
        .await
        .map_err(store_error)?;
    found.ok_or_else(|| endpoint.not_found(name))
}

/// What a write that lost against another one finds instead; `None`: nothing.
fn lost(error: StoreError) -> Result<Option<KeyValue>, ApiError> {
    match error {
        StoreError::Conflict { current } => Ok(current.map(|kv| *kv)),
        other => Err(store_error(other)),
    }
}

fn too_contended(endpoint: &Endpoint, name: &str) -> ApiError {
    ApiError::conflict(
        endpoint.group(),
        endpoint.plural(),
        name,
        "the object is being changed too often; please try again",
    )
}

/// Whether two objects are the same but for metadata and status.
fn same_spec(a: &Value, b: &Value) -> bool {
    let parts = |value: &Value| -> Vec<(String, Value)> {
        let map = value.as_object().cloned().unwrap_or_default();
        map.into_iter()
            .filter(|(k, _)| !matches!(k.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
            .collect()
    };
    parts(a) == parts(b)
}

/// Fills in what is left out: first what the schema table states (a port's protocol, everything of a custom
/// resource), then what the kind's own rules say.
pub(crate) fn fill_defaults(endpoint: &Endpoint, object: &mut Value) {
    let version = &endpoint.stored.versions[endpoint.stored.storage];
    defaults::apply(&version.schema, version.type_id, object);
    endpoint.strategy().default(object);
    fill_zeros(endpoint, object);
}

/// Writes into an object of the storage version what Go never leaves out: it is stored and sent with that, and all that looks
/// at objects (patches, admission, rules) finds what upstream's would.
fn fill_zeros(endpoint: &Endpoint, object: &mut Value) {
    let version = &endpoint.stored.versions[endpoint.stored.storage];
    defaults::zeros(&version.schema, version.type_id, object);
}

/// Keeps `metadata.managedFields` in step with a write that is not an apply.
fn track(
    endpoint: &Endpoint,
    old: Option<&Value>,
    new: &mut Value,
    part: Part,
    options: &WriteOptions,
) {
    if options.apply {
        return;
    }
    // Fields have their owners under the names of the version that was written. Those of custom resources name the same
    // ones, mostly: no webhook is asked.
    let (from_storage, version, api_version) = match &endpoint.version().convert {
        Some(Conversion::Fixed { from_storage, .. }) => (
            Some(from_storage),
            endpoint.version(),
            endpoint.api_version(),
        ),
        _ => {
            let version = &endpoint.stored.versions[endpoint.stored.storage];
            (None, version, endpoint.stored_api_version())
        }
    };
    let writer = Writer {
        manager: &options.field_manager,
        api_version: &api_version,
        subresource: part.subresource(),
        now: &now_text(),
        reset_fields: reset_fields(endpoint, part),
    };
    let (schema, id) = (&version.schema, version.type_id);
    let Some(from_storage) = from_storage else {
        return apply::track_update(schema, id, old, new, &writer);
    };
    let served = |object: &Value| {
        let mut object = object.clone();
        from_storage(&mut object);
        defaults::zeros(schema, id, &mut object);
        object
    };
    let (old, mut written) = (old.map(served), served(new));
    apply::track_update(schema, id, old.as_ref(), &mut written, &writer);
    match meta::remove(&mut written, "managedFields") {
        Some(fields) => meta::set(new, "managedFields", fields),
        None => drop(meta::remove(new, "managedFields")),
    }
}

/// Fields that nobody comes to own through this part, since it cannot write them.
pub(crate) fn reset_fields(endpoint: &Endpoint, part: Part) -> &'static [&'static str] {
    match part {
        Part::Main | Part::Scale if endpoint.has_status() => &["status"],
        Part::Status => &["spec"],
        _ => &[],
    }
}
