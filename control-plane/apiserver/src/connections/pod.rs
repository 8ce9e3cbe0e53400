//! Where `pods/log`, `exec`, `attach` and `portforward` lead: to the agent of the pod's node.

use serde_json::Value;
use windlass_machinery::status::ApiError;

use super::{Security, Target, query};
use crate::catalog::Endpoint;
use crate::context::Context;

/// The agent's port where its Node does not name one.
const KUBELET_PORT: u16 = 10250;

/// The log of a container; `None` while the pod has no node.
pub(super) fn log(context: &Context, endpoint: &Endpoint) -> Result<Option<Target>, ApiError> {
    const OPTIONS: [&str; 9] = [
        "follow",
        "previous",
        "sinceSeconds",
        "sinceTime",
        "timestamps",
        "tailLines",
        "limitBytes",
        "stream",
        "insecureSkipTLSVerifyBackend",
    ];
    check_log_options(context)?;
    let pod = read(context, endpoint)?;
    let container = container(context, &pod)?;
    let Some(node) = node_name(&pod) else {
        return Ok(None);
    };
    let pairs: Vec<(&str, &str)> = OPTIONS
        .into_iter()
        .filter_map(|name| Some((name, context.query.get(name)?)))
        .collect();
    let path = format!(
        "/containerLogs/{}/{}/{container}",
        context.info.namespace, context.info.name
    );
    agent(context, node, format!("{path}?{}", query(&pairs))).map(Some)
}

fn check_log_options(context: &Context) -> Result<(), ApiError> {
    let query = &context.query;
    let mut errors = windlass_machinery::validation::Errors::new();
    let path = windlass_machinery::validation::Path::new;
    for (name, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(number) = query.integer(name)?.filter(|number| *number < least) {
            let detail = format!("must be greater than or equal to {least}");
            errors.invalid(&path(name), number, detail);
        }
    }
    if query.get("sinceSeconds").is_some() && query.get("sinceTime").is_some() {
        let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.forbidden(&path("sinceTime"), detail);
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(
        "",
        "PodLogOptions",
        &context.info.name,
        &errors,
    ))
}

/// `exec` and `attach`.
pub(super) fn stream(
    context: &Context,
    endpoint: &Endpoint,
    verb: &str,
) -> Result<Target, ApiError> {
    let pod = read(context, endpoint)?;
    let container = container(context, &pod)?;
    let node = placed(context, &pod)?;
    let mut pairs = Vec::new();
    // The kubelet's API has names of its own for the streams.
    for (name, theirs) in [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ] {
        if context.query.flag(name) {
            pairs.push((theirs, "1"));
        }
    }
    pairs.extend(context.query.all("command").map(|word| ("command", word)));
    let path = format!(
        "/{verb}/{}/{}/{container}",
        context.info.namespace, context.info.name
    );
    agent(context, node, format!("{path}?{}", query(&pairs)))
}

pub(super) fn port_forward(context: &Context, endpoint: &Endpoint) -> Result<Target, ApiError> {
    let pod = read(context, endpoint)?;
    let node = placed(context, &pod)?;
    let ports: Vec<(&str, &str)> = context
        .query
        .all("ports")
        .flat_map(|list| list.split(','))
        .map(|port| ("port", port))
        .collect();
    let path = format!(
        "/portForward/{}/{}",
        context.info.namespace, context.info.name
    );
    agent(context, node, format!("{path}?{}", query(&ports)))
}

/// A node agent's endpoint, by the node's name.
pub(super) fn agent(
    context: &Context,
    node: &str,
    path_and_query: String,
) -> Result<Target, ApiError> {
    let nodes = context.server.cacher("", "nodes");
    let found = nodes.and_then(|nodes| nodes.get("", node));
    let found = found
        .ok_or_else(|| ApiError::not_found("", "nodes", node))?
        .decode()?;
    let port = found["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    Ok(Target {
        host: address(&found)
            .ok_or_else(|| ApiError::internal(format!("node {node:?} has no address yet")))?,
        port: port
            .and_then(|p| u16::try_from(p).ok())
            .unwrap_or(KUBELET_PORT),
        security: Security::Node,
        path_and_query,
        failure: |why| ApiError::internal(format!("error dialing backend: {why}")),
    })
}

/// The address to call a node at; upstream's default order of preference, less the host name.
fn address(node: &Value) -> Option<String> {
    let addresses = node["status"]["addresses"].as_array()?;
    ["InternalIP", "ExternalIP"].into_iter().find_map(|kind| {
        let of_kind = addresses.iter().find(|a| a["type"] == kind)?;
        of_kind["address"].as_str().map(str::to_owned)
    })
}

pub(super) fn read(context: &Context, endpoint: &Endpoint) -> Result<Value, ApiError> {
    let info = &context.info;
    let entry = endpoint.cacher()?.get(&info.namespace, &info.name);
    entry
        .ok_or_else(|| endpoint.not_found(&info.name))?
        .decode()
}

fn node_name(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"]
        .as_str()
        .filter(|node| !node.is_empty())
}

fn placed<'p>(context: &Context, pod: &'p Value) -> Result<&'p str, ApiError> {
    node_name(pod).ok_or_else(|| {
        ApiError::bad_request(format!(
            "pod {} does not have a host assigned",
            context.info.name
        ))
    })
}

fn names<'p>(pod: &'p Value, list: &str) -> Vec<&'p str> {
    let items = pod["spec"][list]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    items.iter().filter_map(|c| c["name"].as_str()).collect()
}

/// The container that is meant: the one asked for, or the pod's only one.
fn container(context: &Context, pod: &Value) -> Result<String, ApiError> {
    let name = &context.info.name;
    let (main, init) = (names(pod, "containers"), names(pod, "initContainers"));
    let Some(wanted) = context.query.get("container") else {
        return match main.as_slice() {
            [only] => Ok((*only).to_owned()),
            [] => Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {name}"
            ))),
            _ => Err(ApiError::bad_request(choose(name, &main, &init))),
        };
    };
    let ephemeral = names(pod, "ephemeralContainers");
    if [main, init, ephemeral].concat().contains(&wanted) {
        return Ok(wanted.to_owned());
    }
    Err(ApiError::bad_request(format!(
        "container {wanted} is not valid for pod {name}"
    )))
}

fn choose(pod: &str, main: &[&str], init: &[&str]) -> String {
    let mut text = format!(
        "a container name must be specified for pod {pod}, choose one of: [{}]",
        main.join(" ")
    );
    if !init.is_empty() {
        text.push_str(&format!(
            " or one of the init containers: [{}]",
            init.join(" ")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_called_at_its_internal_address() {
        let node = json!({"status": {"addresses": [
            {"type": "Hostname", "address": "one"},
            {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "InternalIP", "address": "192.0.2.1"}]}});
        assert_eq!(address(&node).as_deref(), Some("192.0.2.1"));
        assert_eq!(address(&json!({})), None);
    }

    #[test]
    fn the_choice_of_containers_is_listed() {
        assert_eq!(
            choose("p", &["a", "b"], &["i"]),
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
    }
}
