//! The server over real TLS: who is let in, and logs that are followed while they are written.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use windlass_cri::Runtime;
use windlass_streaming::{
    ContainerInstance, ContainerInstances, LookupError, PodLookup, Sandbox, Server, StreamingConfig,
};

/// One pod `default/web` with a container `app` that runs until it is told to stop.
struct Pods {
    log: PathBuf,
    stopped: watch::Receiver<bool>,
}

impl PodLookup for Pods {
    fn container(
        &self,
        namespace: &str,
        pod: &str,
        _: Option<&str>,
        container: &str,
    ) -> Result<ContainerInstances, LookupError> {
        if (namespace, pod) != ("default", "web") {
            return Err(LookupError::NoPod {
                namespace: namespace.into(),
                pod: pod.into(),
            });
        }
        match container {
            "app" => {
                let running = !*self.stopped.borrow();
                let current = ContainerInstance {
                    id: "c1".into(),
                    log_path: self.log.clone(),
                    running,
                };
                Ok(ContainerInstances {
                    current: Some(current),
                    ..Default::default()
                })
            }
            "late" => Ok(ContainerInstances {
                waiting_reason: Some("ImagePullBackOff".into()),
                ..Default::default()
            }),
            _ => Err(LookupError::NoContainer {
                pod: pod.into(),
                container: container.into(),
            }),
        }
    }

    fn sandbox(&self, _: &str, _: &str, _: Option<&str>) -> Result<Sandbox, LookupError> {
        Ok(Sandbox {
            id: "s1".into(),
            ready: false,
        })
    }

    fn finished(&self, _: &str) -> BoxFuture<'static, ()> {
        let mut stopped = self.stopped.clone();
        async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        }
        .boxed()
    }

    fn pods(&self) -> Vec<serde_json::Value> {
        vec![serde_json::json!({"metadata": {"name": "web", "namespace": "default"}})]
    }
}

struct Cluster {
    ca: Issuer<'static, KeyPair>,
    address: std::net::SocketAddr,
    log: PathBuf,
    stop: watch::Sender<bool>,
    shutdown: CancellationToken,
    _folder: TempDir,
}

impl Cluster {
    async fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a CA");
        let (stop, stopped) = watch::channel(false);
        let log = folder.path().join("0.log");
        std::fs::write(&log, "").expect("a log");
        let config = StreamingConfig {
            address: ([127, 0, 0, 1], 0).into(),
            node_name: "node-1".into(),
            node_addresses: vec![[127, 0, 0, 1].into()],
            state_dir: folder.path().into(),
            client_ca: certificate.pem().into_bytes(),
        };
        let runtime = Runtime::new("unix:///does/not/exist".parse().expect("an endpoint"));
        let pods = Arc::new(Pods {
            log: log.clone(),
            stopped,
        });
        let metrics = Arc::new(|| "windlass_up 1\n".to_owned());
        let server = Server::bind(config, runtime, pods, metrics)
            .await
            .expect("bind");
        let address = server.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        tokio::spawn(server.run(shutdown.clone()));
        let ca = Issuer::new(params, key);
        Self {
            ca,
            address,
            log,
            stop,
            shutdown,
            _folder: folder,
        }
    }

    fn append(&self, lines: &str) {
        append(&self.log, lines);
    }

    /// A client with a certificate for a user and a group, or with none.
    async fn get(&self, path: &str, subject: Option<(&str, &str)>) -> http::Response<Incoming> {
        self.request(&self.ca, Method::GET, path, subject)
            .await
            .expect("an answer")
    }

    async fn request(
        &self,
        ca: &Issuer<'static, KeyPair>,
        method: Method,
        path: &str,
        subject: Option<(&str, &str)>,
    ) -> std::io::Result<http::Response<Incoming>> {
        let tls = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer));
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
        let connection = TcpStream::connect(self.address).await.expect("connect");
        let name = ServerName::try_from("node-1").expect("a name");
        let connection = TlsConnector::from(Arc::new(tls))
            .connect(name, connection)
            .await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection))
                .await
                .map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "node-1");
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        sender
            .send_request(request)
            .await
            .map_err(std::io::Error::other)
    }

    /// As the API server asks.
    async fn text(&self, path: &str) -> (StatusCode, String) {
        let response = self.get(path, Some(API_SERVER)).await;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

const API_SERVER: (&str, &str) = ("kube-apiserver-kubelet-client", "anybody");

fn append(path: &Path, lines: &str) {
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .expect("open");
    file.write_all(lines.as_bytes()).expect("write");
}

fn line(text: &str) -> String {
    format!("2026-01-02T03:04:05.5Z stdout F {text}\n")
}

/// What of a followed log comes until it contains `until`.
async fn follow(body: &mut Incoming, until: &str) -> String {
    let mut text = String::new();
    while !text.contains(until) {
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await;
        let frame = frame
            .expect("the log stands still")
            .expect("the log ended")
            .expect("a frame");
        text.push_str(std::str::from_utf8(&frame.into_data().expect("data")).expect("text"));
    }
    text
}

#[tokio::test]
async fn only_the_api_server_is_let_in() {
    let cluster = Cluster::new().await;
    assert_eq!(
        cluster.get("/healthz", None).await.status(),
        StatusCode::UNAUTHORIZED
    );
    let node = Some(("system:node:node-2", "system:nodes"));
    assert_eq!(
        cluster.get("/healthz", node).await.status(),
        StatusCode::FORBIDDEN
    );
    let admin = Some(("admin", "system:masters"));
    assert_eq!(
        cluster.get("/healthz", admin).await.status(),
        StatusCode::OK
    );
    assert_eq!(
        cluster.text("/healthz").await,
        (StatusCode::OK, "ok".into())
    );
    // Signed by another authority: the handshake itself fails.
    let other = Cluster::new().await;
    let refused = cluster
        .request(&other.ca, Method::GET, "/healthz", Some(API_SERVER))
        .await;
    assert!(refused.is_err(), "a stranger was served");
}

#[tokio::test]
async fn logs_are_read_with_their_options() {
    let cluster = Cluster::new().await;
    cluster.append(&["one", "two", "three"].map(line).concat());
    let logs = async |query: &str| {
        cluster
            .text(&format!("/containerLogs/default/web/app{query}"))
            .await
    };
    assert_eq!(logs("").await, (StatusCode::OK, "one\ntwo\nthree\n".into()));
    assert_eq!(logs("?tailLines=2").await.1, "two\nthree\n");
    assert_eq!(
        logs("?tailLines=1&timestamps=true").await.1,
        "2026-01-02T03:04:05.500000000Z three\n"
    );
    assert_eq!(logs("?limitBytes=5").await.1, "one\nt");
    assert_eq!(logs("?tailLines=x").await.0, StatusCode::BAD_REQUEST);
    let (status, text) = logs("?previous=true").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("previous terminated container"), "{text}");
    let (status, text) = cluster.text("/containerLogs/default/web/late").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        text.contains("is waiting to start: ImagePullBackOff"),
        "{text}"
    );
    assert_eq!(
        cluster.text("/containerLogs/default/web/none").await.0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        cluster.text("/containerLogs/default/gone/app").await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_followed_log_goes_on_across_a_rotation_and_ends_with_its_container() {
    let cluster = Cluster::new().await;
    cluster.append(&["one", "two"].map(line).concat());
    let path = "/containerLogs/default/web/app?follow=true&tailLines=1";
    let mut body = cluster.get(path, Some(API_SERVER)).await.into_body();
    assert_eq!(follow(&mut body, "two\n").await, "two\n");
    cluster.append("2026-01-02T03:04:05.5Z stdout P thr");
    cluster.append("ee, \n");
    assert_eq!(follow(&mut body, "three, ").await, "three, ");
    cluster.append(&line("four"));
    assert_eq!(follow(&mut body, "four\n").await, "four\n");

    // As the runtime rotates: away with the old file, which still gets a line, and a new one in its place.
    let rotated = cluster.log.with_extension("log.1");
    std::fs::rename(&cluster.log, &rotated).expect("rename");
    append(&rotated, &line("five"));
    cluster.append(&line("six"));
    assert_eq!(follow(&mut body, "six\n").await, "five\nsix\n");

    cluster.append(&line("last words"));
    cluster.stop.send_replace(true);
    let rest = tokio::time::timeout(Duration::from_secs(10), body.collect()).await;
    let rest = rest.expect("following goes on").expect("a body").to_bytes();
    assert_eq!(rest, "last words\n");
}

#[tokio::test]
async fn following_a_container_that_has_stopped_ends_at_once() {
    let cluster = Cluster::new().await;
    cluster.append(&line("done"));
    cluster.stop.send_replace(true);
    let (status, text) = cluster
        .text("/containerLogs/default/web/app?follow=true")
        .await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "done\n"));
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_with_a_reason() {
    let cluster = Cluster::new().await;
    let refused = async |method: Method, path: &str| {
        let response = cluster
            .request(&cluster.ca, method, path, Some(API_SERVER))
            .await;
        let response = response.expect("an answer");
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    let exec = "/exec/default/web/app?command=ls&output=1";
    let (status, text) = refused(Method::POST, exec).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("unable to upgrade"), "{text}");
    let (status, text) = refused(Method::POST, "/exec/default/web/app?output=1").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("at least 1 command"), "{text}");
    let (status, text) = refused(Method::POST, "/exec/default/web/app?command=ls").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("at least 1 of stdin"), "{text}");
    let (status, _) = refused(Method::POST, "/portForward/default/web").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "its sandbox is not ready");
    assert_eq!(
        refused(Method::DELETE, "/pods").await.0,
        StatusCode::METHOD_NOT_ALLOWED
    );
    assert_eq!(
        refused(Method::GET, "/etc/passwd").await.0,
        StatusCode::NOT_FOUND
    );
    cluster.stop.send_replace(true);
    let (status, text) = refused(Method::POST, exec).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("is not running"), "{text}");
}

#[tokio::test]
async fn pods_and_metrics_are_served() {
    let cluster = Cluster::new().await;
    let (status, pods) = cluster.text("/pods").await;
    let pods: serde_json::Value = serde_json::from_str(&pods).expect("JSON");
    assert_eq!((status, &pods["kind"]), (StatusCode::OK, &"PodList".into()));
    assert_eq!(pods["items"][0]["metadata"]["name"], "web");
    assert_eq!(cluster.text("/metrics").await.1, "windlass_up 1\n");
}

/// The serving certificate is the node's own: nobody can verify it.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
