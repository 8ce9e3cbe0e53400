//! The scale subresource: `autoscaling/v1` Scale over whatever paths the kind keeps its numbers at.

use http::{Response, StatusCode};
use serde_json::{Value, json};
use windlass_api::resource::ScalePaths;
use windlass_machinery::selector::LabelSelector;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};
use windlass_machinery::{meta, patch as patches};

use super::decode;
use crate::Body;
use crate::body;
use crate::catalog::Endpoint;
use crate::context::{Context, now};
use crate::negotiation::{MediaType, Transform};
use crate::options::WriteOptions;
use crate::registry::{self, Part, Update};
use crate::table;

const API_VERSION: &str = "autoscaling/v1";
const KIND: &str = "Scale";

pub(super) async fn get(
    context: &Context,
    endpoint: &Endpoint,
    paths: &ScalePaths,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let stored = registry::read(context, endpoint, &info.namespace, &info.name).await?;
    let scale = scale_of(&stored.versioned(), paths);
    let shown = match context.accepted.transform {
        Transform::Table { beta } => {
            table::of_scale(&scale, table::Include::parse(&context.query)?, beta, now())
        }
        _ => scale,
    };
    Ok(context.respond_plain(StatusCode::OK, shown))
}

pub(super) async fn update(
    context: &Context,
    endpoint: &Endpoint,
    paths: &ScalePaths,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let options =
        WriteOptions::parse(&context.query, "UpdateOptions", context.user_agent(), false)?;
    let scale = decode::builtin(context, API_VERSION, KIND, body, options.field_validation).await?;
    write(context, endpoint, paths, &options, &mut |_| {
        Ok(scale.clone())
    })
    .await
}

pub(super) async fn patch(
    context: &Context,
    endpoint: &Endpoint,
    paths: &ScalePaths,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let media = MediaType::of_patch(&context.headers)?;
    let apply = media == MediaType::ApplyPatch;
    let options = WriteOptions::parse(&context.query, "PatchOptions", context.user_agent(), apply)?;
    let bytes = body::read(&context.headers, body).await?;
    let patch = body::decode(media, &bytes)?.value;
    let mut change = |present: &Value| {
        let mut scale = present.clone();
        match media {
            MediaType::JsonPatch => patches::json(&mut scale, &patch)?,
            // A Scale has no lists, so that all merges are the same.
            _ => patches::merge(&mut scale, &patch),
        }
        Ok(scale)
    };
    write(context, endpoint, paths, &options, &mut change).await
}

async fn write(
    context: &Context,
    endpoint: &Endpoint,
    paths: &ScalePaths,
    options: &WriteOptions,
    scale: &mut (dyn FnMut(&Value) -> Result<Value, ApiError> + Send),
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let place = (info.namespace.as_str(), info.name.as_str());
    let mut change = |old: &Value| {
        let mut scale = scale(&scale_of(old, paths))?;
        decode::replaces(endpoint, &mut scale, place)?;
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let mut errors = Errors::new();
            let path = Path::new("spec").child("replicas");
            errors.invalid(&path, replicas, "must be greater than or equal to 0");
            return Err(ApiError::invalid("autoscaling", KIND, &info.name, &errors));
        }
        let mut object = old.clone();
        set_at(&mut object, &paths.spec_replicas, replicas.into());
        // Without one the object's own stays: a Scale may be written unconditionally whatever its kind.
        if !meta::resource_version(&scale).is_empty() {
            meta::set_resource_version(&mut object, meta::resource_version(&scale));
        }
        if !meta::uid(&scale).is_empty() {
            meta::set_uid(&mut object, meta::uid(&scale));
        }
        Ok(object)
    };
    match registry::update(context, endpoint, place, Part::Scale, options, &mut change).await? {
        Update::Written(stored) | Update::Deleted(stored) => {
            Ok(context.respond_plain(StatusCode::OK, scale_of(&stored.versioned(), paths)))
        }
        Update::Absent => Err(endpoint.not_found(&info.name)),
    }
}

/// The Scale that an object shows.
fn scale_of(object: &Value, paths: &ScalePaths) -> Value {
    let number = |path: &str| object.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let mut status = json!({"replicas": number(&paths.status_replicas)});
    let selector = paths
        .selector
        .as_ref()
        .and_then(|path| object.pointer(path));
    if let Some(selector) = selector
        .and_then(selector_text)
        .filter(|text| !text.is_empty())
    {
        status["selector"] = selector.into();
    }
    let metadata = &object["metadata"];
    let mut shown = json!({});
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = metadata.get(field) {
            shown[field] = value.clone();
        }
    }
    json!({
        "kind": KIND, "apiVersion": API_VERSION, "metadata": shown,
        "spec": {"replicas": number(&paths.spec_replicas)}, "status": status,
    })
}

/// A LabelSelector object, a plain map or a text, as text.
fn selector_text(selector: &Value) -> Option<String> {
    match selector {
        Value::String(text) => Some(text.clone()),
        Value::Object(map) => {
            let plain = map.values().all(Value::is_string);
            let parsed = if plain {
                LabelSelector::from_map(map)
            } else {
                LabelSelector::from_value(selector).ok()?
            };
            Some(parsed.to_string())
        }
        _ => None,
    }
}

fn set_at(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for segment in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[segment];
    }
    *place = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_shows_its_scale() {
        let paths = ScalePaths {
            spec_replicas: "/spec/replicas".into(),
            status_replicas: "/status/replicas".into(),
            selector: Some("/spec/selector".into()),
        };
        let mut object = json!({
            "metadata": {"name": "web", "labels": {"a": "b"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}},
        });
        let scale = scale_of(&object, &paths);
        assert_eq!(
            scale["status"],
            json!({"replicas": 0, "selector": "app=web"})
        );
        assert_eq!(scale["metadata"], json!({"name": "web"}));
        set_at(&mut object, "/spec/replicas", 5.into());
        assert_eq!(object["spec"]["replicas"], 5);
    }
}
