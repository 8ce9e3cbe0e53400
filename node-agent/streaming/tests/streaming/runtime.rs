//! Streams through a real containerd: each protocol that clients speak, end to end.

#[path = "../../../pods/tests/pods/support/image.rs"]
mod image;

#[allow(
    dead_code,
    reason = "shared with the tests of pods, which use more of it"
)]
#[path = "../../../pods/tests/pods/support/containerd.rs"]
mod containerd;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use windlass_cri::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};
use windlass_streaming::{
    ContainerInstance, ContainerInstances, LookupError, PodLookup, Sandbox, VolumeUsage,
};

use self::containerd::{BUSYBOX, Containerd};
use crate::cluster::{API_SERVER, Cluster};

/// One pod, whose container copies its input to its output.
struct OnePod {
    sandbox: String,
    container: String,
}

impl PodLookup for OnePod {
    fn volumes(&self) -> BoxFuture<'static, Vec<VolumeUsage>> {
        Box::pin(async { Vec::new() })
    }

    fn probe_metrics(&self) -> String {
        "prober_probe_total 1\n".to_owned()
    }

    fn container(
        &self,
        _: &str,
        _: &str,
        _: Option<&str>,
        _: &str,
    ) -> Result<ContainerInstances, LookupError> {
        let current = ContainerInstance {
            id: self.container.clone(),
            log_path: "/dev/null".into(),
            running: true,
        };
        Ok(ContainerInstances {
            current: Some(current),
            ..Default::default()
        })
    }

    fn sandbox(&self, _: &str, _: &str, _: Option<&str>) -> Result<Sandbox, LookupError> {
        Ok(Sandbox {
            id: self.sandbox.clone(),
            ready: true,
        })
    }

    fn finished(&self, _: &str) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn pods(&self) -> Vec<serde_json::Value> {
        Vec::new()
    }
}

struct Node {
    cluster: Cluster,
    containerd: Containerd,
    sandbox: String,
    /// Last: gone when nothing is in it.
    _cgroup: Cgroup,
}

/// The pod's cgroup in every hierarchy; runtimes make it and leave it.
struct Cgroup(String);

impl Cgroup {
    fn new() -> Self {
        Self(format!("wls-{}", std::process::id()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten();
        for hierarchy in hierarchies {
            let _ = std::fs::remove_dir(hierarchy.path().join(&self.0));
        }
        let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(&self.0));
    }
}

impl Node {
    /// None where there is no containerd.
    async fn start() -> Option<Self> {
        let containerd = Containerd::start().await?;
        let runtime = containerd.runtime.clone();
        let cgroup = Cgroup::new();
        let sandbox_config = sandbox_config(containerd.path(), &cgroup);
        let sandbox = runtime
            .run_pod_sandbox(sandbox_config.clone(), "")
            .await
            .expect("a sandbox");
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "app".into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: BUSYBOX.into(),
                ..Default::default()
            }),
            command: ["/bin/busybox", "cat"].map(str::to_owned).into(),
            stdin: true,
            log_path: "app.log".into(),
            labels: labels(&[("io.kubernetes.container.name", "app")]),
            ..Default::default()
        };
        let container = runtime
            .create_container(&sandbox, config, sandbox_config)
            .await
            .expect("a container");
        runtime.start_container(&container).await.expect("starts");
        let pods = Arc::new(OnePod {
            sandbox: sandbox.clone(),
            container,
        });
        let cluster = Cluster::new(pods, runtime).await;
        Some(Self {
            cluster,
            containerd,
            sandbox,
            _cgroup: cgroup,
        })
    }

    async fn end(self) {
        let runtime = &self.containerd.runtime;
        runtime.stop_pod_sandbox(&self.sandbox).await.expect("stop");
        runtime
            .remove_pod_sandbox(&self.sandbox)
            .await
            .expect("remove");
    }

    async fn web_socket(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> WebSocketStream<TokioIo<Upgraded>> {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", protocol),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let (headers, connection) = self.upgrade(Method::GET, path, headers).await;
        assert_eq!(
            headers["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(headers["sec-websocket-protocol"], protocol);
        WebSocketStream::from_raw_socket(connection, Role::Client, None).await
    }

    async fn spdy(&self, path: &str, protocol: &'static str) -> TokioIo<Upgraded> {
        let mut headers = HeaderMap::new();
        headers.insert("connection", HeaderValue::from_static("Upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("SPDY/3.1"));
        headers.insert(
            "x-stream-protocol-version",
            HeaderValue::from_static(protocol),
        );
        let (headers, connection) = self.upgrade(Method::POST, path, headers).await;
        assert_eq!(headers["x-stream-protocol-version"], protocol);
        connection
    }

    async fn upgrade(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
    ) -> (HeaderMap, TokioIo<Upgraded>) {
        let ca = &self.cluster.ca;
        let response = self
            .cluster
            .request(ca, method, path, Some(API_SERVER), headers)
            .await;
        let response = response.expect("an answer");
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            panic!("{path}: {:?}", crate::cluster::text(response).await);
        }
        let headers = response.headers().clone();
        (
            headers,
            TokioIo::new(hyper::upgrade::on(response).await.expect("upgrades")),
        )
    }
}

fn sandbox_config(root: &Path, cgroup: &Cgroup) -> PodSandboxConfig {
    let of_node = NamespaceMode::Node.into();
    let namespaces = NamespaceOption {
        network: of_node,
        ..Default::default()
    };
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces),
        ..Default::default()
    };
    let linux = LinuxPodSandboxConfig {
        cgroup_parent: format!("/{}", cgroup.0),
        security_context: Some(security),
        ..Default::default()
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "one".into(),
            uid: "u1".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        log_directory: root.join("logs").to_str().expect("text").into(),
        linux: Some(linux),
        ..Default::default()
    }
}

fn labels(own: &[(&str, &str)]) -> HashMap<String, String> {
    let of_pod = [
        ("io.kubernetes.pod.name", "one"),
        ("io.kubernetes.pod.namespace", "default"),
        ("io.kubernetes.pod.uid", "u1"),
    ];
    own.iter()
        .chain(&of_pod)
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect()
}

/// Everything that comes until the server closes, by channel.
async fn collect(socket: &mut WebSocketStream<TokioIo<Upgraded>>) -> HashMap<u8, String> {
    let mut channels: HashMap<u8, String> = HashMap::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), socket.next()).await;
        match next.expect("the stream stands still") {
            Some(Ok(Message::Binary(bytes))) => {
                let text = String::from_utf8_lossy(&bytes[1..]);
                channels.entry(bytes[0]).or_default().push_str(&text);
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return channels,
            Some(Ok(_)) => {}
        }
    }
}

fn binary(bytes: &'static [u8]) -> Message {
    Message::Binary(Bytes::from_static(bytes))
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_reach_the_container_in_every_protocol() {
    let Some(node) = Node::start().await else {
        return;
    };
    v5_ends_the_input_and_reads_on(&node).await;
    v5_tells_the_exit_code(&node).await;
    v5_carries_much_in_both_directions(&node).await;
    v4_is_passed_on(&node).await;
    spdy_is_passed_on(&node).await;
    attach_reaches_the_process(&node).await;
    port_forward_over_channels(&node).await;
    port_forward_inside_a_web_socket(&node).await;
    usage_is_reported(&node).await;
    node.end().await;
}

const EXEC: &str = "/exec/default/one/app?input=1&output=1&error=1";

async fn v5_ends_the_input_and_reads_on(node: &Node) {
    let script = "cat; echo after the end; echo to stderr >&2";
    let script: String = script.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let path = format!("{EXEC}&command=sh&command=-c&command={script}");
    let mut socket = node.web_socket(&path, "v5.channel.k8s.io").await;
    socket.send(binary(b"\x00hello\n")).await.expect("send");
    socket.send(binary(&[255, 0])).await.expect("send");
    let channels = collect(&mut socket).await;
    assert_eq!(channels[&1], "hello\nafter the end\n");
    assert_eq!(channels[&2], "to stderr\n");
    let status: serde_json::Value = serde_json::from_str(&channels[&3]).expect("a status");
    assert_eq!(status["status"], "Success");
}

async fn v5_tells_the_exit_code(node: &Node) {
    let path = "/exec/default/one/app?output=1&command=sh&command=-c&command=exit%207";
    let channels = collect(&mut node.web_socket(path, "v5.channel.k8s.io").await).await;
    let status: serde_json::Value = serde_json::from_str(&channels[&3]).expect("a status");
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "7");
}

/// More than all buffers on the way hold: neither direction may wait for the other.
async fn v5_carries_much_in_both_directions(node: &Node) {
    const CHUNKS: usize = 256;
    const CHUNK: usize = 32 << 10;
    let path = format!("{EXEC}&command=cat");
    let socket = node.web_socket(&path, "v5.channel.k8s.io").await;
    let (mut sink, mut stream) = socket.split();
    let send = async {
        for n in 0..CHUNKS {
            let mut message = vec![b'a' + (n % 26) as u8; CHUNK + 1];
            message[0] = 0;
            sink.send(Message::Binary(message.into()))
                .await
                .expect("send");
        }
        sink.send(binary(&[255, 0])).await.expect("send");
    };
    let receive = async {
        let mut length = 0;
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(bytes) if bytes[0] == 1 => {
                    let chunk = length / CHUNK;
                    assert_eq!(bytes[1], b'a' + (chunk % 26) as u8, "at {length}");
                    length += bytes.len() - 1;
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        length
    };
    let both = futures::future::join(send, receive);
    let ((), length) = tokio::time::timeout(Duration::from_secs(60), both)
        .await
        .expect("the stream stands still");
    assert_eq!(length, CHUNKS * CHUNK);
}

async fn v4_is_passed_on(node: &Node) {
    let path = "/exec/default/one/app?output=1&command=echo&command=by%20v4";
    let channels = collect(&mut node.web_socket(path, "v4.channel.k8s.io").await).await;
    assert_eq!(channels[&1], "by v4\n");
    assert!(channels[&3].contains("Success"), "{channels:?}");
}

/// A SPDY connection answers pings whatever it carries.
const PING: &[u8] = &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1];

async fn spdy_is_passed_on(node: &Node) {
    let path = format!("{EXEC}&command=cat");
    let mut connection = node.spdy(&path, "v4.channel.k8s.io").await;
    connection.write_all(PING).await.expect("write");
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(answer, PING);
}

async fn attach_reaches_the_process(node: &Node) {
    let path = "/attach/default/one/app?input=1&output=1";
    let mut socket = node.web_socket(path, "v5.channel.k8s.io").await;
    socket
        .send(binary(b"\x00to the process\n"))
        .await
        .expect("send");
    let answer = tokio::time::timeout(Duration::from_secs(20), async {
        let mut text = Vec::new();
        while !text.ends_with(b"to the process\n") {
            match socket.next().await.expect("goes on").expect("a message") {
                Message::Binary(bytes) if bytes[0] == 1 => text.extend_from_slice(&bytes[1..]),
                _ => {}
            }
        }
        text
    });
    assert_eq!(
        answer.await.expect("the stream stands still"),
        b"to the process\n"
    );
    socket.close(None).await.expect("close");
}

async fn port_forward_over_channels(node: &Node) {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("listen");
    let port = server.local_addr().expect("an address").port();
    let path = format!("/portForward/default/one?ports={port}");
    let mut socket = node.web_socket(&path, "v4.channel.k8s.io").await;
    socket.send(binary(b"\x00ping")).await.expect("send");
    let (mut connection, _) = server.accept().await.expect("accept");
    let mut text = [0; 4];
    connection.read_exact(&mut text).await.expect("read");
    connection.write_all(b"pong").await.expect("write");
    drop(connection);
    let channels = collect(&mut socket).await;
    // Each channel begins with the port.
    assert_eq!(
        (&text, &channels[&0].as_bytes()[channels[&0].len() - 4..]),
        (b"ping", &b"pong"[..])
    );
}

async fn port_forward_inside_a_web_socket(node: &Node) {
    let path = "/portForward/default/one";
    let mut socket = node.web_socket(path, "SPDY/3.1+portforward.k8s.io").await;
    // Split as a network would.
    socket.send(binary(&PING[..5])).await.expect("send");
    socket.send(binary(&PING[5..])).await.expect("send");
    let mut answer = Vec::new();
    while answer.len() < PING.len() {
        let next = tokio::time::timeout(Duration::from_secs(20), socket.next()).await;
        let message = next
            .expect("stands still")
            .expect("goes on")
            .expect("a message");
        if let Message::Binary(bytes) = message {
            answer.extend_from_slice(&bytes);
        }
    }
    assert_eq!(answer, PING);
    socket.close(None).await.expect("close");
}

async fn usage_is_reported(node: &Node) {
    let (status, text) = node.cluster.text("/stats/summary").await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let summary: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let pod = &summary["pods"][0];
    assert_eq!(pod["podRef"]["name"], "one", "{summary:#}");
    assert!(
        pod["memory"]["workingSetBytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 0),
        "{summary:#}"
    );
    let (_, text) = node.cluster.text("/metrics/resource").await;
    let line =
        r#"container_cpu_usage_seconds_total{container="app",namespace="default",pod="one"} "#;
    assert!(text.contains(line), "{text}");
    assert!(text.ends_with("resource_scrape_error 0\n"), "{text}");
}
