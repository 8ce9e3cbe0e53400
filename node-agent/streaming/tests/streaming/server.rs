//! Who is let in, and logs that are followed while they are written.

use std::io::Write;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tempfile::TempDir;
use tokio::sync::watch;
use windlass_cri::Runtime;
use windlass_streaming::{
    ContainerInstance, ContainerInstances, LookupError, PodLookup, Sandbox, VolumeUsage,
};

use crate::cluster::{API_SERVER, Cluster, text};

/// One pod `default/web` with a container `app` that runs until it is told to stop.
struct Pods {
    log: PathBuf,
    stopped: watch::Receiver<bool>,
}

impl PodLookup for Pods {
    fn volumes(&self) -> BoxFuture<'static, Vec<VolumeUsage>> {
        async { Vec::new() }.boxed()
    }

    fn probe_metrics(&self) -> String {
        "prober_probe_total 1\n".to_owned()
    }

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

/// A cluster whose node runs that pod.
struct Node {
    cluster: Cluster,
    log: PathBuf,
    stop: watch::Sender<bool>,
    _folder: TempDir,
}

impl Node {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("0.log");
        std::fs::write(&log, "").expect("a log");
        let (stop, stopped) = watch::channel(false);
        let pods = Arc::new(Pods {
            log: log.clone(),
            stopped,
        });
        let runtime = Runtime::new("unix:///does/not/exist".parse().expect("an endpoint"));
        let cluster = Cluster::new(pods, runtime).await;
        Self {
            cluster,
            log,
            stop,
            _folder: folder,
        }
    }

    fn append(&self, lines: &str) {
        append(&self.log, lines);
    }
}

impl Deref for Node {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

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
    let cluster = Node::new().await;
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
    let other = Node::new().await;
    let refused = cluster
        .request(
            &other.ca,
            Method::GET,
            "/healthz",
            Some(API_SERVER),
            HeaderMap::new(),
        )
        .await;
    assert!(refused.is_err(), "a stranger was served");
}

#[tokio::test]
async fn the_cluster_says_who_else_may_ask_for_what() {
    let cluster = Node::new().await;
    let status = async |token: &str, path: &str| {
        let mut headers = HeaderMap::new();
        let value = format!("Bearer {token}").parse().expect("a header");
        headers.insert(http::header::AUTHORIZATION, value);
        let answer = cluster.request(&cluster.ca, Method::GET, path, None, headers);
        answer.await.expect("an answer").status()
    };
    assert_eq!(status("collector", "/metrics").await, StatusCode::OK);
    assert_eq!(status("collector", "/metrics/probes").await, StatusCode::OK);
    assert_eq!(status("collector", "/pods").await, StatusCode::FORBIDDEN);
    assert_eq!(status("other", "/metrics").await, StatusCode::FORBIDDEN);
    assert_eq!(status("nobody", "/metrics").await, StatusCode::UNAUTHORIZED);
    let (_, text) = cluster.text("/configz").await;
    assert!(text.contains(r#""maxPods":110"#), "{text}");
}

#[tokio::test]
async fn a_log_comes_over_a_web_socket_too() {
    let cluster = Node::new().await;
    cluster.append(&line("alive"));
    cluster.stop.send_replace(true);
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "binary.k8s.io"),
    ] {
        headers.insert(name, value.parse().expect("a header"));
    }
    let path = "/containerLogs/default/web/app?follow=true";
    let answer = cluster.request(&cluster.ca, Method::GET, path, Some(API_SERVER), headers);
    let mut answer = answer.await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(answer.headers()["sec-websocket-protocol"], "binary.k8s.io");
    let upgraded = hyper::upgrade::on(&mut answer).await.expect("a tunnel");
    let io = hyper_util::rt::TokioIo::new(upgraded);
    let role = tokio_tungstenite::tungstenite::protocol::Role::Client;
    let mut socket = tokio_tungstenite::WebSocketStream::from_raw_socket(io, role, None).await;
    let mut said = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            break;
        }
        assert!(message.is_binary());
        said.extend(message.into_data());
    }
    assert_eq!(said, b"alive\n");
}

#[tokio::test]
async fn logs_are_read_with_their_options() {
    let cluster = Node::new().await;
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
        text.ends_with("is waiting to start: trying and failing to pull image"),
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
    let cluster = Node::new().await;
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
    let cluster = Node::new().await;
    cluster.append(&line("done"));
    cluster.stop.send_replace(true);
    let (status, text) = cluster
        .text("/containerLogs/default/web/app?follow=true")
        .await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "done\n"));
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_with_a_reason() {
    let cluster = Node::new().await;
    let refused = async |method: Method, path: &str| {
        let response = cluster
            .request(
                &cluster.ca,
                method,
                path,
                Some(API_SERVER),
                HeaderMap::new(),
            )
            .await;
        let response = response.expect("an answer");
        text(response).await
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
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(text, "container not found (\"app\")");
}

#[tokio::test]
async fn pods_and_metrics_are_served() {
    let cluster = Node::new().await;
    let (status, pods) = cluster.text("/pods").await;
    let pods: serde_json::Value = serde_json::from_str(&pods).expect("JSON");
    assert_eq!((status, &pods["kind"]), (StatusCode::OK, &"PodList".into()));
    assert_eq!(pods["items"][0]["metadata"]["name"], "web");
    assert_eq!(cluster.text("/metrics").await.1, "windlass_up 1\n");
}
