//! A server that says the same to whatever it is asked: what clients, TLS, HTTP and the machine take by themselves.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Response, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::connection::Endpoint;

pub struct Replay {
    pub endpoint: Endpoint,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Replay {
    /// With threads of its own, as another process has them.
    pub async fn start(answer: Bytes) -> Result<Self> {
        let (acceptor, client) = tls()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = Endpoint {
            address: listener.local_addr()?,
            tls: Arc::new(client),
        };
        let listener = listener.into_std()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("starting a runtime for the baseline")?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, acceptor, answer) => {}
                }
            });
        });
        Ok(Self {
            endpoint,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// A certificate of its own, and a client that trusts it.
fn tls() -> Result<(TlsAcceptor, rustls::ClientConfig)> {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key.into())
        .context("the baseline's TLS")?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(own.cert.der().clone())?;
    let client = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((TlsAcceptor::from(Arc::new(server)), client))
}

async fn accept(listener: std::net::TcpListener, acceptor: TlsAcceptor, answer: Bytes) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, answer) = (acceptor.clone(), answer.clone());
        tokio::spawn(async move {
            stream.set_nodelay(true).ok();
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let say = service_fn(move |_| {
                let response = Response::builder()
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(Full::new(answer.clone()));
                async move { Ok::<_, Infallible>(response.expect("a header")) }
            });
            http1::Builder::new()
                .serve_connection(TokioIo::new(stream), say)
                .await
                .ok();
        });
    }
}
