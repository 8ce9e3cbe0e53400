//! How webhooks are reached: HTTPS to a ready endpoint of a Service, or to a URL.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::rules::{Hook, Target};
use crate::connections;
use crate::context::Context;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 3 << 20;

/// Where a connection goes, and under which name.
struct Route {
    host: String,
    port: u16,
    server_name: String,
    path: String,
}

/// Posts `review` and answers with the body.
pub(super) async fn post(context: &Context, hook: &Hook, review: &Value) -> Result<Bytes, String> {
    let route = route(context, hook)?;
    let url = format!(
        "https://{}:{}{}?timeout={}s",
        route.server_name, route.port, route.path, hook.timeout_seconds
    );
    exchange(&route, hook, review)
        .await
        .map_err(|why| format!("Post {url:?}: {why}"))
}

async fn exchange(route: &Route, hook: &Hook, review: &Value) -> Result<Bytes, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let tcp = TcpStream::connect((route.host.as_str(), route.port))
        .await
        .map_err(|e| text(&e))?;
    let name = ServerName::try_from(route.server_name.clone()).map_err(|e| text(&e))?;
    let tls = connector(&hook.ca)?
        .connect(name, tcp)
        .await
        .map_err(|e| text(&e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls))
        .await
        .map_err(|e| text(&e))?;
    let driven = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}?timeout={}s", route.path, hook.timeout_seconds))
        .header(HOST, &route.server_name)
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json, */*")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|e| text(&e))?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|e| text(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER);
        let body = body.collect().await.map_err(|e| text(&e))?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        Err(format!(
            "an error on the server ({:?}) has prevented the request from succeeding: {status}",
            String::from_utf8_lossy(&body[..body.len().min(200)])
        ))
    }
    .await;
    driven.abort();
    answered
}

fn connector(ca: &[u8]) -> Result<TlsConnector, String> {
    let mut roots = rustls::RootCertStore::empty();
    let mut bundle = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate.map_err(|e| format!("caBundle: {e}"))?;
        roots
            .add(certificate.clone())
            .map_err(|e| format!("caBundle: {e}"))?;
        bundle.push(certificate);
    }
    if roots.is_empty() {
        return Err("x509: certificate signed by unknown authority (no caBundle)".to_owned());
    }
    let signed = WebPkiServerVerifier::builder(Arc::new(roots))
        .build()
        .map_err(|e| format!("caBundle: {e}"))?;
    let config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedOrSigned { bundle, signed }))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Accepts what a CA of the bundle signed, and a certificate that itself stands in the bundle: webhooks are
/// often given one self-signed certificate as both, which webpki alone would refuse as a CA's.
#[derive(Debug)]
struct PinnedOrSigned {
    bundle: Vec<CertificateDer<'static>>,
    signed: Arc<WebPkiServerVerifier>,
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

fn route(context: &Context, hook: &Hook) -> Result<Route, String> {
    match &hook.target {
        Target::Service {
            namespace,
            name,
            port,
            path,
        } => {
            let services = context.server.cacher("", "services");
            let service = services.and_then(|services| services.get(namespace, name));
            let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
            let service = service.decode().map_err(|e| e.to_string())?;
            let (host, port) =
                connections::service_endpoint(&context.server, &service, &port.to_string())
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
            Ok(Route {
                host: host.to_owned(),
                port: uri.port_u16().unwrap_or(443),
                server_name: host.to_owned(),
                path: uri.path().to_owned(),
            })
        }
    }
}
