//! Connections that pass through the API server: logs, exec, attach, port-forward, and the proxies.
//!
//! The server authorizes and finds the other end; the bytes, upgraded or not, it carries as they are. So SPDY
//! and WebSocket need no framing code here.

mod forward;
mod links;
mod log;
mod node;
mod proxy;

use std::sync::Arc;

use http::{Extensions, Response, StatusCode};
use serde_json::{Value, json};
use windlass_api::resource::Subresource;
use windlass_machinery::status::ApiError;

use crate::Body;
use crate::admission::{Attributes, Operation};
use crate::catalog::Endpoint;
use crate::context::Context;
use crate::registry;

pub(crate) use self::forward::forward;
pub(crate) use self::node::{Connection, NodeClient};
pub(crate) use self::proxy::{encode_path, service_endpoint};

/// Answers a request to one of the connecting subresources.
pub(crate) async fn connect(
    context: &Arc<Context>,
    endpoint: &Endpoint,
    subresource: &Subresource,
    body: Body,
    extensions: Extensions,
) -> Result<Response<Body>, ApiError> {
    if *subresource == Subresource::Proxy {
        return proxy::proxy(context, endpoint, body, extensions).await;
    }
    let allowed: &[&str] = match subresource {
        Subresource::Log => &["get"],
        _ => &["get", "create"],
    };
    if !allowed.contains(&context.info.verb) {
        return Err(ApiError::method_not_allowed());
    }
    let info = &context.info;
    if *subresource != Subresource::Log && info.verb != "create" {
        // A WebSocket begins with GET, and whoever may only look must not run commands
        // (AuthorizePodWebsocketUpgradeCreatePermission, KEP-4006).
        context.may_create()?;
    }
    let pod = registry::read(context, endpoint, &info.namespace, &info.name)
        .await?
        .value;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        if *subresource != Subresource::PortForward {
            container(context, &pod)?;
        }
        if *subresource == Subresource::Log {
            // Nothing has been written yet.
            return Ok(crate::response::text(StatusCode::OK, ""));
        }
        return Err(ApiError::bad_request(format!(
            "pod {} does not have a host assigned",
            info.name
        )));
    }
    if *subresource != Subresource::Log {
        admit(context, endpoint, &options(context, subresource)).await?;
    }
    let path = match subresource {
        Subresource::Log => "containerLogs",
        Subresource::Exec => "exec",
        Subresource::Attach => "attach",
        _ => "portForward",
    };
    let mut target = format!("/{path}/{}/{}", info.namespace, info.name);
    let query = match subresource {
        Subresource::PortForward => context.raw_query.clone(),
        Subresource::Log => {
            target.push_str(&format!("/{}", container(context, &pod)?));
            log::check_options(context)?;
            log::query(&context.raw_query)
        }
        _ => {
            target.push_str(&format!("/{}", container(context, &pod)?));
            stream_query(context)?
        }
    };
    if !query.is_empty() {
        target.push_str(&format!("?{query}"));
    }
    let connection = context.server.nodes.connect(&context.server, node).await?;
    let headers = http::HeaderMap::new();
    let answer = forward(context, connection, &target, body, extensions, headers).await?;
    match subresource {
        Subresource::Log => log::checked(answer, info).await,
        _ => Ok(answer),
    }
}

/// Asks admission about a connection.
async fn admit(context: &Context, endpoint: &Endpoint, options: &Value) -> Result<(), ApiError> {
    let info = &context.info;
    let attributes = Attributes {
        context,
        operation: Operation::Connect,
        endpoint,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        old: None,
        deletion: None,
        dry_run: false,
    };
    let admission = &context.server.admission;
    admission.connect(&attributes, options).await
}

/// What webhooks are told about a connection: the query as an object.
fn options(context: &Context, subresource: &Subresource) -> Value {
    let query = &context.query;
    let kind = match subresource {
        Subresource::Exec => "PodExecOptions",
        Subresource::Attach => "PodAttachOptions",
        _ => "PodPortForwardOptions",
    };
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    if *subresource == Subresource::PortForward {
        let ports = query.all("ports").flat_map(|text| text.split(','));
        let ports: Vec<i64> = ports.filter_map(|port| port.parse().ok()).collect();
        options["ports"] = json!(ports);
        return options;
    }
    for stream in ["stdin", "stdout", "stderr", "tty"] {
        if query.optional_flag(stream) == Some(true) {
            options[stream] = true.into();
        }
    }
    if let Some(container) = query.get("container") {
        options["container"] = container.into();
    }
    if *subresource == Subresource::Exec {
        options["command"] = query.all("command").collect::<Vec<_>>().into();
    }
    options
}

/// The container that is meant: the one asked for, or the only one.
fn container(context: &Context, pod: &Value) -> Result<String, ApiError> {
    let name = &context.info.name;
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers
            .filter_map(|c| c["name"].as_str().map(str::to_owned))
            .collect()
    };
    let containers = names("containers");
    let init = names("initContainers");
    let ephemeral = names("ephemeralContainers");
    if let Some(wanted) = context.query.get("container") {
        let known = [&containers, &init, &ephemeral];
        return if known.iter().any(|list| list.iter().any(|c| c == wanted)) {
            Ok(wanted.to_owned())
        } else {
            Err(ApiError::bad_request(format!(
                "container {wanted} is not valid for pod {name}"
            )))
        };
    }
    match containers.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}"
        ))),
        many => {
            let mut text = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                many.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(
                    " or one of the init containers: [{}]",
                    init.join(" ")
                ));
            }
            Err(ApiError::bad_request(text))
        }
    }
}

/// exec and attach: the kubelet's names of the API's options.
fn stream_query(context: &Context) -> Result<String, ApiError> {
    let query = &context.query;
    let attach = context.info.subresource == "attach";
    // Attach shows output unless told otherwise; exec as well in upstream's defaults of both.
    let wanted = |name: &str, default: bool| query.optional_flag(name).unwrap_or(default);
    let (stdin, stdout) = (wanted("stdin", false), wanted("stdout", true));
    let tty = wanted("tty", false);
    let stderr = wanted("stderr", true) && !tty;
    if !stdin && !stdout && !stderr {
        return Err(ApiError::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    let mut parts: Vec<String> = Vec::new();
    for (on, name) in [
        (stdin, "input"),
        (stdout, "output"),
        (stderr, "error"),
        (tty, "tty"),
    ] {
        if on {
            parts.push(format!("{name}=1"));
        }
    }
    let commands = context
        .raw_query
        .split('&')
        .filter(|pair| pair.starts_with("command="));
    parts.extend(commands.map(str::to_owned));
    if !attach && query.get("command").is_none() {
        return Err(ApiError::bad_request("you must specify a command"));
    }
    Ok(parts.join("&"))
}
