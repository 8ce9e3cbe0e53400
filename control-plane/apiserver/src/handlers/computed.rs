//! What nothing is stored of: each object is made when somebody wants to see it.

use http::{Response, StatusCode};
use serde_json::json;
use windlass_api::metrics;
use windlass_machinery::status::ApiError;

use super::{component_statuses, resource_metrics};
use crate::Body;
use crate::catalog::Endpoint;
use crate::context::{Context, now};
use crate::negotiation::Transform;
use crate::table;

pub(super) async fn get_or_list(
    context: &Context,
    endpoint: &Endpoint,
) -> Result<Response<Body>, ApiError> {
    let wanted = context.info.name.as_str();
    let mut items = if endpoint.group() == metrics::GROUP {
        resource_metrics::items(context, endpoint).await?
    } else {
        component_statuses::items(context).await
    };
    if items.is_empty() && !wanted.is_empty() {
        return Err(endpoint.not_found(wanted));
    }
    let shown = match context.accepted.transform {
        Transform::Table { beta } => {
            let include = table::Include::parse(&context.query)?;
            let rows = items.into_iter();
            let rows = rows.map(|item| table::row(endpoint, item, include, beta, now()));
            let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
            let mut table = table::empty(endpoint, beta, json!({}), true);
            table["rows"] = rows.into();
            table
        }
        _ if !wanted.is_empty() => items.remove(0),
        _ => {
            for item in &mut items {
                // As in every list, the list says of what.
                if let Some(item) = item.as_object_mut() {
                    item.remove("kind");
                    item.remove("apiVersion");
                }
            }
            json!({
                "kind": endpoint.resource.list_kind, "apiVersion": endpoint.api_version(),
                "metadata": {}, "items": items,
            })
        }
    };
    Ok(context.respond_plain(StatusCode::OK, shown))
}
