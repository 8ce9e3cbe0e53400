//! `v5.channel.k8s.io` on one side, SPDY streams on the other (KEP-4006).
//!
//! In the WebSocket the first byte of each message names the stream. What v5 adds to v4 is a message that
//! closes one stream, so that a client can end standard input and go on reading; SPDY can say so too, which
//! is why the runtime is dialled with that and not with a v4 WebSocket.

use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use windlass_cri::StreamTarget;

use super::spdy::{self, Encoder, Frame};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Not a stream: the next byte names the one that ends.
const CLOSE: u8 = 255;

/// Which SPDY stream carries which channel.
#[derive(Clone, Debug, Default)]
struct Streams(Vec<(u8, u32)>);

impl Streams {
    fn channel(&self, stream: u32) -> Option<u8> {
        self.0
            .iter()
            .find(|(_, id)| *id == stream)
            .map(|(channel, _)| *channel)
    }

    fn stream(&self, channel: u8) -> Option<u32> {
        self.0
            .iter()
            .find(|(number, _)| *number == channel)
            .map(|(_, id)| *id)
    }
}

/// Runs until either side ends.
pub(super) async fn run<C, R>(client: WebSocketStream<C>, runtime: R, target: StreamTarget)
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite,
{
    let (to_client, from_client) = client.split();
    let (from_runtime, mut to_runtime) = tokio::io::split(runtime);
    let streams = match open_streams(&mut to_runtime, target).await {
        Ok(streams) => streams,
        Err(error) => {
            tracing::warn!(%error, "opening the runtime's streams failed");
            return;
        }
    };
    // Each direction is a loop of its own: a process that stops reading its input until somebody reads its
    // output would otherwise hold up both.
    let (pings, pinged) = mpsc::channel(8);
    let up = client_to_runtime(from_client, to_runtime, &streams, pinged);
    let down = runtime_to_client(from_runtime, to_client, &streams, pings);
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

async fn open_streams<W: AsyncWrite + Unpin>(
    runtime: &mut W,
    target: StreamTarget,
) -> std::io::Result<Streams> {
    let mut encoder = Encoder::new()?;
    let mut out = BytesMut::new();
    let mut streams = Streams::default();
    let wanted = [
        (ERROR, "error", true),
        (STDIN, "stdin", target.stdin),
        (STDOUT, "stdout", target.stdout),
        (STDERR, "stderr", target.stderr && !target.tty),
        (RESIZE, "resize", target.tty),
    ];
    for (channel, name, wanted) in wanted {
        if wanted {
            let stream = encoder.open(&[("streamtype", name)], &mut out)?;
            streams.0.push((channel, stream));
        }
    }
    // These carry nothing from us.
    for channel in [ERROR, STDOUT, STDERR] {
        if let Some(stream) = streams.stream(channel) {
            spdy::data(stream, true, &[], &mut out);
        }
    }
    runtime.write_all(&out).await?;
    Ok(streams)
}

async fn client_to_runtime<C, R>(
    mut client: SplitStream<WebSocketStream<C>>,
    mut runtime: WriteHalf<R>,
    streams: &Streams,
    mut pinged: mpsc::Receiver<u32>,
) where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncWrite,
{
    let mut out = BytesMut::new();
    loop {
        tokio::select! {
            Some(id) = pinged.recv() => spdy::ping(id, &mut out),
            message = client.next() => match message {
                Some(Ok(Message::Binary(bytes))) => from_client(&bytes, streams, &mut out),
                Some(Ok(Message::Text(text))) => from_client(text.as_bytes(), streams, &mut out),
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => {}
            },
        }
        if !out.is_empty() && runtime.write_all(&out.split()).await.is_err() {
            break;
        }
    }
    // The client has gone: the runtime learns it from the closed connection.
    let _ = runtime.shutdown().await;
}

fn from_client(message: &[u8], streams: &Streams, out: &mut BytesMut) {
    match message {
        [CLOSE, channel @ (STDIN | RESIZE), ..] => {
            if let Some(stream) = streams.stream(*channel) {
                spdy::data(stream, true, &[], out);
            }
        }
        // An empty message opens a channel for those who wait for one.
        [channel @ (STDIN | RESIZE), bytes @ ..] if !bytes.is_empty() => {
            if let Some(stream) = streams.stream(*channel) {
                spdy::data(stream, false, bytes, out);
            }
        }
        _ => {}
    }
}

async fn runtime_to_client<C, R>(
    mut runtime: ReadHalf<R>,
    mut client: SplitSink<WebSocketStream<C>, Message>,
    streams: &Streams,
    pings: mpsc::Sender<u32>,
) where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead,
{
    let mut has_status = false;
    loop {
        let sent = match spdy::read_frame(&mut runtime).await {
            Ok(Some(Frame::Data { stream, bytes, .. })) => {
                let channel = streams.channel(stream);
                has_status |= channel == Some(ERROR) && !bytes.is_empty();
                to_client(&mut client, channel, &bytes).await
            }
            Ok(Some(Frame::Ping { id })) => {
                // When the client's side is too busy to answer, the runtime has other signs of life.
                let _ = pings.try_send(id);
                Ok(())
            }
            Ok(Some(Frame::Reset { .. } | Frame::GoAway | Frame::Other)) => Ok(()),
            Ok(None) | Err(_) => break,
        };
        if sent.is_err() {
            return;
        }
    }
    // Only after a normal closure does a client take the ends of its streams for what they are. Without a status that would
    // be a success to it, and what ran had not ended when the runtime went away.
    let (code, reason) = match has_status {
        true => (CloseCode::Normal, ""),
        false => (CloseCode::Error, "the container runtime went away"),
    };
    let close = CloseFrame {
        code,
        reason: reason.into(),
    };
    let _ = client.send(Message::Close(Some(close))).await;
}

async fn to_client<C>(
    client: &mut SplitSink<WebSocketStream<C>, Message>,
    channel: Option<u8>,
    bytes: &[u8],
) -> Result<(), tokio_tungstenite::tungstenite::Error>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    // An end is not told: in this direction v5 has no message for it, and the closed connection ends all.
    let Some(channel) = channel else {
        return Ok(());
    };
    if !bytes.is_empty() {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(bytes);
        client.send(Message::Binary(Bytes::from(message))).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    async fn pair(
        target: StreamTarget,
    ) -> (
        WebSocketStream<DuplexStream>,
        DuplexStream,
        tokio::task::JoinHandle<()>,
    ) {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (agent, runtime) = tokio::io::duplex(1 << 16);
        let server = WebSocketStream::from_raw_socket(server, Role::Server, None).await;
        let client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        (client, runtime, tokio::spawn(run(server, agent, target)))
    }

    async fn data_frame(runtime: &mut DuplexStream) -> (u32, bool, Bytes) {
        loop {
            let frame = spdy::read_frame(runtime)
                .await
                .expect("reads")
                .expect("a frame");
            if let Frame::Data { stream, fin, bytes } = frame {
                return (stream, fin, bytes);
            }
        }
    }

    #[tokio::test]
    async fn messages_become_frames_and_frames_messages() {
        let target = StreamTarget {
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let (mut client, mut runtime, tunnel) = pair(target).await;
        let (error, stdin, stdout, stderr) = (1, 3, 5, 7);
        for stream in [error, stdout, stderr] {
            assert_eq!(data_frame(&mut runtime).await, (stream, true, Bytes::new()));
        }
        client
            .send(Message::Binary(Bytes::from_static(b"\0input")))
            .await
            .expect("send");
        assert_eq!(
            data_frame(&mut runtime).await,
            (stdin, false, Bytes::from_static(b"input"))
        );
        client
            .send(Message::Binary(Bytes::from_static(&[CLOSE, STDIN])))
            .await
            .expect("send");
        assert_eq!(data_frame(&mut runtime).await, (stdin, true, Bytes::new()));

        let mut out = BytesMut::new();
        spdy::data(stdout, false, b"output", &mut out);
        spdy::ping(2, &mut out);
        spdy::data(stdout, true, b"", &mut out);
        spdy::data(error, true, br#"{"status":"Success"}"#, &mut out);
        runtime.write_all(&out).await.expect("write");
        let mut answer = [0; 12];
        runtime
            .read_exact(&mut answer)
            .await
            .expect("the ping's answer");
        assert_eq!(answer, [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2]);
        drop(runtime);
        let mut received = Vec::new();
        let mut closed = None;
        while let Some(Ok(message)) = client.next().await {
            match message {
                Message::Binary(bytes) => received.push(bytes.to_vec()),
                Message::Close(frame) => closed = frame.map(|frame| frame.code),
                _ => {}
            }
        }
        let status = [&[ERROR][..], br#"{"status":"Success"}"#].concat();
        assert_eq!(received, [b"\x01output".to_vec(), status]);
        assert_eq!(closed, Some(CloseCode::Normal));
        tunnel.await.expect("ends");
    }

    #[tokio::test]
    async fn a_runtime_that_goes_without_a_status_is_no_success() {
        let target = StreamTarget {
            stdin: false,
            stdout: true,
            stderr: false,
            tty: false,
        };
        let (mut client, mut runtime, tunnel) = pair(target).await;
        assert_eq!(data_frame(&mut runtime).await.0, 1);
        assert_eq!(data_frame(&mut runtime).await.0, 3);
        let mut out = BytesMut::new();
        spdy::data(3, false, b"half", &mut out);
        runtime.write_all(&out).await.expect("write");
        drop(runtime);
        let mut closed = None;
        while let Some(Ok(message)) = client.next().await {
            if let Message::Close(frame) = message {
                closed = frame.map(|frame| frame.code);
            }
        }
        assert_eq!(closed, Some(CloseCode::Error));
        tunnel.await.expect("ends");
    }

    #[tokio::test]
    async fn a_client_that_goes_closes_the_runtimes_connection() {
        let target = StreamTarget {
            stdin: false,
            stdout: true,
            stderr: false,
            tty: true,
        };
        let (mut client, mut runtime, tunnel) = pair(target).await;
        assert_eq!(data_frame(&mut runtime).await.0, 1);
        assert_eq!(data_frame(&mut runtime).await.0, 3);
        let resize = Bytes::from_static(b"\x04{\"Width\":80,\"Height\":24}");
        client.send(Message::Binary(resize)).await.expect("send");
        assert_eq!(data_frame(&mut runtime).await.0, 5);
        client.close(None).await.expect("close");
        assert_eq!(spdy::read_frame(&mut runtime).await.expect("reads"), None);
        tunnel.await.expect("ends");
    }
}
