//! Calls the runtime's streaming server and asks it to switch protocols.

use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::respond::{self, Body, Refusal};

const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// A refusal is a sentence; more of it is not read.
const LONGEST_REFUSAL: usize = 64 << 10;

pub(super) enum Dialled {
    Switched {
        headers: HeaderMap,
        runtime: Upgraded,
    },
    /// The runtime's own answer, for the client.
    Refused(Response<Body>),
}

/// `url` is what the CRI gave: the runtime's address with a token that is good for one use.
pub(super) async fn upgrade(
    url: &str,
    method: Method,
    headers: HeaderMap,
) -> Result<Dialled, Refusal> {
    let failed = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "the runtime's streaming server cannot be reached");
        Refusal::internal(format!("error dialing backend: {error}"))
    };
    let dial = async {
        let uri: Uri = url.parse().map_err(|error| failed(&error))?;
        if uri.scheme_str() != Some("http") {
            return Err(failed(
                &"the runtime's streaming server must speak plain http on loopback",
            ));
        }
        let authority = uri
            .authority()
            .ok_or_else(|| failed(&"the runtime's URL has no host"))?;
        let port = authority.port_u16().unwrap_or(80);
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let connection = TcpStream::connect((host, port))
            .await
            .map_err(|error| failed(&error))?;
        let _ = connection.set_nodelay(true);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection))
                .await
                .map_err(|error| failed(&error))?;
        tokio::spawn(connection.with_upgrades());
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().map_err(|error| failed(&error))?;
        *request.headers_mut() = headers;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|error| failed(&error))?;
        request.headers_mut().insert(HOST, host);
        sender
            .send_request(request)
            .await
            .map_err(|error| failed(&error))
    };
    let mut response = tokio::time::timeout(DIAL_TIMEOUT, dial)
        .await
        .map_err(|_| failed(&"the runtime does not answer"))??;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let headers = std::mem::take(response.headers_mut());
        let runtime = hyper::upgrade::on(response)
            .await
            .map_err(|error| failed(&error))?;
        return Ok(Dialled::Switched { headers, runtime });
    }
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST_REFUSAL)
        .collect()
        .await;
    let body = body.map_err(|error| failed(&error))?.to_bytes();
    let mut refused = respond::text(body);
    *refused.status_mut() = status;
    Ok(Dialled::Refused(refused))
}
