//! Accepts connections, knows who calls, hands requests to the routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use windlass_cri::Runtime;
use windlass_patience::accepted;

use crate::access::{self, Access, ApiServerOnly};
use crate::certificate;
use crate::identity::Identity;
use crate::lookup::PodLookup;
use crate::respond::{Body, Refusal};
use crate::routes::Routes;

/// A client that has not said what it wants by then is cut off.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct StreamingConfig {
    /// Usually `0.0.0.0:10250`.
    pub address: SocketAddr,
    pub node_name: String,
    pub node_addresses: Vec<IpAddr>,
    /// Keeps the serving certificate.
    pub state_dir: PathBuf,
    /// The cluster's CA, PEM: clients must have a certificate that it signed.
    pub client_ca: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("listening on {address} failed: {source}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("the serving certificate in {} cannot be made or read: {source}", folder.display())]
    Certificate { folder: PathBuf, source: io::Error },
    #[error("the cluster CA cannot be used to verify clients: {0}")]
    ClientCa(String),
    #[error("the serving certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

pub struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
    routes: Arc<Routes>,
    access: Arc<dyn Access>,
}

impl Server {
    /// Binds the port; `metrics` answers `/metrics` with the agent's own metrics.
    pub async fn bind(
        config: StreamingConfig,
        runtime: Runtime,
        lookup: Arc<dyn PodLookup>,
        metrics: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> Result<Self, ServerError> {
        let tls = TlsAcceptor::from(Arc::new(tls_config(&config)?));
        let address = config.address;
        let mut listener = TcpListener::bind(address).await;
        if listener.is_err() && address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED) {
            // A node without IPv6.
            let address = (Ipv4Addr::UNSPECIFIED, address.port());
            listener = TcpListener::bind(address).await;
        }
        let listener = listener.map_err(|source| ServerError::Listen { address, source })?;
        let routes = Arc::new(Routes::new(config.node_name, runtime, lookup, metrics));
        Ok(Self {
            listener,
            tls,
            routes,
            access: Arc::new(ApiServerOnly),
        })
    }

    /// Lets others in than the API server, as the cluster decides.
    #[must_use]
    pub fn with_access(mut self, access: Arc<dyn Access>) -> Self {
        self.access = access;
        self
    }

    /// What `/configz` tells: fields of the kubelet's configuration.
    #[must_use]
    pub fn with_configuration(mut self, fields: serde_json::Value) -> Self {
        if let Some(routes) = Arc::get_mut(&mut self.routes) {
            routes.configuration = serde_json::json!({"kubeletconfig": fields});
        }
        self
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`. Streams in progress are cut off then: their clients reconnect or were
    /// watching a process that goes on without them.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            let (connection, _) = tokio::select! {
                connection = accepted(|| self.listener.accept()) => connection,
                () = shutdown.cancelled() => return,
            };
            let (routes, access) = (self.routes.clone(), self.access.clone());
            let serve = serve(connection, self.tls.clone(), routes, access);
            tokio::spawn(shutdown.clone().run_until_cancelled_owned(serve));
        }
    }
}

async fn serve(
    connection: TcpStream,
    tls: TlsAcceptor,
    routes: Arc<Routes>,
    access: Arc<dyn Access>,
) {
    // Terminal input is many small packets.
    let _ = connection.set_nodelay(true);
    let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(connection)).await;
    let connection = match accepted {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    let certificates = connection.get_ref().1.peer_certificates();
    let identity = certificates.and_then(|chain| Identity::of(chain.first()?));
    let service =
        service_fn(|request| answer(request, identity.clone(), routes.clone(), access.clone()));
    let mut server = Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    server.http2().timer(TokioTimer::new());
    let connection = TokioIo::new(connection);
    if let Err(error) = server
        .serve_connection_with_upgrades(connection, service)
        .await
    {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

async fn answer(
    request: Request<Incoming>,
    identity: Option<Identity>,
    routes: Arc<Routes>,
    access: Arc<dyn Access>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let answered = async {
        let identity = match identity {
            Some(identity) => Some(identity),
            None => authenticate(&*access, &request).await?,
        };
        let Some(identity) = identity else {
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized"));
        };
        if !identity.is_api_server() {
            authorize(&*access, identity, &request).await?;
        }
        routes.answer(request).await
    };
    Ok(answered.await.unwrap_or_else(Refusal::into_response))
}

async fn authenticate(
    access: &dyn Access,
    request: &Request<Incoming>,
) -> Result<Option<Identity>, Refusal> {
    let header = request.headers().get(http::header::AUTHORIZATION);
    let token = header
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let Some(token) = token else {
        return Ok(None);
    };
    let found = access.authenticate(token.trim().to_owned()).await;
    found.map_err(|error| unanswered(&error))
}

/// Any one right to what the path stands for is enough.
async fn authorize(
    access: &dyn Access,
    identity: Identity,
    request: &Request<Incoming>,
) -> Result<(), Refusal> {
    let verb = access::verb(request.method());
    let subresources = access::subresources(request.uri().path());
    for subresource in subresources {
        let allowed = access.authorize(identity.clone(), verb, subresource).await;
        if allowed.map_err(|error| unanswered(&error))? {
            return Ok(());
        }
    }
    let text = format!(
        "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)={subresources:?})",
        identity.user
    );
    Err(Refusal::new(StatusCode::FORBIDDEN, text))
}

fn unanswered(error: &str) -> Refusal {
    tracing::warn!(error, "the cluster did not say who may ask");
    Refusal::internal("Authorization error")
}

fn tls_config(config: &StreamingConfig) -> Result<ServerConfig, ServerError> {
    let unusable = |error: &dyn std::fmt::Display| ServerError::ClientCa(error.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&config.client_ca) {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    // A client without a certificate gets as far as a 401, which says more than a broken handshake.
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .map_err(|error| unusable(&error))?;
    let folder = config.state_dir.join("pki");
    let mut names = vec![config.node_name.clone()];
    names.extend(config.node_addresses.iter().map(IpAddr::to_string));
    let serving = certificate::load_or_make(&folder, &names)
        .map_err(|source| ServerError::Certificate { folder, source })?;
    let mut tls = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![serving.certificate], serving.key)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}
