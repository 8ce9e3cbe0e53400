//! GET of one object.

use http::{Response, StatusCode};
use windlass_machinery::status::ApiError;

use crate::Body;
use crate::catalog::Endpoint;
use crate::context::Context;
use crate::options::{ReadVersion, read_version};
use crate::registry;
use crate::storage::Stored;
use crate::{encode, response};

pub(super) async fn get(
    context: &Context,
    endpoint: &Endpoint,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let version = read_version(context.query.get("resourceVersion").unwrap_or_default())?;
    let stored = match version {
        // Straight from the store: current by definition.
        ReadVersion::Unset => {
            let kv = registry::read_bytes(context, endpoint, &info.namespace, &info.name).await?;
            if context.serves_stored(endpoint) {
                let splice = |stored: &[u8]| encode::spliced(stored, kv.mod_revision);
                let bytes = kv.value.read(splice);
                return Ok(response::json_line(StatusCode::OK, bytes));
            }
            Stored::read(&kv)?
        }
        ReadVersion::Any | ReadVersion::At(_) => {
            if let ReadVersion::At(revision) = version {
                context.server.caches.wait_for(revision).await?;
            }
            let entry = endpoint.cacher()?.get(&info.namespace, &info.name);
            let entry = entry.ok_or_else(|| endpoint.not_found(&info.name))?;
            if context.serves_stored(endpoint) {
                let splice = |stored: &[u8]| encode::spliced(stored, entry.revision);
                return Ok(response::json_line(
                    StatusCode::OK,
                    entry.value.read(splice),
                ));
            }
            Stored {
                value: entry.decode()?,
                bytes: entry.value.to_vec().into(),
                revision: entry.revision,
            }
        }
    };
    context.respond(endpoint, StatusCode::OK, &stored)
}
