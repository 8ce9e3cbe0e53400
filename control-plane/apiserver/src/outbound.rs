//! Calls to other servers: webhooks and aggregated API servers, over TLS to a ready endpoint of a Service or to
//! a URL.
//!
//! The API server resolves a Service by itself: its host may route pod addresses and still know no ClusterIP.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::connections;
use crate::server::ApiServer;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 3 << 20;

/// Where distributions keep the authorities that the machine trusts, in the order in which Go looks for them.
const MACHINES_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Read when somebody names no authorities of their own for the first time.
static MACHINE: LazyLock<Arc<rustls::RootCertStore>> = LazyLock::new(|| {
    let found = MACHINES_BUNDLES
        .iter()
        .find_map(|path| std::fs::read(path).ok());
    let pem = found.unwrap_or_default();
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    Arc::new(roots)
});

/// Where a call goes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Service {
        namespace: String,
        name: String,
        port: u16,
        path: String,
    },
    Url(String),
}

/// By what the other end is recognised.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// PEM certificates that its own must lead to; none: those that the machine trusts.
    Bundle(Vec<u8>),
    /// Nothing: `insecureSkipTLSVerify`, and pods behind the `https:` proxy.
    Anything,
}

/// The certificate and key that are shown to the other end.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, Arc<PrivateKeyDer<'static>>);

/// A webhook that is called with JSON.
#[derive(Clone, Debug)]
pub(crate) struct Hook {
    pub target: Target,
    pub trust: Trust,
    pub timeout: Duration,
}

/// Where a connection goes, and under which name.
pub(crate) struct Route {
    pub host: String,
    pub port: u16,
    pub server_name: String,
    pub path: String,
}

impl Hook {
    /// Reads the `clientConfig` of a webhook.
    pub(crate) fn new(client_config: &Value, timeout: Duration) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = &client_config["service"];
        let target = match client_config["url"].as_str() {
            Some(url) => Target::Url(url.to_owned()),
            None => Target::Service {
                namespace: text(&service["namespace"]),
                name: text(&service["name"]),
                port: service["port"]
                    .as_u64()
                    .and_then(|p| u16::try_from(p).ok())
                    .unwrap_or(443),
                path: text(&service["path"]),
            },
        };
        let bundle = client_config["caBundle"].as_str().unwrap_or_default();
        Self {
            target,
            trust: Trust::Bundle(STANDARD.decode(bundle).unwrap_or_default()),
            timeout,
        }
    }

    /// Posts `review` and answers with the body.
    pub(crate) async fn post(&self, server: &ApiServer, review: &Value) -> Result<Bytes, String> {
        let route = route(server, &self.target)?;
        let url = format!(
            "https://{}:{}{}?timeout={}s",
            route.server_name,
            route.port,
            route.path,
            self.timeout.as_secs()
        );
        let answered = tokio::time::timeout(self.timeout, self.exchange(&route, review)).await;
        answered
            .unwrap_or_else(|_| Err("context deadline exceeded".to_owned()))
            .map_err(|why| format!("Post {url:?}: {why}"))
    }

    async fn exchange(&self, route: &Route, review: &Value) -> Result<Bytes, String> {
        let tls = connect(route, &self.trust, None).await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!(
                "{}?timeout={}s",
                route.path,
                self.timeout.as_secs()
            ))
            .header(HOST, &route.server_name)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, */*")
            .body(Full::new(Bytes::from(review.to_string())))
            .map_err(|e| e.to_string())?;
        let (status, body) = exchange(tls, request, MAX_ANSWER).await?;
        if status.is_success() {
            return Ok(body);
        }
        Err(format!(
            "an error on the server ({:?}) has prevented the request from succeeding: {status}",
            String::from_utf8_lossy(&body[..body.len().min(200)])
        ))
    }
}

/// One request over a connection of its own, and its answer, of which at most `most` bytes are read.
pub(crate) async fn exchange(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
    most: usize,
) -> Result<(StatusCode, Bytes), String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io))
        .await
        .map_err(|e| e.to_string())?;
    let driven = tokio::spawn(connection);
    let answered = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), most);
        let body = body.collect().await.map_err(|e| e.to_string())?;
        Ok((status, body.to_bytes()))
    }
    .await;
    driven.abort();
    answered
}

/// Connects and shakes hands.
pub(crate) async fn connect(
    route: &Route,
    trust: &Trust,
    identity: Option<&Identity>,
) -> Result<TlsStream<TcpStream>, String> {
    let tcp = TcpStream::connect((route.host.as_str(), route.port))
        .await
        .map_err(|e| format!("dial tcp {}:{}: {e}", route.host, route.port))?;
    tcp.set_nodelay(true).map_err(|e| e.to_string())?;
    let name = ServerName::try_from(route.server_name.clone()).map_err(|e| e.to_string())?;
    connector(trust, identity)?
        .connect(name, tcp)
        .await
        .map_err(|e| e.to_string())
}

fn connector(trust: &Trust, identity: Option<&Identity>) -> Result<TlsConnector, String> {
    let config = match trust {
        Trust::Bundle(pem) => rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinnedOrSigned::new(pem)?)),
        Trust::Anything => windlass_tls::any_server(),
    };
    let config = match identity {
        Some((chain, key)) => config
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|e| e.to_string())?,
        None => config.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Accepts what a CA of the bundle signed, and a certificate that itself stands in the bundle: webhooks are
/// often given one self-signed certificate as both, which webpki alone would refuse as a CA's.
#[derive(Debug)]
struct PinnedOrSigned {
    bundle: Vec<CertificateDer<'static>>,
    signed: Arc<WebPkiServerVerifier>,
}

impl PinnedOrSigned {
    fn new(pem: &[u8]) -> Result<Self, String> {
        let mut roots = rustls::RootCertStore::empty();
        let mut bundle = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|e| format!("caBundle: {e}"))?;
            roots
                .add(certificate.clone())
                .map_err(|e| format!("caBundle: {e}"))?;
            bundle.push(certificate);
        }
        let roots = if bundle.is_empty() {
            MACHINE.clone()
        } else {
            Arc::new(roots)
        };
        if roots.is_empty() {
            return Err("x509: certificate signed by unknown authority (no caBundle)".to_owned());
        }
        let signed = WebPkiServerVerifier::builder(roots)
            .build()
            .map_err(|e| format!("caBundle: {e}"))?;
        Ok(Self { bundle, signed })
    }
}

impl ServerCertVerifier for PinnedOrSigned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.bundle.iter().any(|pinned| pinned == end_entity) {
            let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
            rustls::client::verify_server_name(&parsed, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let signed = &self.signed;
        signed.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

/// Finds out where `target` is at the moment.
pub(crate) fn route(server: &ApiServer, target: &Target) -> Result<Route, String> {
    match target {
        Target::Service {
            namespace,
            name,
            port,
            path,
        } => {
            let services = server.cacher("", "services");
            let service = services.and_then(|services| services.get(namespace, name));
            let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
            let service = service.decode().map_err(|e| e.to_string())?;
            let (host, port) = connections::service_endpoint(server, &service, &port.to_string())
                .map_err(|e| e.to_string())?;
            let path = if path.is_empty() {
                "/".to_owned()
            } else {
                path.clone()
            };
            Ok(Route {
                host,
                port,
                server_name: format!("{name}.{namespace}.svc"),
                path,
            })
        }
        Target::Url(url) => {
            let uri: Uri = url.parse().map_err(|e| format!("url {url:?}: {e}"))?;
            let host = uri
                .host()
                .ok_or_else(|| format!("url {url:?} names no host"))?;
            // Brackets belong into a URL, not into an address.
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Ok(Route {
                host: host.to_owned(),
                port: uri.port_u16().unwrap_or(443),
                server_name: host.to_owned(),
                path: uri.path().to_owned(),
            })
        }
    }
}
