//! Group versions that another server answers.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use windlass_apiserver::authn::UserInfo;

use crate::server::*;

/// An address of this machine that a Service's endpoint may have: no loopback.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent; the kernel chooses the source for such a destination.
    socket.connect("192.0.2.1:9").unwrap();
    socket.local_addr().unwrap().ip()
}

/// A server that lists one resource, and else tells who it was asked by. Answers its port and certificate.
async fn extension() -> (u16, String) {
    let own = rcgen::generate_simple_self_signed(vec!["wardle.default.svc".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut io) = acceptor.accept(stream).await else {
                continue;
            };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(io.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let header = |name: &str| {
                let line = head.lines().find(|l| l.to_lowercase().starts_with(name));
                line.and_then(|l| l.split_once(": "))
                    .map(|(_, v)| v.to_owned())
            };
            let path = head.split(' ').nth(1).unwrap();
            let body = if path == "/apis/wardle.test/v1" {
                json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.test/v1", "resources": [
                    {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"]},
                    {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
                ]})
            } else if path == "/openapi/v2" {
                json!({"swagger": "2.0", "definitions": {
                    "test.wardle.v1.Flunder": {"type": "object", "description": "one of theirs"},
                    "io.k8s.api.core.v1.Pod": {"description": "not for them to say"},
                }})
            } else {
                json!({"path": path, "user": header("x-remote-user:"), "token": header("authorization:")})
            };
            let text = body.to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
                text.len()
            );
            io.write_all(answer.as_bytes()).await.unwrap();
            io.shutdown().await.ok();
        }
    });
    (port, STANDARD.encode(own.cert.pem()))
}

fn condition(object: &Value) -> &Value {
    &object["status"]["conditions"][0]
}

/// Waits until an APIService is not available for `reason`.
async fn until_reason(server: &Server, own: &str, reason: &str) {
    let wanted = |found: &Answer| condition(&found.json())["reason"] == reason;
    let found = server.until(own, wanted).await.ok();
    assert_eq!(condition(&found)["status"], "False");
}

/// Waits until an APIService is `status`.
async fn until_available(server: &Server, own: &str, status: &str) -> Value {
    let wanted = |answer: &Answer| condition(&answer.json())["status"] == status;
    server.until(own, wanted).await.ok()
}

#[tokio::test]
async fn an_api_service_hands_its_group_version_to_another_server() {
    let server = Server::start().await;
    let (port, bundle) = extension().await;
    let api_service = json!({"metadata": {"name": "v1.wardle.test"}, "spec": {
        "group": "wardle.test", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 200,
        "caBundle": bundle, "service": {"namespace": "default", "name": "wardle"},
    }});
    let path = "/apis/apiregistration.k8s.io/v1/apiservices";
    server.post(path, &api_service).await.ok();
    let own = format!("{path}/v1.wardle.test");
    until_reason(&server, &own, "ServiceNotFound").await;
    let service = json!({"metadata": {"name": "wardle"}, "spec": {"ports": [{"port": 443}]}});
    server.post(SERVICES, &service).await.ok();
    until_reason(&server, &own, "MissingEndpoints").await;
    server.get("/apis/wardle.test/v1").await.refused(503);

    let slice = json!({
        "metadata": {"name": "wardle", "labels": {"kubernetes.io/service-name": "wardle"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": port}],
        "endpoints": [{"addresses": [own_address().to_string()]}],
    });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    server.post(slices, &slice).await.ok();
    let found = until_available(&server, &own, "True").await;
    assert_eq!(condition(&found)["reason"], "Passed");

    let mut jane = UserInfo::new("jane", &["system:masters"]);
    jane.uid = "7".to_owned();
    let request = Request::get("/apis/wardle.test/v1/namespaces/x/flunders?limit=1")
        .header("authorization", "Bearer secret")
        .header("x-remote-user", "somebody else");
    let answer = server.send_as(Some(jane), request, "").await.ok();
    assert_eq!(
        answer,
        json!({"path": "/apis/wardle.test/v1/namespaces/x/flunders?limit=1", "user": "jane", "token": null})
    );

    let groups = server.get("/apis").await.ok();
    let names: Vec<_> = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| &g["name"])
        .collect();
    assert!(names.contains(&&json!("wardle.test")), "{names:?}");
    let request = Request::get("/apis").header(
        "accept",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
    );
    let groups = server.send(request, "").await.ok();
    let group = groups["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["metadata"]["name"] == "wardle.test")
        .unwrap();
    let resource = &group["versions"][0]["resources"][0];
    assert_eq!(resource["resource"], "flunders");
    assert_eq!(resource["subresources"][0]["subresource"], "status");

    let types = server.get("/openapi/v2").await.ok();
    let described = |name: &str| &types["definitions"][name]["description"];
    assert_eq!(described("test.wardle.v1.Flunder"), "one of theirs");
    assert_ne!(described("io.k8s.api.core.v1.Pod"), "not for them to say");

    // Nobody without permission gets as far as the other server.
    let stranger = UserInfo::new("stranger", &["system:authenticated"]);
    let request = Request::get("/apis/wardle.test/v1/flunders");
    server
        .send_as(Some(stranger), request, "")
        .await
        .refused(403);
}

#[tokio::test]
async fn what_the_server_answers_itself_is_registered_and_what_others_need_is_published() {
    let server = Server::start().await;
    let path = "/apis/apiregistration.k8s.io/v1/apiservices/v1.apps";
    let found = until_available(&server, path, "True").await;
    assert_eq!(condition(&found)["reason"], "Local");
    let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let config = server.until(path, |found| found.code == 200).await.ok();
    let names = &config["data"]["requestheader-allowed-names"];
    assert_eq!(names, "[\"front-proxy-client\"]");
}
