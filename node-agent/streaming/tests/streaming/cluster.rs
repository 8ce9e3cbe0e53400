//! A cluster's CA, a node's server, and clients with certificates.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use windlass_cri::Runtime;
use windlass_streaming::{Access, Identity, PodLookup, Server, StreamingConfig};

pub(crate) const API_SERVER: (&str, &str) = ("kube-apiserver-kubelet-client", "anybody");

/// Tokens are users' names, and `collector` may read metrics.
struct Tokens;

impl Access for Tokens {
    fn authenticate(&self, token: String) -> BoxFuture<'_, Result<Option<Identity>, String>> {
        let identity = (token != "nobody").then(|| Identity {
            user: token,
            ..Identity::default()
        });
        Box::pin(std::future::ready(Ok(identity)))
    }

    fn authorize(
        &self,
        who: Identity,
        verb: &'static str,
        subresource: &'static str,
    ) -> BoxFuture<'_, Result<bool, String>> {
        let allowed = (who.user.as_str(), verb, subresource) == ("collector", "get", "metrics");
        Box::pin(std::future::ready(Ok(allowed)))
    }
}

pub(crate) struct Cluster {
    pub(crate) ca: Issuer<'static, KeyPair>,
    address: SocketAddr,
    shutdown: CancellationToken,
    _folder: TempDir,
}

impl Cluster {
    pub(crate) async fn new(pods: Arc<dyn PodLookup>, runtime: Runtime) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a CA");
        let config = StreamingConfig {
            address: ([127, 0, 0, 1], 0).into(),
            node_name: "node-1".into(),
            node_addresses: vec![[127, 0, 0, 1].into()],
            state_dir: folder.path().into(),
            client_ca: certificate.pem().into_bytes(),
        };
        let metrics = Arc::new(|| "windlass_up 1\n".to_owned());
        let server = Server::bind(config, runtime, pods, metrics)
            .await
            .expect("bind")
            .with_access(Arc::new(Tokens))
            .with_configuration(serde_json::json!({"maxPods": 110}));
        let address = server.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        tokio::spawn(server.run(shutdown.clone()));
        Self {
            ca: Issuer::new(params, key),
            address,
            shutdown,
            _folder: folder,
        }
    }

    /// A client with a certificate for a user and a group, or with none.
    pub(crate) async fn get(
        &self,
        path: &str,
        subject: Option<(&str, &str)>,
    ) -> http::Response<Incoming> {
        let none = HeaderMap::new();
        self.request(&self.ca, Method::GET, path, subject, none)
            .await
            .expect("an answer")
    }

    /// As the API server asks.
    pub(crate) async fn text(&self, path: &str) -> (StatusCode, String) {
        text(self.get(path, Some(API_SERVER)).await).await
    }

    pub(crate) async fn request(
        &self,
        ca: &Issuer<'static, KeyPair>,
        method: Method,
        path: &str,
        subject: Option<(&str, &str)>,
        headers: HeaderMap,
    ) -> std::io::Result<http::Response<Incoming>> {
        let tls = windlass_tls::any_server();
        let tls = match subject {
            None => tls.with_no_client_auth(),
            Some((user, group)) => {
                let mut params = CertificateParams::default();
                params.distinguished_name.push(DnType::CommonName, user);
                params
                    .distinguished_name
                    .push(DnType::OrganizationName, group);
                let key = KeyPair::generate().expect("a key");
                let signed = params.signed_by(&key, ca).expect("a certificate");
                let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
                tls.with_client_auth_cert(vec![signed.der().clone()], key)
                    .expect("usable")
            }
        };
        let connection = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("node-1").expect("a name");
        let connection = TlsConnector::from(Arc::new(tls))
            .connect(name, connection)
            .await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection))
                .await
                .map_err(std::io::Error::other)?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().expect("a path");
        *request.headers_mut() = headers;
        request
            .headers_mut()
            .insert("host", http::HeaderValue::from_static("node-1"));
        sender
            .send_request(request)
            .await
            .map_err(std::io::Error::other)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub(crate) async fn text(response: http::Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("text"))
}
