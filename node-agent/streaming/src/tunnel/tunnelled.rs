//! SPDY inside a WebSocket: each message is the next piece of one SPDY connection to the runtime.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

const READ: usize = 32 << 10;

pub(super) async fn run<C, R>(client: WebSocketStream<C>, runtime: R)
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite,
{
    let (mut to_client, mut from_client) = client.split();
    let (mut from_runtime, mut to_runtime) = tokio::io::split(runtime);
    let up = async {
        while let Some(Ok(message)) = from_client.next().await {
            let sent = match message {
                Message::Binary(bytes) => to_runtime.write_all(&bytes).await,
                Message::Text(text) => to_runtime.write_all(text.as_bytes()).await,
                Message::Close(_) => break,
                _ => Ok(()),
            };
            if sent.is_err() {
                break;
            }
        }
        // With its only user gone the connection ends, and with it what was forwarded.
        let _ = to_runtime.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; READ];
        while let Ok(length @ 1..) = from_runtime.read(&mut buffer).await {
            let message = Message::Binary(Bytes::copy_from_slice(&buffer[..length]));
            if to_client.send(message).await.is_err() {
                return;
            }
        }
        let normal = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        let _ = to_client.send(Message::Close(Some(normal))).await;
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
