//! Connections to node agents, pods and services: TCP, and TLS where asked for.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Security, Target};

/// How long a connection may take to be established, TLS included.
const PATIENCE: Duration = Duration::from_secs(10);

/// Dials the other end of a [`Target`].
pub struct NodeClient {
    node: TlsConnector,
    unverified: TlsConnector,
}

/// A connection's bytes.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl NodeClient {
    /// `tls` shows the API server's client certificate and accepts the agents' self-made ones.
    pub fn new(mut tls: rustls::ClientConfig) -> Self {
        // Upgrades exist in HTTP/1.1 only.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut unverified = tls.clone();
        // Whoever is behind a proxy has no business with the certificate that node agents trust.
        unverified.client_auth_cert_resolver = Arc::new(NoClientCertificate);
        Self {
            node: TlsConnector::from(Arc::new(tls)),
            unverified: TlsConnector::from(Arc::new(unverified)),
        }
    }

    pub(super) async fn dial(&self, target: &Target) -> std::io::Result<Box<dyn Stream>> {
        let connected = tokio::time::timeout(PATIENCE, self.dial_patiently(target)).await;
        connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    async fn dial_patiently(&self, target: &Target) -> std::io::Result<Box<dyn Stream>> {
        let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
        tcp.set_nodelay(true)?;
        let connector = match target.security {
            Security::Plain => return Ok(Box::new(tcp)),
            Security::Node => &self.node,
            Security::Unverified => &self.unverified,
        };
        let name = ServerName::try_from(target.host.clone()).map_err(std::io::Error::other)?;
        Ok(Box::new(connector.connect(name, tcp).await?))
    }
}

#[derive(Debug)]
struct NoClientCertificate;

impl rustls::client::ResolvesClientCert for NoClientCertificate {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
