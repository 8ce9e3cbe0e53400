//! Binding: the scheduler's write that assigns a pod to a node, once.

use http::{Response, StatusCode};
use serde_json::{Value, json};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};

use super::decode;
use crate::Body;
use crate::catalog::Endpoint;
use crate::context::{Context, now_text};
use crate::options::WriteOptions;
use crate::registry::{self, Part, Update};

/// `POST pods/{name}/binding`, or the older `POST bindings`.
pub(super) async fn create(
    context: &Context,
    endpoint: &Endpoint,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let options =
        WriteOptions::parse(&context.query, "CreateOptions", context.user_agent(), false)?;
    let binding = decode::builtin(context, "v1", "Binding", body, options.field_validation).await?;
    let given = meta::name(&binding);
    if !info.name.is_empty() && !given.is_empty() && given != info.name {
        return Err(ApiError::bad_request(
            "name in URL does not match name in Binding object",
        ));
    }
    let name = if info.name.is_empty() {
        given.to_owned()
    } else {
        info.name.clone()
    };
    check_target(&binding)?;

    let catalog = context.server.catalog.load();
    let pods = match endpoint.plural() {
        "pods" => None,
        _ => catalog.preferred("", "pods"),
    };
    let pods: &Endpoint = pods.as_deref().unwrap_or(endpoint);
    let node = binding["target"]["name"].as_str().unwrap_or_default();
    let mut change = |pod: &Value| bound(pod, &binding, node, &name);
    let place = (info.namespace.as_str(), name.as_str());
    let part = Part::Other("binding");
    match registry::update(context, pods, place, part, &options, &mut change).await? {
        Update::Absent => Err(pods.not_found(&name)),
        _ => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
            });
            Ok(context.respond_plain(StatusCode::CREATED, status))
        }
    }
}

fn check_target(binding: &Value) -> Result<(), ApiError> {
    let mut errors = Errors::new();
    let target = Path::new("target");
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    if !kind.is_empty() && kind != "Node" {
        errors.not_supported(&target.child("kind"), kind, &["Node", "<empty>"]);
    }
    if binding["target"]["name"]
        .as_str()
        .unwrap_or_default()
        .is_empty()
    {
        errors.required(&target.child("name"), "");
    }
    if errors.is_empty() {
        Ok(())
    } else {
        // Upstream gives these back as they are, which makes them the server's fault.
        Err(ApiError::new(500, "", errors.to_string()))
    }
}

/// The pod with its node, or why it cannot have it.
fn bound(pod: &Value, binding: &Value, node: &str, name: &str) -> Result<Value, ApiError> {
    let conflict = |why: String| Err(ApiError::conflict("", "pods/binding", name, &why));
    if meta::is_deleting(pod) {
        return conflict(format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        ));
    }
    let present = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !present.is_empty() {
        return conflict(format!(
            "pod {name} is already assigned to node {present:?}"
        ));
    }
    if pod["spec"]["schedulingGates"]
        .as_array()
        .is_some_and(|gates| !gates.is_empty())
    {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = node.into();
    for (key, value) in meta::annotations(binding).into_iter().flatten() {
        meta::set_annotation(&mut pod, key, value.as_str());
    }
    for (key, value) in meta::labels(binding).into_iter().flatten() {
        meta::set_label(&mut pod, key, value.as_str());
    }
    // The scheduler's preconditions are the pod's own.
    for field in ["uid", "resourceVersion"] {
        if let Some(value) = binding["metadata"]
            .get(field)
            .filter(|v| !v.is_null() && *v != "")
        {
            meta::set(&mut pod, field, value.clone());
        }
    }
    set_scheduled(&mut pod);
    // Where it was expected to go is history (KEP-5278).
    if let Some(status) = pod["status"].as_object_mut() {
        status.remove("nominatedNodeName");
    }
    Ok(pod)
}

fn set_scheduled(pod: &mut Value) {
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": now_text(), "observedGeneration": meta::generation(pod),
    });
    let conditions = &mut pod["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|c| c["type"] != "PodScheduled");
        list.push(condition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once_and_not_while_it_is_deleted() {
        let binding = json!({"metadata": {"name": "p"}, "target": {"name": "n1"}});
        let pod = json!({"metadata": {"name": "p", "resourceVersion": "1", "generation": 3},
            "spec": {}, "status": {"nominatedNodeName": "n2"}});
        let once = bound(&pod, &binding, "n1", "p").unwrap();
        assert_eq!(once["spec"]["nodeName"], "n1");
        assert_eq!(once["status"]["conditions"][0]["status"], "True");
        assert_eq!(once["status"]["conditions"][0]["observedGeneration"], 3);
        assert_eq!(once["status"].get("nominatedNodeName"), None);
        assert_eq!(bound(&once, &binding, "n2", "p").unwrap_err().code, 409);
        let dying = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert_eq!(bound(&dying, &binding, "n1", "p").unwrap_err().code, 409);
    }
}
