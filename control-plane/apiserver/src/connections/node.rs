//! Reaching a node's agent: its address from the Node object, over TLS with the server's client certificate.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Request;
use http::header::HOST;
use http_body_util::Full;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use windlass_machinery::status::ApiError;

use crate::outbound::{self, Route, Trust};
use crate::server::ApiServer;

const CONNECT: Duration = Duration::from_secs(10);
const DEFAULT_PORT: u16 = 10250;
/// The largest answer that is read, in bytes: a node with thousands of containers.
const MAX_ANSWER: usize = 16 << 20;
/// In which of a Node's addresses to trust first, as upstream prefers them (the names last).
const ADDRESS_TYPES: [&str; 4] = ["InternalIP", "ExternalIP", "InternalDNS", "Hostname"];

/// A byte stream to the other end, whatever carries it.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A connection and what its Host header says.
pub(crate) struct Connection {
    pub io: Box<dyn Io>,
    pub host: String,
}

pub(crate) struct NodeClient {
    tls: ArcSwap<rustls::ClientConfig>,
}

impl NodeClient {
    pub(crate) fn new(tls: rustls::ClientConfig) -> Self {
        Self {
            tls: ArcSwap::from_pointee(tls),
        }
    }

    /// New connections show what `tls` holds.
    pub(crate) fn renew(&self, tls: rustls::ClientConfig) {
        self.tls.store(Arc::new(tls));
    }

    /// Connects to the agent of the node called `name`.
    ///
    /// # Errors
    /// 404 when there is no such node, 502-like internal errors when it cannot be reached.
    pub(crate) async fn connect(
        &self,
        server: &ApiServer,
        name: &str,
    ) -> Result<Connection, ApiError> {
        let (host, port) = address(server, name)?;
        let name = ServerName::try_from(host.clone())
            .map_err(|_| ApiError::internal(format!("node address {host:?} is not usable")))?;
        let stream = dial(&host, port).await?;
        let connector = TlsConnector::from(self.tls.load_full());
        let tls = tokio::time::timeout(CONNECT, connector.connect(name, stream)).await;
        let tls = tls.map_err(|_| unreachable(&host, port, &"TLS handshake timeout"))?;
        let io = tls.map_err(|error| unreachable(&host, port, &error))?;
        Ok(Connection {
            io: Box::new(io),
            host: authority(&host, port),
        })
    }

    /// What the agent of the node called `name` answers to a GET of `path`.
    ///
    /// # Errors
    /// As [`Self::connect`], and when it answers with anything but success.
    pub(crate) async fn get(
        &self,
        server: &ApiServer,
        name: &str,
        path: &'static str,
    ) -> Result<Bytes, ApiError> {
        let connection = self.connect(server, name).await?;
        let request = Request::get(path)
            .header(HOST, connection.host)
            .body(Full::<Bytes>::default())
            .map_err(ApiError::internal)?;
        let answered = outbound::exchange(connection.io, request, MAX_ANSWER).await;
        let (status, body) = answered.map_err(|why| {
            ApiError::service_unavailable(format!("node {name} does not answer: {why}"))
        })?;
        if !status.is_success() {
            let why = format!("node {name} answers {path} with {status}");
            return Err(ApiError::service_unavailable(why));
        }
        Ok(body)
    }
}

/// Connects to a pod; with `https` its certificate is not verified, since nobody says by whom it is signed.
pub(super) async fn to(scheme: &str, host: &str, port: u16) -> Result<Connection, ApiError> {
    if scheme == "https" {
        let route = Route {
            host: host.to_owned(),
            port,
            server_name: host.to_owned(),
            path: String::new(),
        };
        let connected = outbound::connect(&route, &Trust::Anything, None);
        let tls = tokio::time::timeout(CONNECT, connected).await;
        let tls = tls.map_err(|_| unreachable(host, port, &"i/o timeout"))?;
        return Ok(Connection {
            io: Box::new(tls.map_err(|why| unreachable(host, port, &why))?),
            host: authority(host, port),
        });
    }
    Ok(Connection {
        io: Box::new(dial(host, port).await?),
        host: authority(host, port),
    })
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, ApiError> {
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect((host, port))).await;
    let stream = stream.map_err(|_| unreachable(host, port, &"i/o timeout"))?;
    let stream = stream.map_err(|error| unreachable(host, port, &error))?;
    stream.set_nodelay(true).map_err(ApiError::internal)?;
    Ok(stream)
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn unreachable(host: &str, port: u16, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(
        500,
        "InternalError",
        format!(
            "error dialing backend: dial tcp {}: {error}",
            authority(host, port)
        ),
    )
}

fn address(server: &ApiServer, name: &str) -> Result<(String, u16), ApiError> {
    let missing = || ApiError::not_found("", "nodes", name);
    let node = server
        .cacher("", "nodes")
        .and_then(|nodes| nodes.get("", name));
    let node = node.ok_or_else(missing)?.decode()?;
    let addresses = node["status"]["addresses"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let host = ADDRESS_TYPES.iter().find_map(|wanted| {
        let found = addresses
            .iter()
            .find(|address| address["type"] == *wanted)?;
        found["address"].as_str().map(str::to_owned)
    });
    let host = host.ok_or_else(|| {
        ApiError::internal(format!("no preferred addresses found for node {name:?}"))
    })?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
    let port = port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0);
    Ok((host, port.unwrap_or(DEFAULT_PORT)))
}
