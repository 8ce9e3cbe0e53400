//! What webhooks and policies are told about a request: an `admission.k8s.io/v1` AdmissionRequest.

use serde_json::{Value, json};

use super::{Attributes, Operation};
use crate::catalog::Endpoint;
use crate::context::to_served;

/// The object in the version that a webhook or policy asked for.
pub(super) fn served(endpoint: &Endpoint, object: &Value) -> Value {
    let mut object = object.clone();
    to_served(endpoint, &mut object);
    object
}

/// The request in the version of `endpoint`, with a uid of its own.
pub(super) fn request(
    attributes: &Attributes<'_>,
    endpoint: &Endpoint,
    object: Option<&Value>,
) -> Value {
    let uid = uuid::Uuid::new_v4().to_string();
    let operation = match attributes.operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
    };
    let kind = |of: &Endpoint| json!({"group": of.group(), "version": of.version().name, "kind": of.kind()});
    let resource = |of: &Endpoint| json!({"group": of.group(), "version": of.version().name, "resource": of.plural()});
    let user = &attributes.context.user;
    let mut request = json!({
        "uid": uid,
        "kind": kind(endpoint),
        "resource": resource(endpoint),
        "requestKind": kind(attributes.endpoint),
        "requestResource": resource(attributes.endpoint),
        "name": attributes.name,
        "operation": operation,
        "userInfo": {
            "username": user.name,
            "uid": user.uid,
            "groups": user.groups,
            "extra": user.extra,
        },
        "object": object.map(|object| served(endpoint, object)),
        "oldObject": attributes.old.map(|old| served(endpoint, old)),
        "dryRun": attributes.dry_run,
        "options": Value::Null,
    });
    if !attributes.namespace.is_empty() {
        request["namespace"] = attributes.namespace.into();
    }
    if !attributes.subresource.is_empty() {
        request["subResource"] = attributes.subresource.into();
        request["requestSubResource"] = attributes.subresource.into();
    }
    request
}
