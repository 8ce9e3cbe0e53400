//! What `kubectl get` shows: objects as rows of a Table, or cut down to their metadata.

use serde_json::{Value, json};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use crate::catalog::Endpoint;
use crate::context::to_served;
use crate::query::Query;

/// What each row carries of its object (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    /// # Errors
    /// 400 for an unknown policy.
    pub(crate) fn parse(query: &Query) -> Result<Self, ApiError> {
        match query.get("includeObject") {
            None | Some("Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => Err(ApiError::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', \
                 'Object', 'None', or empty"
            ))),
        }
    }
}

const NAME: &str = "Name";

fn group_version(beta: bool) -> &'static str {
    if beta {
        "meta.k8s.io/v1beta1"
    } else {
        "meta.k8s.io/v1"
    }
}

/// The column definitions of a resource's table, NAME first.
pub(crate) fn columns(endpoint: &Endpoint) -> Value {
    let name = json!({
        "name": NAME, "type": "string", "format": "name", "priority": 0,
        "description": "Name must be unique within a namespace.",
    });
    let own = endpoint.columns().iter().map(|column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    });
    // A kind that lists a name column of its own has it elsewhere (Events) or writes it otherwise.
    let name = (!has_name_column(endpoint)).then_some(name);
    name.into_iter().chain(own).collect()
}

fn has_name_column(endpoint: &Endpoint) -> bool {
    endpoint
        .columns()
        .iter()
        .any(|column| column.format == "name" && column.name == NAME)
}

/// The row of an object in its storage version.
pub(crate) fn row(
    endpoint: &Endpoint,
    mut object: Value,
    include: Include,
    beta: bool,
    now: i64,
) -> Result<Value, ApiError> {
    let strategy = match endpoint.own() {
        Some(own) => {
            to_served(endpoint, &mut object)?;
            own.strategy()
        }
        None => &*endpoint.resource.strategy,
    };
    let mut cells = Vec::new();
    if !has_name_column(endpoint) {
        cells.push(Value::from(meta::name(&object)));
    }
    cells.extend(strategy.row(&object, now));
    let mut row = json!({"cells": cells});
    if let Some((reason, message)) = strategy.completed(&object) {
        row["conditions"] = json!([{
            "type": "Completed", "status": "True", "reason": reason, "message": message,
        }]);
    }
    if matches!(include, Include::Object) {
        to_served(endpoint, &mut object)?;
    }
    row["object"] = included(object, include, beta);
    Ok(row)
}

/// As much of a row's object as was asked for.
fn included(object: Value, include: Include, beta: bool) -> Value {
    match include {
        Include::None => Value::Null,
        Include::Metadata => metadata_of(&object, beta),
        Include::Object => object,
    }
}

/// A table without rows; `metadata` is the list's. Watches leave the columns out after the first event.
pub(crate) fn empty(endpoint: &Endpoint, beta: bool, metadata: Value, with_columns: bool) -> Value {
    let columns = if with_columns {
        columns(endpoint)
    } else {
        Value::Null
    };
    json!({
        "kind": "Table",
        "apiVersion": group_version(beta),
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": [],
    })
}

/// The table of a single object in its storage version.
pub(crate) fn of_one(
    endpoint: &Endpoint,
    object: Value,
    include: Include,
    beta: bool,
    now: i64,
) -> Result<Value, ApiError> {
    let metadata = json!({"resourceVersion": meta::resource_version(&object)});
    let mut table = empty(endpoint, beta, metadata, true);
    table["rows"] = json!([row(endpoint, object, include, beta, now)?]);
    Ok(table)
}

fn column(name: &str, kind: &str, description: &str) -> Value {
    json!({"name": name, "type": kind, "format": "", "description": description, "priority": 0})
}

/// The table of a Scale.
pub(crate) fn of_scale(scale: &Value, include: Include, beta: bool, now: i64) -> Value {
    let count = |part: &str| scale[part]["replicas"].as_i64().unwrap_or_default();
    let cells = json!([
        meta::name(scale),
        count("spec"),
        count("status"),
        windlass_api::table::age(scale, now)
    ]);
    let object = included(scale.clone(), include, beta);
    json!({
        "kind": "Table",
        "apiVersion": group_version(beta),
        "metadata": {"resourceVersion": meta::resource_version(scale)},
        "columnDefinitions": [
            column(NAME, "string", "Name must be unique within a namespace."),
            column("Desired", "integer", "The number of pods that are wished for."),
            column("Available", "integer", "The number of pods that there are."),
            column("Age", "string", "The time since the object was created."),
        ],
        "rows": [{"cells": cells, "object": object}],
    })
}

/// An object as PartialObjectMetadata.
pub(crate) fn metadata_of(object: &Value, beta: bool) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": group_version(beta),
        "metadata": object["metadata"],
    })
}

/// `kind` and `apiVersion` of a list of such objects.
pub(crate) fn metadata_list(beta: bool) -> (&'static str, &'static str) {
    ("PartialObjectMetadataList", group_version(beta))
}
