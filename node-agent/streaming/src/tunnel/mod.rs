//! Connects a client's upgraded connection with the runtime's streaming server.
//!
//! Where both speak the same protocol, bytes are passed on untouched: SPDY/3.1, and WebSocket with the
//! `v4.channel.k8s.io` framing. Runtimes refuse the two newer ones, so the node speaks them itself:
//! `v5.channel.k8s.io` ([`channels`]), which alone can say over a WebSocket that standard input has ended,
//! and SPDY inside a WebSocket for port-forward ([`tunnelled`]). A log over a WebSocket is the node's
//! own ([`log`]): no runtime has a part in it.

mod channels;
mod dial;
mod log;
mod spdy;
mod tunnelled;

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use windlass_cri::StreamTarget;

pub(crate) use self::log::open as open_log;

use self::dial::Dialled;
use crate::respond::{self, Body, Refusal};

const V5_CHANNELS: &str = "v5.channel.k8s.io";
const SPDY_PORT_FORWARD: &str = "SPDY/3.1+portforward.k8s.io";

/// SPDY's own header for what in a WebSocket is the subprotocol.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What a stream goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Container,
    Ports,
}

/// How a client wants to talk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As the runtime does.
    PassedOn,
    Channels {
        accept: String,
    },
    Tunnelled {
        accept: String,
    },
}

impl Kind {
    pub(crate) fn of<B>(request: &Request<B>, to: To) -> Result<Self, Refusal> {
        let headers = request.headers();
        let upgrade = header_text(headers, &UPGRADE).to_ascii_lowercase();
        if upgrade == "spdy/3.1" {
            return Ok(Self::PassedOn);
        }
        if upgrade != "websocket" {
            let text = "unable to upgrade: neither SPDY/3.1 nor a WebSocket was asked for";
            return Err(Refusal::bad_request(text));
        }
        let offered = offered_protocols(headers);
        let accept = || accept_key(headers);
        let offers = |protocol: &str| offered.iter().any(|it| it == protocol);
        // Some clients offer all channels that they know for everything: ports have none of the fifth version.
        match to {
            To::Container if offers(V5_CHANNELS) => Ok(Self::Channels { accept: accept()? }),
            To::Ports if offers(SPDY_PORT_FORWARD) => Ok(Self::Tunnelled { accept: accept()? }),
            To::Container | To::Ports => Ok(Self::PassedOn),
        }
    }
}

/// Whether the client wants to go on with a WebSocket.
pub(crate) fn wants_web_socket(headers: &HeaderMap) -> bool {
    header_text(headers, &UPGRADE).eq_ignore_ascii_case("websocket")
}

fn offered_protocols(headers: &HeaderMap) -> Vec<String> {
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    offered
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(|name| name.trim().to_owned())
        .collect()
}

fn accept_key(headers: &HeaderMap) -> Result<String, Refusal> {
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| Refusal::bad_request("the WebSocket has no key"))?;
    Ok(derive_accept_key(key.as_bytes()))
}

/// Dials the runtime, and switches the client over once the runtime has agreed.
pub(crate) async fn open(
    mut request: Request<Incoming>,
    kind: Kind,
    url: &str,
    target: StreamTarget,
) -> Result<Response<Body>, Refusal> {
    let client = hyper::upgrade::on(&mut request);
    match kind {
        Kind::PassedOn => pass_on(request, client, url).await,
        Kind::Channels { accept } => {
            let runtime = match spdy_dial(url, "v4.channel.k8s.io").await? {
                Dialled::Switched { runtime, .. } => runtime,
                Dialled::Refused(response) => return Ok(response),
            };
            spawn(client, move |client| async move {
                channels::run(web_socket(client).await, TokioIo::new(runtime), target).await;
            });
            Ok(switched(&accept, Some(V5_CHANNELS)))
        }
        Kind::Tunnelled { accept } => {
            let runtime = match spdy_dial(url, "portforward.k8s.io").await? {
                Dialled::Switched { runtime, .. } => runtime,
                Dialled::Refused(response) => return Ok(response),
            };
            spawn(client, move |client| async move {
                tunnelled::run(web_socket(client).await, TokioIo::new(runtime)).await;
            });
            Ok(switched(&accept, Some(SPDY_PORT_FORWARD)))
        }
    }
}

async fn pass_on(
    request: Request<Incoming>,
    client: OnUpgrade,
    url: &str,
) -> Result<Response<Body>, Refusal> {
    let mut headers = HeaderMap::new();
    for (name, value) in request.headers() {
        let concerns_the_upgrade = [CONNECTION, UPGRADE, STREAM_PROTOCOL].contains(name)
            || name.as_str().starts_with("sec-websocket-");
        if concerns_the_upgrade {
            headers.append(name.clone(), value.clone());
        }
    }
    match dial::upgrade(url, request.method().clone(), headers).await? {
        Dialled::Refused(response) => Ok(response),
        Dialled::Switched { headers, runtime } => {
            spawn(client, move |client| async move {
                let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
                // An end with an error is an end: the other side learns it from its closed connection.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut runtime).await;
            });
            let mut response = respond::text("");
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.headers_mut() = headers;
            Ok(response)
        }
    }
}

async fn spdy_dial(url: &str, protocol: &'static str) -> Result<Dialled, Refusal> {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    dial::upgrade(url, Method::POST, headers).await
}

/// Runs a stream on a task of its own once the client has got our answer.
fn spawn<F>(client: OnUpgrade, stream: impl FnOnce(Upgraded) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send,
{
    tokio::spawn(async move {
        match client.await {
            Ok(client) => stream(client).await,
            Err(error) => tracing::debug!(%error, "a client went away before its stream began"),
        }
    });
}

async fn web_socket(client: Upgraded) -> WebSocketStream<TokioIo<Upgraded>> {
    WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await
}

fn switched(accept: &str, protocol: Option<&'static str>) -> Response<Body> {
    let mut response = respond::text("");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Some(protocol) = protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let accept = HeaderValue::from_str(accept).expect("base64 is a header value");
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(headers: &[(&str, &str)]) -> Result<Kind, Refusal> {
        kind_to(To::Container, headers)
    }

    fn kind_to(to: To, headers: &[(&str, &str)]) -> Result<Kind, Refusal> {
        let mut request = Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Kind::of(&request.body(()).expect("a request"), to)
    }

    #[test]
    fn the_newer_protocols_are_ours_and_the_others_the_runtimes() {
        let web_socket = [
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let with_to = |to, protocol| {
            let mut headers = web_socket.to_vec();
            headers.push(("Sec-WebSocket-Protocol", protocol));
            kind_to(to, &headers).expect("an upgrade")
        };
        let with = |protocol| with_to(To::Container, protocol);
        // The example of RFC 6455.
        let accept = || "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
        assert_eq!(with("v4.channel.k8s.io"), Kind::PassedOn);
        assert_eq!(
            with("v4.channel.k8s.io, v5.channel.k8s.io"),
            Kind::Channels { accept: accept() }
        );
        assert_eq!(
            with_to(To::Ports, SPDY_PORT_FORWARD),
            Kind::Tunnelled { accept: accept() }
        );
        // The official Python client's way of asking for ports.
        assert_eq!(
            with_to(To::Ports, "v5.channel.k8s.io,v4.channel.k8s.io"),
            Kind::PassedOn
        );
        assert_eq!(
            kind(&[("Upgrade", "SPDY/3.1")]).expect("an upgrade"),
            Kind::PassedOn
        );
        assert_eq!(
            kind(&[]).expect_err("no upgrade").status,
            StatusCode::BAD_REQUEST
        );
        let keyless = [
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Protocol", V5_CHANNELS),
        ];
        assert_eq!(
            kind(&keyless).expect_err("no key").status,
            StatusCode::BAD_REQUEST
        );
    }
}
