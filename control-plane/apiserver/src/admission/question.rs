//! What webhooks and policies are told about a request: an `admission.k8s.io/v1` AdmissionRequest.

use serde_json::{Value, json};
use windlass_machinery::status::ApiError;

use super::{Attributes, Operation};
use crate::catalog::Endpoint;
use crate::context::to_served;
use crate::options::DeleteOptions;

/// The object in the version that a webhook or policy asked for.
///
/// # Errors
/// When a custom resource's conversion fails.
pub(super) fn served(endpoint: &Endpoint, object: &Value) -> Result<Value, ApiError> {
    let mut object = object.clone();
    to_served(endpoint, &mut object)?;
    Ok(object)
}

/// The request in the version of `endpoint`, with a uid of its own.
pub(super) fn request(
    attributes: &Attributes<'_>,
    endpoint: &Endpoint,
    object: Option<&Value>,
) -> Result<Value, ApiError> {
    let uid = uuid::Uuid::new_v4().to_string();
    let connects = attributes.operation == Operation::Connect;
    let kind = |of: &Endpoint| match object.filter(|_| connects) {
        // The object is the options of the connection.
        Some(options) => json!({"group": "", "version": "v1", "kind": options["kind"]}),
        None => json!({"group": of.group(), "version": of.version().name, "kind": of.kind()}),
    };
    let shown = |object: Option<&Value>| match object {
        Some(options) if connects => Ok(Some(options.clone())),
        Some(object) => served(endpoint, object).map(Some),
        None => Ok(None),
    };
    let resource = |of: &Endpoint| json!({"group": of.group(), "version": of.version().name, "resource": of.plural()});
    let user = &attributes.context.user;
    let mut request = json!({
        "uid": uid,
        "kind": kind(endpoint),
        "resource": resource(endpoint),
        "requestKind": kind(attributes.endpoint),
        "requestResource": resource(attributes.endpoint),
        "operation": attributes.operation.as_str(),
        "userInfo": {
            "username": user.name,
            "uid": user.uid,
            "groups": user.groups,
            "extra": user.extra,
        },
        "object": shown(object)?,
        "oldObject": shown(attributes.old)?,
        "dryRun": attributes.dry_run,
        "options": options(attributes),
    });
    // It is not made up yet where a `generateName` is mutated.
    if !attributes.name.is_empty() {
        request["name"] = attributes.name.into();
    }
    if !attributes.namespace.is_empty() {
        request["namespace"] = attributes.namespace.into();
    }
    if !attributes.subresource.is_empty() {
        request["subResource"] = attributes.subresource.into();
        request["requestSubResource"] = attributes.subresource.into();
    }
    Ok(request)
}

/// The options of the write: a deletion's, which may have come in its body, or those that the address has.
fn options(attributes: &Attributes<'_>) -> Value {
    let kind = match attributes.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => {
            return attributes
                .deletion
                .map_or(Value::Null, DeleteOptions::to_object);
        }
        Operation::Connect => return Value::Null,
    };
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    for field in ["fieldManager", "fieldValidation"] {
        if let Some(value) = attributes.context.query.get(field) {
            options[field] = value.into();
        }
    }
    if attributes.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    options
}
