//! Where `pods/proxy`, `services/proxy` and `nodes/proxy` lead.

use rand::seq::IndexedRandom as _;
use serde_json::Value;
use windlass_machinery::selector::LabelSelector;
use windlass_machinery::status::ApiError;

use super::{Security, Target, encode, pod};
use crate::cacher::Filter;
use crate::catalog::Endpoint;
use crate::context::Context;

/// `[scheme:]name[:port]`, as it stands in the path.
#[derive(Debug, PartialEq, Eq)]
struct Named<'n> {
    https: bool,
    name: &'n str,
    port: &'n str,
}

impl<'n> Named<'n> {
    fn parse(text: &'n str) -> Result<Self, ApiError> {
        let named = |https, name, port| Self { https, name, port };
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [name] => Ok(named(false, *name, "")),
            [scheme @ ("http" | "https"), name] => Ok(named(*scheme == "https", *name, "")),
            [name, port] => Ok(named(false, *name, *port)),
            [scheme @ ("http" | "https"), name, port] => {
                Ok(named(*scheme == "https", *name, *port))
            }
            _ => Err(ApiError::bad_request(format!(
                "invalid proxy request {text:?}"
            ))),
        }
    }

    fn security(&self) -> Security {
        if self.https {
            Security::Unverified
        } else {
            Security::Plain
        }
    }
}

fn unreachable(why: String) -> ApiError {
    ApiError::service_unavailable(format!("error trying to reach service: {why}"))
}

/// The path and query that the other end sees.
fn path_and_query(context: &Context) -> String {
    let path = encode(&context.info.rest, "/!$&'()*+,;=:@");
    match context.raw_query.as_str() {
        "" => format!("/{path}"),
        query => format!("/{path}?{query}"),
    }
}

pub(super) fn node(context: &Context, endpoint: &Endpoint) -> Result<Target, ApiError> {
    let named = Named::parse(&context.info.name)?;
    let found = endpoint.cacher()?.get("", named.name);
    found.ok_or_else(|| endpoint.not_found(named.name))?;
    let mut target = pod::agent(context, named.name, path_and_query(context))?;
    if let Ok(port) = named.port.parse()
        && port != target.port
    {
        target.port = port;
        target.security = named.security();
    }
    target.failure = unreachable;
    Ok(target)
}

pub(super) fn pod(context: &Context, endpoint: &Endpoint) -> Result<Target, ApiError> {
    let named = Named::parse(&context.info.name)?;
    let found = endpoint.cacher()?.get(&context.info.namespace, named.name);
    let pod = found
        .ok_or_else(|| endpoint.not_found(named.name))?
        .decode()?;
    let host = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty());
    let host = host
        .ok_or_else(|| ApiError::bad_request("address not allowed"))?
        .to_owned();
    let port = if named.port.is_empty() {
        first_port(&pod)
    } else {
        port_named(&pod, named.port)
    };
    let port = port.ok_or_else(|| {
        ApiError::bad_request(format!("pod {:?} has no port {:?}", named.name, named.port))
    })?;
    Ok(Target {
        host,
        port,
        security: named.security(),
        path_and_query: path_and_query(context),
        failure: unreachable,
    })
}

fn container_ports(pod: &Value) -> impl Iterator<Item = &Value> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers.flat_map(|c| c["ports"].as_array().into_iter().flatten())
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok())
}

fn first_port(pod: &Value) -> Option<u16> {
    container_ports(pod)
        .next()
        .map_or(Some(80), |port| number(&port["containerPort"]))
}

fn port_named(pod: &Value, port: &str) -> Option<u16> {
    port.parse().ok().or_else(|| {
        let named = container_ports(pod).find(|p| p["name"] == port)?;
        number(&named["containerPort"])
    })
}

pub(super) fn service(context: &Context, endpoint: &Endpoint) -> Result<Target, ApiError> {
    let named = Named::parse(&context.info.name)?;
    let namespace = &context.info.namespace;
    let found = endpoint.cacher()?.get(namespace, named.name);
    let service = found
        .ok_or_else(|| endpoint.not_found(named.name))?
        .decode()?;
    let ports = service["spec"]["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let port = ports.iter().find(|port| match named.port {
        "" => ports.len() == 1 || port.get("name").is_none(),
        wanted => port["name"] == wanted || port["port"].to_string() == wanted,
    });
    let port = port.ok_or_else(|| {
        let name = &context.info.name;
        ApiError::service_unavailable(format!(
            "no service port {:?} found for service {name:?}",
            named.port
        ))
    })?;
    let port_name = port["name"].as_str().unwrap_or_default();
    let (host, port) = ready_endpoint(context, named.name, port_name)?.ok_or_else(|| {
        ApiError::service_unavailable(format!(
            "no endpoints available for service {:?}",
            named.name
        ))
    })?;
    Ok(Target {
        host,
        port,
        security: named.security(),
        path_and_query: path_and_query(context),
        failure: unreachable,
    })
}

/// One of the Service's ready endpoints, by chance.
fn ready_endpoint(
    context: &Context,
    service: &str,
    port_name: &str,
) -> Result<Option<(String, u16)>, ApiError> {
    let Some(slices) = context.server.cacher("discovery.k8s.io", "endpointslices") else {
        return Ok(None);
    };
    let selector = LabelSelector::parse(&format!("kubernetes.io/service-name={service}"))
        .map_err(ApiError::internal)?;
    let filter = Filter::new(
        &slices.resource,
        Some(&context.info.namespace),
        Some(selector),
        None,
    )?;
    let mut ready = Vec::new();
    for entry in slices.entries(&filter) {
        let slice = entry.decode()?;
        let ports = slice["ports"].as_array().into_iter().flatten();
        let port = ports
            .filter(|port| port["name"].as_str().unwrap_or_default() == port_name)
            .find_map(|port| number(&port["port"]));
        let Some(port) = port else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let address = endpoint["addresses"][0].as_str();
            if endpoint["conditions"]["ready"] != false
                && let Some(address) = address
            {
                ready.push((address.to_owned(), port));
            }
        }
    }
    Ok(ready.choose(&mut rand::rng()).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_scheme_and_port() {
        let table = [
            ("web", (false, "web", "")),
            ("web:80", (false, "web", "80")),
            ("https:web", (true, "web", "")),
            ("https:web:tls", (true, "web", "tls")),
            ("http:web:80", (false, "web", "80")),
        ];
        for (text, (https, name, port)) in table {
            assert_eq!(
                Named::parse(text).unwrap(),
                Named { https, name, port },
                "{text}"
            );
        }
        assert_eq!(Named::parse("a:b:c:d").unwrap_err().code, 400);
    }
}
