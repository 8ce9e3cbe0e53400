//! PATCH in its four forms.

use http::{Response, StatusCode};
use serde_json::Value;
use windlass_machinery::status::ApiError;
use windlass_machinery::{meta, patch};

use super::{decode, pod_subresources};
use crate::Body;
use crate::body::{self, Decoded};
use crate::catalog::Endpoint;
use crate::context::{Context, to_served};
use crate::negotiation::MediaType;
use crate::options::{FieldValidation, WriteOptions};
use crate::registry::{self, Part, Update};

pub(super) async fn patch(
    context: &Context,
    endpoint: &Endpoint,
    part: Part,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let media = MediaType::of_patch(&context.headers)?;
    let is_custom = endpoint.version().openapi.is_some();
    if is_custom && media == MediaType::StrategicMergePatch {
        // Nothing says how their lists merge.
        return Err(ApiError::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, \
             application/merge-patch+json, application/apply-patch+yaml",
        ));
    }
    let apply = media == MediaType::ApplyPatch;
    let options = WriteOptions::parse(&context.query, "PatchOptions", context.user_agent(), apply)?;
    let bytes = body::read(&context.headers, body).await?;
    let patch = body::decode(media, &bytes).map_err(|error| {
        ApiError::bad_request(format!("error decoding patch: {}", error.message))
    })?;
    if apply {
        return super::apply::apply(context, endpoint, part, patch, &options).await;
    }
    for complaint in &patch.duplicates {
        match options.field_validation {
            FieldValidation::Strict => {
                return Err(ApiError::bad_request(format!(
                    "strict decoding error: {complaint}"
                )));
            }
            FieldValidation::Warn => context.warn(complaint),
            FieldValidation::Ignore => {}
        }
    }
    let place = (info.namespace.as_str(), info.name.as_str());
    let mut change = |old: &Value| {
        let patched = patched(context, endpoint, media, &patch.value, old, &options)?;
        pod_subresources::restrict(part, patched, old)
    };
    match registry::update(context, endpoint, place, part, &options, &mut change).await? {
        Update::Written(stored) | Update::Deleted(stored) => {
            context.respond(endpoint, StatusCode::OK, &stored)
        }
        Update::Absent => Err(endpoint.not_found(&info.name)),
    }
}

/// The present object with the patch applied, in the storage version.
fn patched(
    context: &Context,
    endpoint: &Endpoint,
    media: MediaType,
    change: &Value,
    old: &Value,
    options: &WriteOptions,
) -> Result<Value, ApiError> {
    let mut object = old.clone();
    to_served(endpoint, &mut object)?;
    let version = endpoint.version();
    apply_patch(media, endpoint, &mut object, change)?;
    let api_version = endpoint.api_version();
    let expected = decode::Expected {
        api_version: &api_version,
        kind: endpoint.kind(),
        schema: &version.schema,
        type_id: version.type_id,
    };
    let decoded = Decoded {
        value: object,
        duplicates: Vec::new(),
    };
    let object = decode::checked(context, &expected, decoded, options.field_validation)?;
    decode::located(
        endpoint,
        object,
        meta::namespace(old),
        Some(meta::name(old)),
    )
}

/// Applies a patch of any form but apply to an object in the endpoint's version.
pub(super) fn apply_patch(
    media: MediaType,
    endpoint: &Endpoint,
    object: &mut Value,
    change: &Value,
) -> Result<(), ApiError> {
    let version = endpoint.version();
    match media {
        MediaType::JsonPatch => patch::json(object, change),
        MediaType::StrategicMergePatch => {
            patch::strategic(&version.schema, version.type_id, object, change)
        }
        _ => {
            patch::merge(object, change);
            Ok(())
        }
    }
}
