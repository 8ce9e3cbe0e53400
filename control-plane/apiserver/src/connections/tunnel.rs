//! Moves a request and its answer, or the bytes of an upgraded connection, between the client and a target.

use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{Extensions, HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use windlass_machinery::status::ApiError;

use super::Target;
use crate::context::Context;
use crate::{Body, BoxError};

/// Headers that belong to one hop (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    UPGRADE,
    http::header::TE,
    http::header::TRAILER,
    http::header::TRANSFER_ENCODING,
    http::header::PROXY_AUTHENTICATE,
    http::header::PROXY_AUTHORIZATION,
];

/// Sends the context's request to `target` and answers with what comes back; where both sides agree to
/// upgrade, the connections are joined and live on after the answer.
pub(super) async fn forward(
    context: &Context,
    target: &Target,
    body: Body,
    mut extensions: Extensions,
) -> Result<Response<Body>, ApiError> {
    let failed = |error: &dyn std::fmt::Display| (target.failure)(error.to_string());
    let stream = context
        .server
        .nodes
        .dial(target)
        .await
        .map_err(|e| failed(&e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    // Ends by itself: with the answer's body, or with the upgraded connection.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "forwarded connection ended");
        }
    });

    let request = outgoing(context, target, body)?;
    let mut answer = sender.send_request(request).await.map_err(|e| failed(&e))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (mut parts, body) = answer.into_parts();
        parts.headers = without_hop_headers(&parts.headers);
        let body = body.map_err(|error| -> BoxError { error.into() });
        return Ok(Response::from_parts(parts, body.boxed_unsync()));
    }
    let Some(client) = extensions.remove::<OnUpgrade>() else {
        return Err(ApiError::bad_request("the connection cannot be upgraded"));
    };
    let agent = hyper::upgrade::on(&mut answer);
    let path = context.info.path.clone();
    tokio::spawn(async move {
        if let Err(error) = join(client, agent).await {
            tracing::debug!(path, %error, "upgraded connection ended");
        }
    });
    let mut response = Response::new(crate::response::full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

async fn join(client: OnUpgrade, agent: OnUpgrade) -> Result<(), BoxError> {
    let (client, agent) = tokio::try_join!(client, agent)?;
    tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(agent)).await?;
    Ok(())
}

fn outgoing(context: &Context, target: &Target, body: Body) -> Result<Request<Body>, ApiError> {
    let mut headers = without_hop_headers(&context.headers);
    // The credentials were for this server.
    headers.remove(AUTHORIZATION);
    if let Some(upgrade) = context.headers.get(UPGRADE) {
        headers.insert(UPGRADE, upgrade.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let host = if target.host.contains(':') {
        format!("[{}]:{}", target.host, target.port)
    } else {
        format!("{}:{}", target.host, target.port)
    };
    let host = HeaderValue::from_str(&host).map_err(ApiError::internal)?;
    headers.insert(HOST, host);
    let mut request = Request::new(body);
    *request.method_mut() = context.method.clone();
    *request.uri_mut() = target
        .path_and_query
        .parse()
        .map_err(|e| ApiError::bad_request(format!("path of the proxied request: {e}")))?;
    *request.headers_mut() = headers;
    Ok(request)
}

fn without_hop_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in HOP_BY_HOP {
        kept.remove(name);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_hop_stay_behind() {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
        headers.insert(
            "x-stream-protocol-version",
            HeaderValue::from_static("v4.channel.k8s.io"),
        );
        let kept = without_hop_headers(&headers);
        assert!(kept.contains_key("x-stream-protocol-version") && !kept.contains_key(CONNECTION));
    }
}
