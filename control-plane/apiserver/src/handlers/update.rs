//! PUT of an object or of its status.

use http::{Response, StatusCode};
use serde_json::Value;
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
    part: Part,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let options =
        WriteOptions::parse(&context.query, "UpdateOptions", context.user_agent(), false)?;
    let mut object = decode::object(context, endpoint, body, options.field_validation).await?;
    decode::replaces(endpoint, &mut object, (&info.namespace, &info.name))?;
    to_stored(endpoint, &mut object)?;
    let place = (info.namespace.as_str(), info.name.as_str());
    let mut change = |old: &Value| super::pod_subresources::restrict(part, object.clone(), old);
    match registry::update(context, endpoint, place, part, &options, &mut change).await? {
        Update::Written(stored) | Update::Deleted(stored) => {
            context.respond(endpoint, StatusCode::OK, &stored)
        }
        Update::Absent => {
            let creates = part == Part::Main && endpoint.strategy().create_on_update();
            if !creates || !meta::uid(&object).is_empty() {
                return Err(endpoint.not_found(&info.name));
            }
            context.may_create()?;
            let stored =
                registry::create(context, endpoint, &info.namespace, object, &options).await?;
            context.respond(endpoint, StatusCode::CREATED, &stored)
        }
    }
}
