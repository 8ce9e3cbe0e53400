//! An HTTP GET; anything from 200 to 399 is success.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How much of an answer is read.
const BODY_MOST: usize = 10 * 1024;

/// Where to ask and what to say.
pub(crate) struct Request {
    host: String,
    port: u16,
    path: String,
    tls: bool,
    headers: Vec<(String, String)>,
}

impl Request {
    /// From the spec; without a host of its own it goes to the pod.
    pub(crate) fn of(
        action: &HTTPGetAction,
        container: &Container,
        ip: Option<IpAddr>,
    ) -> Result<Self, String> {
        let path = action.path.as_deref().unwrap_or("/");
        let headers = action.http_headers.iter().flatten();
        Ok(Self {
            host: super::host(action.host.as_deref(), ip)?,
            port: super::port(&action.port, container)?,
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
            tls: action.scheme.as_deref() == Some("HTTPS"),
            headers: headers
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        })
    }
}

pub(super) async fn probe(request: &Request) -> Result<(), String> {
    let (status, _) = get(request).await?;
    if (200..400).contains(&status) {
        return Ok(());
    }
    Err(format!("HTTP probe failed with statuscode: {status}"))
}

/// Asks; the status and the answer's beginning.
pub(crate) async fn get(request: &Request) -> Result<(u16, String), String> {
    let Request {
        host,
        port,
        path,
        tls,
        ..
    } = request;
    let scheme = if *tls { "https" } else { "http" };
    let bracketed = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let failed = |error: &dyn std::fmt::Display| {
        format!("Get \"{scheme}://{bracketed}:{port}{path}\": {error}")
    };
    let stream = TcpStream::connect((host.as_str(), *port))
        .await
        .map_err(|e| failed(&e))?;
    let answer = if *tls {
        let name = ServerName::try_from(host.clone()).map_err(|e| failed(&e))?;
        let connector = TlsConnector::from(unverified());
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(|e| failed(&e))?;
        exchange(stream, request, &bracketed).await
    } else {
        exchange(stream, request, &bracketed).await
    };
    answer.map_err(|error| failed(&error))
}

async fn exchange<S>(
    stream: S,
    request: &Request,
    host: &str,
) -> Result<(u16, String), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut message = hyper::Request::get(&request.path).body(Empty::<Bytes>::new())?;
    let headers = message.headers_mut();
    headers.insert(
        HOST,
        HeaderValue::from_str(&format!("{host}:{}", request.port))?,
    );
    headers.insert(USER_AGENT, HeaderValue::from_static("kube-probe/1.35"));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    for (name, value) in &request.headers {
        headers.insert(
            HeaderName::try_from(name.as_str())?,
            HeaderValue::from_str(value)?,
        );
    }
    let response = sender.send_request(message).await?;
    let status = response.status().as_u16();
    // A longer answer is not an error: its beginning is enough.
    let body = match Limited::new(response.into_body(), BODY_MOST)
        .collect()
        .await
    {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(_) => String::new(),
    };
    driver.abort();
    Ok((status, body))
}

/// Probes do not verify certificates, by contract: a pod is asked by its address.
fn unverified() -> Arc<ClientConfig> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    CONFIG
        .get_or_init(|| Arc::new(windlass_tls::any_server().with_no_client_auth()))
        .clone()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn server(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let count = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..count]).into_owned()
        });
        (port, served)
    }

    fn request(port: u16) -> Request {
        let action = json!({
            "path": "health", "port": port, "httpHeaders": [{"name": "X-A", "value": "b"}],
        });
        let container = Container::default();
        let ip = "127.0.0.1".parse().ok();
        Request::of(&serde_json::from_value(action).unwrap(), &container, ip).unwrap()
    }

    #[tokio::test]
    async fn the_status_decides() {
        for (answer, healthy) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
            (
                "HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n",
                true,
            ),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", false),
            ("HTTP/1.1 500 Broken\r\ncontent-length: 0\r\n\r\n", false),
        ] {
            let (port, served) = server(answer).await;
            assert_eq!(probe(&request(port)).await.is_ok(), healthy, "{answer}");
            let asked = served.await.unwrap().to_lowercase();
            assert!(asked.starts_with("get /health http/1.1"), "{asked}");
            assert!(asked.contains("x-a: b") && asked.contains("user-agent: kube-probe/1.35"));
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_a_failure_that_names_the_url() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = probe(&request(port)).await.unwrap_err();
        assert!(
            error.starts_with(&format!("Get \"http://127.0.0.1:{port}/health\": ")),
            "{error}"
        );
    }
}
