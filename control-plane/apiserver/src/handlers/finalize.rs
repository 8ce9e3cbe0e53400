//! `PUT namespaces/{name}/finalize`: how a namespace's finalizers say that they are done.

use http::{Response, StatusCode};
use serde_json::{Value, json};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::decode;
use crate::Body;
use crate::catalog::Endpoint;
use crate::context::{Context, to_stored};
use crate::options::WriteOptions;
use crate::registry::{self, Part, Update};

pub(super) async fn update(
    context: &Context,
    endpoint: &Endpoint,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let options =
        WriteOptions::parse(&context.query, "UpdateOptions", context.user_agent(), false)?;
    let mut object = decode::object(context, endpoint, body, options.field_validation).await?;
    decode::replaces(endpoint, &mut object, ("", &info.name))?;
    to_stored(endpoint, &mut object)?;
    let wanted = object["spec"]
        .get("finalizers")
        .cloned()
        .unwrap_or_else(|| json!([]));
    let mut change = |old: &Value| {
        let mut namespace = old.clone();
        namespace["spec"]["finalizers"] = wanted.clone();
        meta::set_resource_version(&mut namespace, meta::resource_version(&object));
        Ok(namespace)
    };
    let place = ("", info.name.as_str());
    let part = Part::Other("finalize");
    match registry::update(context, endpoint, place, part, &options, &mut change).await? {
        Update::Written(stored) | Update::Deleted(stored) => {
            context.respond(endpoint, StatusCode::OK, &stored)
        }
        Update::Absent => Err(endpoint.not_found(&info.name)),
    }
}
