//! A client without credentials of its own: it trusts the cluster's CA and knows nothing else.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::http::{self, Response};
use crate::kubectl::kubectl;

/// GET over TLS with these headers, and no client certificate.
pub fn get(path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    let config = kubectl(&["config", "view", "--raw", "--minify", "-o", "json"])?;
    let config: Value = serde_json::from_str(&config)?;
    let cluster = &config["clusters"][0]["cluster"];
    let server = cluster["server"]
        .as_str()
        .and_then(|url| url.strip_prefix("https://"));
    let server = server.context("the kubeconfig names no server")?;
    let (host, _) = server
        .rsplit_once(':')
        .context("the server's URL has no port")?;
    let ca = cluster["certificate-authority-data"]
        .as_str()
        .context("the kubeconfig has no CA")?;

    let mut stream = StreamOwned::new(
        ClientConnection::new(
            Arc::new(trusting(ca)?),
            ServerName::try_from(host)?.to_owned(),
        )?,
        TcpStream::connect(server)?,
    );
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    stream.write_all((request + "\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    http::parse(&answer)
}

fn trusting(ca: &str) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&STANDARD.decode(ca)?).context("the CA")?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
