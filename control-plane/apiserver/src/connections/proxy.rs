//! The proxy subresources: HTTP to a node's agent, a pod's port or a Service's endpoint.

use std::sync::Arc;

use http::header::{HOST, LOCATION};
use http::{Extensions, Method, Response, StatusCode};
use serde_json::{Value, json};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::forward::forward;
use super::links::Links;
use super::node::{self, Connection};
use crate::Body;
use crate::cacher::Filter;
use crate::catalog::Endpoint;
use crate::context::Context;
use crate::registry;
use crate::response;
use crate::server::ApiServer;

/// `[scheme:]name[:port]`
struct Name<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Name<'a> {
    fn parse(text: &'a str) -> Result<Self, ApiError> {
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [name] => Ok(Self {
                scheme: "",
                name,
                port: "",
            }),
            [name, port] => Ok(Self {
                scheme: "",
                name,
                port,
            }),
            [scheme @ ("" | "http" | "https"), name, port] => Ok(Self { scheme, name, port }),
            _ => Err(ApiError::bad_request(format!(
                "invalid proxy target {text:?}"
            ))),
        }
    }
}

pub(super) async fn proxy(
    context: &Arc<Context>,
    endpoint: &Endpoint,
    body: Body,
    extensions: Extensions,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let target = Name::parse(&info.name)?;
    let rest = encode_path(&info.rest);
    let query = if context.raw_query.is_empty() {
        String::new()
    } else {
        format!("?{}", context.raw_query)
    };
    let path = format!("/{rest}{query}");
    let kind = match endpoint.plural() {
        "nodes" => "NodeProxyOptions",
        "pods" => "PodProxyOptions",
        _ => "ServiceProxyOptions",
    };
    let options = json!({"kind": kind, "apiVersion": "v1", "path": format!("/{rest}")});
    super::admit(context, endpoint, &options).await?;
    let upgrades = context.headers.contains_key(http::header::UPGRADE);
    let reads = matches!(context.method, Method::GET | Method::HEAD);
    if info.rest.is_empty() && !info.path.ends_with('/') && reads && !upgrades {
        return Ok(to_folder(&info.path, &query));
    }
    let connection = match endpoint.plural() {
        "nodes" => {
            context
                .server
                .nodes
                .connect(&context.server, target.name)
                .await?
        }
        "pods" => {
            let pod = registry::read(context, endpoint, &info.namespace, target.name)
                .await?
                .value;
            let (ip, port) = pod_address(&pod, target.port)?;
            reach(target.scheme, &ip, port, upgrades).await?
        }
        _ => {
            let service = registry::read(context, endpoint, &info.namespace, target.name)
                .await?
                .value;
            let (ip, port) = service_endpoint(&context.server, &service, target.port)?;
            reach(target.scheme, &ip, port, upgrades).await?
        }
    };
    let host = connection.host.clone();
    let asked = context.headers.get(HOST).and_then(|v| v.to_str().ok());
    let below = info.path.strip_suffix(&info.rest).unwrap_or(&info.path);
    let links = Links {
        below: &encode_path(below.trim_end_matches('/')),
        hosts: [&host, asked.unwrap_or(&host)],
    };
    let headers = links.forwarded(&rest);
    let answer = forward(context, connection, &path, body, extensions, headers).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS || context.method == Method::HEAD {
        return Ok(answer);
    }
    links.rewrite(answer).await
}

/// A pod that does not listen is a service that is not there: clients try again on that, as they would with
/// upstream. An upgrade has the words of one.
async fn reach(
    scheme: &str,
    host: &str,
    port: u16,
    upgrades: bool,
) -> Result<Connection, ApiError> {
    node::to(scheme, host, port).await.map_err(|error| {
        if upgrades {
            return error;
        }
        let why = error.message.trim_start_matches("error dialing backend: ");
        ApiError::service_unavailable(format!("error trying to reach service: {why}"))
    })
}

/// Without a slash at the end a page's relative links would lead out of the proxy.
fn to_folder(path: &str, query: &str) -> Response<Body> {
    let mut answer = response::text(StatusCode::MOVED_PERMANENTLY, "");
    if let Ok(location) = format!("{}/{query}", encode_path(path)).parse() {
        answer.headers_mut().insert(LOCATION, location);
    }
    answer
}

/// The path was decoded to find the resource in it.
pub(crate) fn encode_path(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte);
        if plain {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn pod_address(pod: &Value, port: &str) -> Result<(String, u16), ApiError> {
    let name = meta::name(pod);
    let ip = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty());
    let ip = ip.ok_or_else(|| ApiError::bad_request(format!("pod {name:?} has no address")))?;
    let mut ports = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let number = match port {
        // The first port that it declares, as upstream.
        "" => ports
            .next()
            .and_then(|p| p["containerPort"].as_u64())
            .or(Some(80)),
        port => port.parse().ok().or_else(|| {
            ports
                .find(|p| p["name"] == port)
                .and_then(|p| p["containerPort"].as_u64())
        }),
    };
    let number = number.and_then(|n| u16::try_from(n).ok());
    let number = number
        .ok_or_else(|| ApiError::bad_request(format!("pod {name:?} has no port {port:?}")))?;
    Ok((ip.to_owned(), number))
}

/// A ready endpoint of the Service, at random.
pub(crate) fn service_endpoint(
    server: &ApiServer,
    service: &Value,
    port: &str,
) -> Result<(String, u16), ApiError> {
    let name = meta::name(service);
    let ports = service["spec"]["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let chosen = match (port, ports) {
        ("", [only]) => Some(only),
        ("", many) => many
            .iter()
            .find(|p| p["name"].as_str().is_none_or(str::is_empty)),
        (port, many) => many.iter().find(|p| {
            p["name"] == port
                || p["port"]
                    .as_u64()
                    .is_some_and(|number| number.to_string() == port)
        }),
    };
    let unavailable = |why: String| Err(ApiError::service_unavailable(why));
    let Some(chosen) = chosen else {
        return unavailable(format!(
            "no service port {port:?} found for service {name:?}"
        ));
    };
    let port_name = chosen["name"].as_str().unwrap_or_default();
    let Some(slices) = server.cacher("discovery.k8s.io", "endpointslices") else {
        return unavailable("endpoint slices are not served".to_owned());
    };
    let namespace = meta::namespace(service);
    let filter = Filter::new(&slices.resource, Some(namespace), None, None)?;
    let mut candidates: Vec<(String, u16)> = Vec::new();
    for entry in slices.entries(&filter) {
        if entry.label("kubernetes.io/service-name") != Some(name) {
            continue;
        }
        let slice = entry.decode()?;
        let number = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["name"].as_str().unwrap_or_default() == port_name)
            .and_then(|p| u16::try_from(p["port"].as_u64()?).ok());
        let Some(number) = number else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] != false
                && let Some(address) = endpoint["addresses"][0].as_str()
            {
                candidates.push((address.to_owned(), number));
            }
        }
    }
    if candidates.is_empty() {
        return unavailable(format!("no endpoints available for service {name:?}"));
    }
    let index = usize::try_from(rand::random::<u32>()).unwrap_or(0) % candidates.len();
    Ok(candidates.swap_remove(index))
}
