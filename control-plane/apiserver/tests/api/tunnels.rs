//! Connections through the server to a node's agent, over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use windlass_apiserver::ServingTls;
use windlass_apiserver::authn::UserInfo;

use crate::server::*;

fn serving_tls() -> rustls::ServerConfig {
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap()
}

/// Reads up to the empty line that ends a head.
async fn head(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(io.read_u8().await.unwrap());
    }
    String::from_utf8(text).unwrap()
}

/// An agent that tells what it was asked, and echoes once upgraded.
async fn agent(listener: TcpListener) {
    let acceptor = TlsAcceptor::from(Arc::new(serving_tls()));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let mut io = acceptor.accept(stream).await.unwrap();
        let asked = head(&mut io).await;
        let line = asked.lines().next().unwrap().to_owned();
        if asked.contains("SPDY/3.1") {
            let switching = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\nx-asked: {line}\r\n\r\n"
            );
            io.write_all(switching.as_bytes()).await.unwrap();
            let mut bytes = [0; 4];
            io.read_exact(&mut bytes).await.unwrap();
            bytes.reverse();
            io.write_all(&bytes).await.unwrap();
            io.shutdown().await.unwrap();
        } else if asked.contains("previous=true") {
            let refusal = "HTTP/1.1 400 Bad Request\r\ncontent-length: 7\r\n\r\nno: why";
            io.write_all(refusal.as_bytes()).await.unwrap();
        } else {
            let secret = asked.to_lowercase().contains("authorization");
            let body = format!("{line} secret={secret}\n");
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            io.write_all(answer.as_bytes()).await.unwrap();
        }
    }
}

/// A server with a pod on a node whose agent is [`agent`].
async fn with_agent() -> (Server, SocketAddr) {
    let server = Server::start().await.with_default_account().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(agent(listener));
    let status = json!({
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    });
    server
        .post(
            "/api/v1/nodes",
            &json!({"metadata": {"name": "n"}, "status": status}),
        )
        .await
        .ok();
    server.post(PODS, &pod("p")).await.ok();
    server.bind("p", "n").await;

    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let shutdown = server.shutdown.clone();
    let tls = Arc::new(ServingTls::from_pointee(serving_tls()));
    tokio::spawn(server.api.clone().serve_tls(front, tls, shutdown));
    (server, address)
}

async fn connect(address: SocketAddr) -> impl AsyncRead + AsyncWrite + Unpin {
    let tls = windlass_tls::any_server().with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await
        .unwrap()
}

/// A token that may do everything.
async fn token(server: &Server) -> String {
    server
        .allow(&["system:serviceaccount:default:default"], &["*"], &["*"])
        .await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let answer = server.post(path, &json!({"spec": {}})).await.ok();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn logs_come_from_the_node() {
    let (server, ..) = with_agent().await;
    let answer = server
        .get(&format!("{PODS}/p/log?tailLines=5&follow=true&container=c"))
        .await;
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert_eq!(
        text,
        "GET /containerLogs/default/p/c?tailLines=5&follow=true HTTP/1.1 secret=false\n"
    );
    server
        .get(&format!("{PODS}/p/log?tailLines=-1"))
        .await
        .refused(422);
    let refused = server.get(&format!("{PODS}/p/log?previous=true")).await;
    let status = refused.refused(400);
    assert_eq!(
        (&status["reason"], &status["message"]),
        (&json!("BadRequest"), &json!("no: why"))
    );
    let answer = server
        .get("/api/v1/nodes/n/proxy/stats/summary?only_cpu=1")
        .await;
    assert!(
        answer.body.starts_with(b"GET /stats/summary?only_cpu=1 "),
        "{:?}",
        answer.body
    );
}

#[tokio::test]
async fn whoever_may_only_look_runs_no_command_over_a_websocket() {
    let (server, ..) = with_agent().await;
    let resources = [
        "pods",
        "pods/log",
        "pods/exec",
        "pods/attach",
        "pods/portforward",
    ];
    server
        .allow_to(&["get"], &["viewer"], &[""], &resources)
        .await;
    let get = async |what: &str| {
        let request = Request::get(format!("{PODS}/p/{what}"));
        server
            .send_as(Some(UserInfo::new("viewer", &[])), request, "")
            .await
    };
    assert_eq!(get("log").await.code, 200);
    for what in ["exec", "attach", "portforward"] {
        let status = get(what).await.refused(403);
        let why = format!("cannot create resource \"pods/{what}\"");
        assert!(
            status["message"].as_str().unwrap().contains(&why),
            "{status}"
        );
    }
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let (server, address) = with_agent().await;
    let token = token(&server).await;
    let talk = async {
        let mut io = connect(address).await;
        let request = format!(
            "POST {PODS}/p/exec?command=sh&command=-c&stdin=true&stdout=true&tty=true HTTP/1.1\r\nhost: x\r\n\
             authorization: Bearer {token}\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\
             x-stream-protocol-version: v4.channel.k8s.io\r\n\r\n"
        );
        io.write_all(request.as_bytes()).await.unwrap();
        let switched = head(&mut io).await;
        assert!(switched.starts_with("HTTP/1.1 101"), "{switched}");
        let asked = "POST /exec/default/p/c?input=1&output=1&tty=1&command=sh&command=-c HTTP/1.1";
        assert!(switched.contains(asked), "{switched}");
        io.write_all(b"abcd").await.unwrap();
        let mut answer = [0; 4];
        io.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"dcba");
        assert_eq!(
            io.read(&mut answer).await.unwrap_or(0),
            0,
            "the end is passed on as well"
        );
    };
    tokio::time::timeout(PATIENCE, talk)
        .await
        .expect("the tunnel works");
}

#[tokio::test]
async fn a_socket_serves_watches_and_lets_them_end_at_shutdown() {
    let (server, address) = with_agent().await;
    let token = token(&server).await;
    let talk = async {
        let mut io = connect(address).await;
        let request = format!(
            "GET {CONFIG_MAPS}?watch=1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n"
        );
        io.write_all(request.as_bytes()).await.unwrap();
        let begun = head(&mut io).await;
        assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
        server.post(CONFIG_MAPS, &config_map("a")).await.ok();
        let mut text = Vec::new();
        while !text.ends_with(b"}\n\r\n") {
            text.push(io.read_u8().await.unwrap());
        }
        assert!(String::from_utf8_lossy(&text).contains("\"ADDED\""));
        server.shutdown.cancel();
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"0\r\n\r\n", "an orderly end of the body");
    };
    tokio::time::timeout(PATIENCE, talk)
        .await
        .expect("an event arrives");
}

#[tokio::test]
async fn a_proxy_reaches_a_pod_and_tells_what_a_service_lacks() {
    let (server, ..) = with_agent().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut io, _) = listener.accept().await.unwrap();
            let asked = head(&mut io).await;
            let line = asked.lines().next().unwrap();
            let page = format!("<a href=\"/x\">{line}</a>");
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n{page}",
                page.len()
            );
            io.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let running = json!({"status": {"phase": "Running", "podIP": "127.0.0.1"}});
    server
        .patch(&format!("{PODS}/p/status"), "merge", &running)
        .await
        .ok();
    let answer = server
        .get(&format!("{PODS}/p:{port}/proxy/a%20b/?q=1"))
        .await;
    assert_eq!(
        answer.body,
        format!("<a href=\"{PODS}/p:{port}/proxy/x\">GET /a%20b/?q=1 HTTP/1.1</a>")
    );
    // Nobody listens there.
    server.get(&format!("{PODS}/p:1/proxy/")).await.refused(503);

    let service =
        json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    server.post(SERVICES, &service).await.ok();
    server
        .get(&format!("{SERVICES}/s:http/proxy/"))
        .await
        .refused(503);
    server
        .get(&format!("{SERVICES}/s:other/proxy/"))
        .await
        .refused(503);
}
