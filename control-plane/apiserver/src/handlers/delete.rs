//! DELETE of one object, or of all that selectors select.

use http::{Response, StatusCode};
use serde_json::{Value, json};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::{decode, list};
use crate::catalog::Endpoint;
use crate::context::{Context, to_served};
use crate::options::{DeleteOptions, ListOptions};
use crate::registry::{self, Deleted};
use crate::{Body, response};

/// Resources whose deletion answers with the object, where others answer with a Status.
const ANSWER_WITH_OBJECT: [&str; 8] = [
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourcequotas",
    "serviceaccounts",
    "services",
    "namespaces",
];

pub(super) async fn delete(
    context: &Context,
    endpoint: &Endpoint,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let body = decode::delete_options(context, body).await?;
    let options = DeleteOptions::parse(&context.query, body.as_ref())?;
    let place = (info.namespace.as_str(), info.name.as_str());
    let deleted = registry::delete(context, endpoint, place, &options).await?;
    let with_object = match &deleted {
        Deleted::Marked(_) => true,
        Deleted::Gone(_) => {
            info.group.is_empty() && ANSWER_WITH_OBJECT.contains(&endpoint.plural())
        }
    };
    if with_object {
        // Upstream's clients of the older option know by the code that something is left to wait for.
        let waits = matches!(deleted, Deleted::Marked(_));
        let code = match options.orphan_dependents {
            Some(false) if waits => StatusCode::ACCEPTED,
            _ => StatusCode::OK,
        };
        return context.respond(endpoint, code, deleted.stored());
    }
    let uid = meta::uid(&deleted.stored().value);
    let status = response::success(endpoint.group(), endpoint.plural(), &info.name, uid);
    // A Status has no other form, whatever was asked for.
    Ok(context.respond_plain(StatusCode::OK, status))
}

/// Deletes what the selectors select, and answers with the list of it.
pub(super) async fn collection(
    context: &Context,
    endpoint: &Endpoint,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let body = decode::delete_options(context, body).await?;
    let options = DeleteOptions::parse(&context.query, body.as_ref())?;
    let list_options = ListOptions::parse(&context.query, false)?;
    let filter = list::filter(context, endpoint, &list_options)?;
    let page = context
        .server
        .caches
        .list(endpoint.cacher()?, &filter, &list_options)
        .await?;
    let mut items: Vec<Value> = Vec::with_capacity(page.entries.len());
    for entry in &page.entries {
        let place = (entry.namespace(), entry.name());
        match registry::delete(context, endpoint, place, &options).await {
            Ok(_) => {}
            // Somebody else was faster.
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
        let mut object = entry.decode()?;
        to_served(endpoint, &mut object)?;
        items.push(object);
    }
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(token) = page.continue_token {
        metadata["continue"] = token.into();
    }
    let list = json!({
        "kind": endpoint.resource.list_kind, "apiVersion": endpoint.api_version(),
        "metadata": metadata, "items": items,
    });
    tracing::debug!(path = info.path, count = items.len(), "collection deleted");
    Ok(context.respond_plain(StatusCode::OK, list))
}
