//! A plain HTTP port that answers GETs from memory: what balancers and probes ask of a
//! service proxy.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use windlass_patience::accepted;

const NO_SNIFFING: (HeaderName, HeaderValue) = (
    HeaderName::from_static("x-content-type-options"),
    HeaderValue::from_static("nosniff"),
);

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(healthy: bool, body: String) -> Self {
        Self {
            status: match healthy {
                true => StatusCode::OK,
                false => StatusCode::SERVICE_UNAVAILABLE,
            },
            content_type: "application/json",
            headers: vec![NO_SNIFFING],
            body,
        }
    }

    /// In the words of Go's library.
    fn not_found() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            content_type: "text/plain; charset=utf-8",
            headers: vec![NO_SNIFFING],
            body: "404 page not found\n".to_owned(),
        }
    }

    pub(super) fn text(body: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "text/plain; version=0.0.4",
            headers: Vec::new(),
            body,
        }
    }
}

/// What a port says to the path of a GET; `None`: nothing is there.
pub(super) type Handler = Arc<dyn Fn(&str) -> Option<Answer> + Send + Sync>;

/// Where no address is specified, on those of both families, as Go's library does and who asks a kube-proxy is used to.
pub(super) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return TcpListener::bind(address).await;
    }
    let port = address.port();
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        // A node without IPv6.
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

/// Answers for as long as it is polled; what is being answered then is cut off.
pub(super) async fn serve(listener: TcpListener, handler: Handler) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            connection = accepted(|| listener.accept()) => connection,
            Some(_) = connections.join_next() => continue,
        };
        let handler = handler.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let response = respond(&handler, &request);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // As kube-proxy's look to who reads them with the eye, or with grep.
            .title_case_headers(true)
            .serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "a client of a health port left");
            }
        });
    }
}

fn respond(handler: &Handler, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    // By whatever method, as kube-proxy does.
    let answer = handler(request.uri().path()).unwrap_or_else(Answer::not_found);
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.extend(answer.headers);
    response
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    /// Status line, headers and body of a GET.
    pub(in crate::services) async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}
