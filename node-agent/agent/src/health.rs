//! A plain HTTP port for probes and metrics: `/healthz`, `/readyz`, `/metrics`.
//!
//! For the network role on clusters whose kubelet is another's: there is no 10250 of ours
//! to ask then. Tells nothing that needs protection, and should listen on the node only.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use windlass_patience::accepted;

use crate::metrics::MetricsText;

/// What the port tells.
#[derive(Clone)]
pub(crate) struct Health {
    /// Why the network is not ready, if it is not.
    pub(crate) network: watch::Receiver<Result<(), String>>,
    /// The metrics' text, made when asked for.
    pub(crate) metrics: MetricsText,
}

/// Binds the port; what is returned serves it until `stop`.
pub(crate) async fn serve(
    address: SocketAddr,
    health: Health,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("serve health on {address}"))?;
    Ok(async move {
        answer_on(listener, health, stop).await;
        Ok(())
    })
}

/// Serves a port that is bound, until `stop`.
pub(crate) async fn answer_on(listener: TcpListener, health: Health, stop: CancellationToken) {
    loop {
        let (stream, _) = tokio::select! {
            () = stop.cancelled() => return,
            connection = accepted(|| listener.accept()) => connection,
        };
        let health = health.clone();
        let service = service_fn(move |request| {
            let response = answer(&health, &request);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
    }
}

fn answer(health: &Health, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz" | "/livez") => (StatusCode::OK, "ok".to_owned()),
        (&Method::GET, "/readyz") => match health.network.borrow().clone() {
            Ok(()) => (StatusCode::OK, "ok".to_owned()),
            Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason),
        },
        (&Method::GET, "/metrics") => (StatusCode::OK, (health.metrics)()),
        _ => (StatusCode::NOT_FOUND, "not found".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use std::sync::Arc;

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_agent_is_ready_when_its_network_is() {
        let (state, network) = watch::channel(Err("not yet".to_owned()));
        let health = Health {
            network,
            metrics: Arc::new(|| "metric 1\n".to_owned()),
        };
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(free, health, stop.clone()).await.unwrap());
        assert!(get(free, "/healthz").await.starts_with("HTTP/1.1 200"));
        let answer = get(free, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.ends_with("not yet"),
            "{answer}"
        );
        state.send_modify(|state| *state = Ok(()));
        assert!(get(free, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(free, "/metrics").await.ends_with("metric 1\n"));
        assert!(get(free, "/else").await.starts_with("HTTP/1.1 404"));
        stop.cancel();
        task.await.unwrap().unwrap();
    }
}
