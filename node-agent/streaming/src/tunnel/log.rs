//! A log over a WebSocket: one message for each piece, and a close at its end.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio_tungstenite::tungstenite::Message;

use super::{accept_key, offered_protocols, spawn, switched, web_socket};
use crate::logs::LogStream;
use crate::respond::{Body, Refusal};

const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";

/// Switches the client over and sends it the log.
pub(crate) fn open(
    mut request: Request<Incoming>,
    mut log: LogStream,
) -> Result<Response<Body>, Refusal> {
    let accept = accept_key(request.headers())?;
    let offered = offered_protocols(request.headers());
    let protocol = [BINARY, BASE64]
        .into_iter()
        .find(|known| offered.iter().any(|it| it == known));
    if protocol.is_none() && !offered.is_empty() {
        return Err(Refusal::bad_request(format!(
            "none of the protocols {offered:?} can carry a log"
        )));
    }
    let as_text = protocol == Some(BASE64);
    let client = hyper::upgrade::on(&mut request);
    spawn(client, move |client| async move {
        let (mut to_client, mut from_client) = web_socket(client).await.split();
        let send = async {
            while let Some(Ok(piece)) = log.recv().await {
                let message = match as_text {
                    true => Message::text(STANDARD.encode(&piece)),
                    false => Message::binary(piece),
                };
                if to_client.send(message).await.is_err() {
                    return;
                }
            }
            // Whoever has gone already needs no farewell.
            let _ = to_client.close().await;
        };
        // What the client says is nothing to a log, but its going ends it.
        let listen = async { while let Some(Ok(_)) = from_client.next().await {} };
        tokio::pin!(send);
        tokio::select! {
            () = &mut send => {}
            () = listen => {}
        }
    });
    Ok(switched(&accept, protocol))
}
