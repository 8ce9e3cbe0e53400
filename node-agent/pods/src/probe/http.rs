//! An HTTP GET; anything from 200 to 399 is success.
//!
//! Probes follow redirects within their host. One that leads elsewhere ends there and counts as success, with a
//! warning: following it would ask somebody else whether this container is well.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Uri;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How much of an answer is read.
const BODY_MOST: usize = 10 * 1024;
const REDIRECTS_MOST: usize = 10;

/// Where to ask and what to say.
#[derive(Clone)]
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
            path: rooted(path),
            tls: action.scheme.as_deref() == Some("HTTPS"),
            headers: headers
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        })
    }

    /// Where `location` leads to, unless that is another host.
    fn redirected(&self, location: &str) -> Option<Self> {
        let scheme = if self.tls { "https" } else { "http" };
        let uri = match location.strip_prefix("//") {
            Some(rest) => format!("{scheme}://{rest}"),
            None if location.starts_with('/') => return Some(self.at(location)),
            None if location.contains("://") => location.to_owned(),
            None => {
                let path = self.path.split('?').next().unwrap_or_default();
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                return Some(self.at(&format!("{folder}/{location}")));
            }
        };
        let uri: Uri = uri.parse().ok()?;
        let same = uri.host()?.trim_matches(['[', ']']) == self.host;
        let tls = uri.scheme_str() == Some("https");
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        same.then(|| Self {
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            tls,
            ..self.at(path)
        })
    }

    fn at(&self, path: &str) -> Self {
        Self {
            path: rooted(path),
            ..self.clone()
        }
    }
}

fn rooted(path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    }
}

/// What an HTTP server said.
pub(crate) struct Answer {
    pub(crate) status: u16,
    location: Option<String>,
    /// Its beginning.
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..400).contains(&self.status)
    }
}

/// The warning, if the probe succeeded with one.
pub(super) async fn probe(request: &Request) -> Result<Option<String>, String> {
    let mut request = request.clone();
    for _ in 0..REDIRECTS_MOST {
        let answer = get(&request).await?;
        if !answer.is_success() {
            let status = answer.status;
            return Err(format!("HTTP probe failed with statuscode: {status}"));
        }
        let redirects = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        let Some(location) = answer.location.as_deref().filter(|_| redirects) else {
            return Ok(None);
        };
        match request.redirected(location) {
            Some(next) => request = next,
            None => {
                let body = answer.body;
                return Ok(Some(format!(
                    "Probe terminated redirects, Response body: {body}"
                )));
            }
        }
    }
    Err(format!("stopped after {REDIRECTS_MOST} redirects"))
}

/// Asks once.
pub(crate) async fn get(request: &Request) -> Result<Answer, String> {
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
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>>
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
    let location = response.headers().get(LOCATION);
    let location = location.and_then(|value| Some(value.to_str().ok()?.to_owned()));
    // A longer answer is not an error: its beginning is enough.
    let body = match Limited::new(response.into_body(), BODY_MOST)
        .collect()
        .await
    {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(_) => String::new(),
    };
    driver.abort();
    Ok(Answer {
        status,
        location,
        body,
    })
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
            ("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", true),
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
    async fn a_redirect_to_another_host_is_a_warning() {
        let answer =
            "HTTP/1.1 302 Found\r\nlocation: http://0.0.0.0/\r\ncontent-length: 5\r\n\r\nthere";
        let (port, _served) = server(answer).await;
        let warning = probe(&request(port)).await.unwrap().unwrap();
        assert_eq!(warning, "Probe terminated redirects, Response body: there");
    }

    #[test]
    fn redirects_within_the_host_are_followed() {
        let at = |location: &str| {
            let next = request(80).redirected(location)?;
            Some((next.tls, next.port, next.path))
        };
        let http = |path: &str| Some((false, 80, path.to_owned()));
        assert_eq!(at("/healthz?a=b"), http("/healthz?a=b"));
        assert_eq!(at("live"), http("/live"));
        assert_eq!(at("http://127.0.0.1/x"), http("/x"));
        assert_eq!(
            at("https://127.0.0.1:8443"),
            Some((true, 8443, "/".to_owned()))
        );
        assert_eq!(at("http://127.0.0.2/x"), None);
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
