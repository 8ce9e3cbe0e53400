//! Forwarding one request over a connection, and the bytes of both directions once it is upgraded.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName};
use http::{Extensions, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use windlass_machinery::status::ApiError;

use super::node::Connection;
use crate::Body;
use crate::context::Context;
use crate::response;

/// What belongs to one hop only, or is meant for the API server alone.
const NOT_FORWARDED: [HeaderName; 9] = [
    header::AUTHORIZATION,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Sends the request on to `path_and_query` of the other end, with `headers` besides its own, and answers with
/// what it says.
pub(crate) async fn forward(
    context: &Arc<Context>,
    connection: Connection,
    path_and_query: &str,
    body: Body,
    mut extensions: Extensions,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let upgrading = context.headers.contains_key(header::UPGRADE);
    let client = extensions.remove::<OnUpgrade>();
    if upgrading && client.is_none() {
        return Err(ApiError::bad_request("this connection cannot be upgraded"));
    }
    let broken = |error: hyper::Error| {
        ApiError::service_unavailable(format!("error trying to reach service: {error}"))
    };
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection.io))
        .await
        .map_err(broken)?;
    tokio::spawn(async move {
        if let Err(error) = driver.with_upgrades().await {
            tracing::debug!(%error, "forwarded connection ended");
        }
    });

    let mut request = Request::new(body);
    *request.method_mut() = context.method.clone();
    *request.uri_mut() = path_and_query
        .parse()
        .map_err(|e| ApiError::bad_request(format!("path {path_and_query:?}: {e}")))?;
    *request.headers_mut() = headers_to_send(&context.headers, &connection.host, upgrading);
    request.headers_mut().extend(headers);
    let mut answer = sender.send_request(request).await.map_err(broken)?;

    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = answer.into_parts();
        let mut out = Response::new(body.map_err(crate::BodyError::new).boxed_unsync());
        *out.status_mut() = parts.status;
        copy_headers(&parts.headers, out.headers_mut());
        return Ok(out);
    }
    let node = hyper::upgrade::on(&mut answer);
    if let Some(client) = client {
        let path = context.info.path.clone();
        tokio::spawn(async move {
            let (client, node) = match tokio::try_join!(client, node) {
                Ok(both) => both,
                Err(error) => {
                    tracing::debug!(path, %error, "upgrade failed");
                    return;
                }
            };
            let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut node).await {
                tracing::debug!(path, %error, "tunnel ended");
            }
        });
    }
    let mut out = response::with_type(StatusCode::SWITCHING_PROTOCOLS, "", response::full(""));
    out.headers_mut().clear();
    for (name, value) in answer.headers() {
        out.headers_mut().append(name.clone(), value.clone());
    }
    Ok(out)
}

fn headers_to_send(from: &HeaderMap, host: &str, upgrading: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in from {
        let impersonation = name.as_str().starts_with("impersonate-");
        // Who the requester is only this server says.
        let claimed = name.as_str().starts_with("x-remote-");
        let hop = matches!(*name, header::CONNECTION | header::UPGRADE);
        if !NOT_FORWARDED.contains(name) && !impersonation && !claimed && (!hop || upgrading) {
            headers.append(name.clone(), value.clone());
        }
    }
    if let Ok(host) = host.parse() {
        headers.insert(header::HOST, host);
    }
    headers
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        let hop = matches!(*name, header::CONNECTION | header::UPGRADE);
        if !hop && !NOT_FORWARDED.contains(name) {
            to.append(name.clone(), value.clone());
        }
    }
}
