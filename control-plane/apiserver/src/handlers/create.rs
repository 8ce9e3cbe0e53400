//! POST of an object.

use http::{Response, StatusCode};
use windlass_machinery::status::ApiError;

use super::decode;
use crate::Body;
use crate::catalog::Endpoint;
use crate::context::{Context, to_stored};
use crate::options::WriteOptions;
use crate::registry;

pub(super) async fn create(
    context: &Context,
    endpoint: &Endpoint,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    if !info.name.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    let options =
        WriteOptions::parse(&context.query, "CreateOptions", context.user_agent(), false)?;
    let mut object = decode::object(context, endpoint, body, options.field_validation).await?;
    decode::place(endpoint, &mut object, &info.namespace)?;
    to_stored(endpoint, &mut object)?;
    let stored = registry::create(context, endpoint, &info.namespace, object, &options).await?;
    context.respond(endpoint, StatusCode::CREATED, &stored)
}
