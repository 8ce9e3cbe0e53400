//! Server-side apply (KEP-555): a PATCH that says what its manager wants, and creates what is not there.

use http::{Response, StatusCode};
use serde_json::Value;
use windlass_machinery::apply::{self, Writer};
use windlass_machinery::status::ApiError;
use windlass_machinery::{fields, meta};

use super::{decode, pod_subresources};
use crate::Body;
use crate::body::Decoded;
use crate::catalog::Endpoint;
use crate::context::{Context, now_text, to_served, to_stored};
use crate::options::{FieldValidation, WriteOptions};
use crate::registry::{self, Part, Update};

pub(super) async fn apply(
    context: &Context,
    endpoint: &Endpoint,
    part: Part,
    config: Decoded,
    options: &WriteOptions,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let config = checked(context, endpoint, config, options)?;
    let place = (info.namespace.as_str(), info.name.as_str());
    let mut change = |old: &Value| {
        let new = applied(endpoint, part, Some(old), &config, options)?;
        pod_subresources::restrict(part, new, old)
    };
    match registry::update(context, endpoint, place, part, options, &mut change).await? {
        Update::Written(stored) | Update::Deleted(stored) => {
            context.respond(endpoint, StatusCode::OK, &stored)
        }
        Update::Absent if part != Part::Main => Err(endpoint.not_found(&info.name)),
        Update::Absent => {
            if !meta::uid(&config).is_empty() {
                let why = format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    meta::uid(&config)
                );
                return Err(ApiError::conflict(
                    endpoint.group(),
                    endpoint.plural(),
                    &info.name,
                    &why,
                ));
            }
            context.may_create()?;
            let object = applied(endpoint, part, None, &config, options)?;
            let stored =
                registry::create(context, endpoint, &info.namespace, object, options).await?;
            context.respond(endpoint, StatusCode::CREATED, &stored)
        }
    }
}

/// The configuration as an object of the endpoint's kind, in its version.
fn checked(
    context: &Context,
    endpoint: &Endpoint,
    config: Decoded,
    options: &WriteOptions,
) -> Result<Value, ApiError> {
    if let Some(complaint) = config.duplicates.first() {
        match options.field_validation {
            FieldValidation::Strict => {
                return Err(ApiError::bad_request(format!(
                    "error strict decoding YAML: error converting YAML to JSON: {complaint}"
                )));
            }
            FieldValidation::Warn => context.warn(complaint),
            FieldValidation::Ignore => {}
        }
    }
    let api_version = endpoint.api_version();
    let [stated, kind] =
        ["apiVersion", "kind"].map(|field| config.value[field].as_str().unwrap_or_default());
    if (stated, kind) != (api_version.as_str(), endpoint.kind()) {
        let (group, version) = stated.split_once('/').unwrap_or(("", stated));
        return Err(ApiError::bad_request(format!(
            "invalid object type: {group}/{version}, Kind={kind}"
        )));
    }
    typed(context, endpoint, &config.value)?;
    let config = Decoded {
        duplicates: Vec::new(),
        ..config
    };
    let expected = decode::Expected::of(endpoint, &api_version);
    let mut config = decode::checked(context, &expected, config, options.field_validation)?;
    let info = &context.info;
    // What is applied needs not name itself: the live object does.
    if meta::name(&config).is_empty() {
        meta::set_name(&mut config, &info.name);
    }
    decode::replaces(endpoint, &mut config, (&info.namespace, &info.name))?;
    Ok(config)
}

/// Nobody can own a field that the kind does not have, or parts of what has none, so either is an error however lax the
/// validation.
fn typed(context: &Context, endpoint: &Endpoint, config: &Value) -> Result<(), ApiError> {
    let version = endpoint.version();
    let mut copy = config.clone();
    let report = fields::check(&version.schema, version.type_id, &mut copy);
    let unknown = report.unknown.iter();
    let unknown = unknown.map(|field| format!(".{field}: field not declared in schema"));
    let faults: Vec<String> = unknown.chain(report.mistyped).collect();
    let faults = match faults.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let info = &context.info;
    let name = format!("{}/{}", info.namespace, info.name);
    let api_version = endpoint.api_version();
    let kind = endpoint.kind();
    // Upstream gives it no reason.
    Err(ApiError::new(
        500,
        "",
        format!(
            "failed to create typed patch object ({}; {api_version}, Kind={kind}): {faults}",
            name.trim_start_matches('/')
        ),
    ))
}

/// What becomes of the live object, in the storage version.
fn applied(
    endpoint: &Endpoint,
    part: Part,
    live: Option<&Value>,
    config: &Value,
    options: &WriteOptions,
) -> Result<Value, ApiError> {
    let live = live.map(|live| {
        let mut live = live.clone();
        to_served(endpoint, &mut live).map(|()| live)
    });
    let live = live.transpose()?;
    let version = endpoint.version();
    let writer = Writer {
        manager: &options.field_manager,
        api_version: &endpoint.api_version(),
        subresource: part.subresource(),
        now: &now_text(),
        reset_fields: registry::reset_fields(endpoint, part),
    };
    let mut object = apply::apply(
        &version.schema,
        version.type_id,
        live.as_ref(),
        config,
        &writer,
        options.force,
    )?;
    to_stored(endpoint, &mut object)?;
    Ok(object)
}
