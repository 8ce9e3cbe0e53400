//! Connections through the API server: logs, exec, attach, port-forward and proxies.
//!
//! The API server only finds out where a request leads ([`pod`], [`proxy`]) and moves bytes ([`tunnel`]): what
//! is framed inside (SPDY/3.1, WebSocket channels) is between the client and the node agent.

mod node;
mod pod;
mod proxy;
mod tunnel;

use std::sync::Arc;

use http::{Extensions, Response};
use windlass_api::resource::Subresource;
use windlass_machinery::status::ApiError;

pub use node::NodeClient;

use crate::Body;
use crate::catalog::Endpoint;
use crate::context::Context;

/// Where a connection leads.
struct Target {
    host: String,
    port: u16,
    security: Security,
    path_and_query: String,
    /// What a failure to get there is: an internal fault for a node agent, an unavailable service for a proxy.
    failure: fn(String) -> ApiError,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Security {
    Plain,
    /// With the API server's own client certificate.
    Node,
    /// For `https:` proxies; whoever answers is not verified, as upstream.
    Unverified,
}

/// Answers a `log`, `exec`, `attach`, `portforward` or `proxy` request.
///
/// # Errors
/// 400 when the request does not say what to connect to, 404 when that does not exist, 500 or 503 when it
/// cannot be reached.
pub async fn connect(
    context: &Arc<Context>,
    endpoint: &Arc<Endpoint>,
    subresource: &Subresource,
    body: Body,
    extensions: Extensions,
) -> Result<Response<Body>, ApiError> {
    let target = match (subresource, endpoint.plural()) {
        (Subresource::Log, _) => match pod::log(context, endpoint)? {
            Some(target) => target,
            // Not scheduled yet: there is no log, which is no error.
            None => return Ok(crate::response::text(http::StatusCode::NO_CONTENT, "")),
        },
        (Subresource::Exec | Subresource::Attach, _) => {
            pod::stream(context, endpoint, subresource.name())?
        }
        (Subresource::PortForward, _) => pod::port_forward(context, endpoint)?,
        (Subresource::Proxy, "nodes") => proxy::node(context, endpoint)?,
        (Subresource::Proxy, "services") => proxy::service(context, endpoint)?,
        (Subresource::Proxy, _) => proxy::pod(context, endpoint)?,
        _ => return Err(ApiError::unknown_path()),
    };
    tunnel::forward(context, &target, body, extensions).await
}

/// Encodes a query; `pairs` in order.
fn query(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(k, v)| format!("{}={}", encode(k, ""), encode(v, "")))
        .collect();
    pairs.join("&")
}

/// Percent-encodes everything but unreserved characters (RFC 3986, 2.3) and those in `keep`.
fn encode(text: &str, keep: &str) -> String {
    use std::fmt::Write as _;
    text.bytes()
        .fold(String::with_capacity(text.len()), |mut out, byte| {
            let c = char::from(byte);
            if c.is_ascii_alphanumeric()
                || "-._~".contains(c)
                || (byte.is_ascii() && keep.contains(c))
            {
                out.push(c);
            } else {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_paths_are_encoded() {
        assert_eq!(
            query(&[("command", "sh -c"), ("tty", "1")]),
            "command=sh%20-c&tty=1"
        );
        assert_eq!(encode("a b/ü?", "/"), "a%20b/%C3%BC%3F");
    }
}
