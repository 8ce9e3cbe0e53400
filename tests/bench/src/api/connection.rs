//! One HTTP/1.1 connection over TLS, kept: a client that waits for each answer before it asks again.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where a server listens, and with what a client meets it.
#[derive(Clone)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub tls: Arc<rustls::ClientConfig>,
}

pub struct Connection(SendRequest<Full<Bytes>>);

impl Connection {
    pub async fn open(server: &Endpoint) -> Result<Self> {
        let stream = connect(server).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its errors are those of the requests.
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    pub async fn get(&mut self, path: &str) -> Result<Bytes> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    pub async fn post(&mut self, path: &str, object: Bytes) -> Result<Bytes> {
        self.call(Method::POST, path, object).await
    }

    async fn call(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }

    /// The answer's head; its body follows.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(body))?;
        self.0.ready().await?;
        self.0
            .send_request(request)
            .await
            .with_context(|| path.to_owned())
    }
}

pub async fn connect(server: &Endpoint) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server.address).await?;
    stream.set_nodelay(true)?;
    let name = "localhost".try_into().context("a name")?;
    Ok(TlsConnector::from(server.tls.clone())
        .connect(name, stream)
        .await?)
}
