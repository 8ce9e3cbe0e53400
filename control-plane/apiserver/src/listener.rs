//! The TLS listener: HTTP/1.1 and HTTP/2 on one port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Request;
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service;
use windlass_patience::accepted;

use crate::Body;
use crate::server::ApiServer;
use crate::service::{PeerAddress, PeerCertificates};
use crate::stall::StallGuard;

/// A client that does not finish its handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// ... or its request's head.
const HEADERS: Duration = Duration::from_secs(30);
/// A client that does not read what it asked for is dropped after this.
const STALL: Duration = Duration::from_secs(60);
/// Requests that are being answered may take this long once the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// Requests of one HTTP/2 connection at a time, as upstream.
const STREAMS: u32 = 1000;

/// How connections from outside are secured; each new one by what is there when it comes.
pub type ServingTls = ArcSwap<rustls::ServerConfig>;

impl ApiServer {
    /// Serves `listener` until `shutdown`, then lets running requests finish.
    pub async fn serve_tls(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<ServingTls>,
        shutdown: CancellationToken,
    ) {
        let graceful = GracefulShutdown::new();
        loop {
            let (stream, address) = tokio::select! {
                connection = accepted(|| listener.accept()) => connection,
                () = shutdown.cancelled() => break,
            };
            let server = self.clone();
            let acceptor = TlsAcceptor::from(tls.load_full());
            let watcher = graceful.watcher();
            tokio::spawn(async move {
                if let Err(error) = server.connection(stream, address, acceptor, watcher).await {
                    tracing::debug!(%error, "connection ended");
                }
            });
        }
        drop(listener);
        if tokio::time::timeout(GRACE, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::info!("connections cut off at shutdown");
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        acceptor: TlsAcceptor,
        watcher: Watcher,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        stream.set_nodelay(true)?;
        let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
        let peer: Option<Arc<[CertificateDer<'static>]>> = stream
            .get_ref()
            .1
            .peer_certificates()
            .map(|chain| chain.iter().map(|c| c.clone().into_owned()).collect());
        let service = self.service();
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let mut request =
                request.map(|body| -> Body { body.map_err(crate::BodyError::new).boxed_unsync() });
            request.extensions_mut().insert(PeerAddress(address));
            if let Some(peer) = &peer {
                request
                    .extensions_mut()
                    .insert(PeerCertificates(peer.clone()));
            }
            service.clone().call(request)
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS)
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .keep_alive_interval(Some(Duration::from_secs(30)));
        let connection = builder
            .serve_connection_with_upgrades(TokioIo::new(StallGuard::new(stream, STALL)), service);
        watcher.watch(connection.into_owned()).await
    }

    /// What a TLS listener needs to ask clients for certificates; their chains are judged per request.
    pub fn client_certificate_verifier(
        &self,
    ) -> Arc<dyn rustls::server::danger::ClientCertVerifier> {
        self.authenticator.tls_verifier()
    }
}
