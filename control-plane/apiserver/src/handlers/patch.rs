//! PATCH in its four forms.

use http::{Response, StatusCode};
use serde_json::Value;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};
use windlass_machinery::{meta, patch};

use super::decode::{self, Misfit};
use super::pod_subresources;
use crate::Body;
use crate::body::{self, Decoded};
use crate::catalog::Endpoint;
use crate::context::{Context, to_served, to_stored};
use crate::negotiation::MediaType;
use crate::options::WriteOptions;
use crate::registry::{self, Part, Update};

pub(super) async fn patch(
    context: &Context,
    endpoint: &Endpoint,
    part: Part,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let media = MediaType::of_patch(&context.headers)?;
    let is_custom = endpoint.is_custom();
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
        let form = if apply { "YAML" } else { "patch" };
        ApiError::bad_request(format!("error decoding {form}: {}", error.message))
    })?;
    if apply {
        return super::apply::apply(context, endpoint, part, patch, &options).await;
    }
    let place = (info.namespace.as_str(), info.name.as_str());
    let mut change = |old: &Value| {
        let patched = patched(context, endpoint, media, &patch, old, &options)?;
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
    patch: &Decoded,
    old: &Value,
    options: &WriteOptions,
) -> Result<Value, ApiError> {
    let apply = || -> Result<Value, ApiError> {
        let mut object = old.clone();
        to_served(endpoint, &mut object)?;
        apply_patch(media, endpoint, &mut object, &patch.value)?;
        Ok(object)
    };
    let api_version = endpoint.api_version();
    let expected = decode::Expected::of(endpoint, &api_version);
    let mut decoded = Decoded {
        value: apply()?,
        duplicates: patch.duplicates.clone(),
    };
    if let Err(why) = decode::stated(&expected, &decoded.value) {
        return Err(unfit(Misfit::Fields(why), false, decoded.value.to_string()));
    }
    decode::of_kind(&expected, &mut decoded.value)?;
    let mut object = match decode::fitting(context, &expected, decoded, options.field_validation) {
        Ok(object) => object,
        Err(misfit) if media == MediaType::StrategicMergePatch => {
            return Err(unfit(misfit, true, go_format(&patch.value)));
        }
        Err(misfit) => return Err(unfit(misfit, false, apply()?.to_string())),
    };
    let place = (meta::namespace(old), meta::name(old));
    decode::replaces(endpoint, &mut object, place)?;
    to_stored(endpoint, &mut object)?;
    Ok(object)
}

/// The answer to a patch whose result is no object of the kind: upstream calls the patch invalid, and shows it where it is
/// of the strategic kind, else what it made of the object.
fn unfit(misfit: Misfit, strategic: bool, shown: String) -> ApiError {
    let why = match misfit {
        Misfit::Type { restoring, .. } if strategic => restoring,
        Misfit::Type { decoding, .. } => decoding,
        Misfit::Fields(why) => why,
    };
    let mut errors = Errors::new();
    errors.invalid(&Path::new("patch"), shown, why);
    ApiError::invalid("", "", "", &errors)
}

/// As Go's `%+v` prints decoded JSON.
fn go_format(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(go_format).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let entries: Vec<_> = map
                .iter()
                .map(|(key, value)| format!("{key}:{}", go_format(value)))
                .collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
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
        _ => patch::merge_object(object, change),
    }
}
