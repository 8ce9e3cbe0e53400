//! Server-side apply (KEP-555): a PATCH that says what its manager wants, and creates what is not there.

use http::{Response, StatusCode};
use serde_json::Value;
use windlass_machinery::apply::{self, Writer};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::{decode, pod_subresources, update};
use crate::Body;
use crate::body::Decoded;
use crate::catalog::Endpoint;
use crate::context::{Context, now_text, to_served, to_stored};
use crate::options::WriteOptions;
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
            update::may_create(context)?;
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
    for field in ["apiVersion", "kind"] {
        if config.value[field].as_str().is_none_or(str::is_empty) {
            return Err(ApiError::bad_request(format!(
                "error decoding YAML: {field} must be set in an applied configuration"
            )));
        }
    }
    let version = endpoint.version();
    let api_version = endpoint.api_version();
    let expected = decode::Expected {
        api_version: &api_version,
        kind: endpoint.kind(),
        schema: &version.schema,
        type_id: version.type_id,
    };
    let mut config = decode::checked(context, &expected, config, options.field_validation)?;
    decode::place(
        endpoint,
        &mut config,
        &context.info.namespace,
        Some(&context.info.name),
    )?;
    Ok(config)
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
        to_served(endpoint, &mut live);
        live
    });
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
    to_stored(endpoint, &mut object);
    Ok(object)
}
