//! The CA gets another key while clients are connected: those that are stay, those that come get in whichever CA they know,
//! until the old one is retired.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt as _};

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
const PROGRAM: &str = env!("CARGO_BIN_EXE_windlass-control-plane");

struct Server {
    process: Child,
    data: PathBuf,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    async fn start(data: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let process = Command::new(PROGRAM)
            .args(["serve", "--bind-address", "127.0.0.1", "--data-dir"])
            .arg(data)
            .args(["--secure-port", &port.to_string()])
            .args(["--advertise-address", "192.0.2.1"])
            .stderr(Stdio::null())
            .spawn()
            .expect("the control plane starts");
        let server = Self {
            process,
            data: data.to_owned(),
            port,
        };
        until("the server answers", async || {
            let Some(kubeconfig) = server.kubeconfig() else {
                return false;
            };
            server.answers(kubeconfig).await
        })
        .await;
        server
    }

    /// As it is at this moment.
    fn kubeconfig(&self) -> Option<Kubeconfig> {
        let mut kubeconfig = Kubeconfig::read_from(self.data.join("admin.kubeconfig")).ok()?;
        for cluster in &mut kubeconfig.clusters {
            cluster.cluster.as_mut()?.server = Some(format!("https://127.0.0.1:{}", self.port));
        }
        Some(kubeconfig)
    }

    /// Whether a client that starts now with this file gets an answer.
    async fn answers(&self, kubeconfig: Kubeconfig) -> bool {
        client(kubeconfig).await.apiserver_version().await.is_ok()
    }

    fn ca(&self, command: &str) {
        let status = Command::new(PROGRAM)
            .args(["ca", command, "--data-dir"])
            .arg(&self.data)
            .stderr(Stdio::null())
            .status();
        assert!(status.expect("it runs").success(), "ca {command}");
    }
}

async fn client(kubeconfig: Kubeconfig) -> Client {
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    Client::try_from(config.expect("a configuration")).expect("a client")
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(PAUSE).await;
    }
}

fn bundle(kubeconfig: &Kubeconfig) -> String {
    let cluster = kubeconfig.clusters[0].cluster.as_ref().expect("a cluster");
    cluster.certificate_authority_data.clone().expect("a CA")
}

/// A file of a user who has this one's key and has read that one's CA.
fn with_ca_of(kubeconfig: &Kubeconfig, other: &Kubeconfig) -> Kubeconfig {
    let mut mixed = kubeconfig.clone();
    let cluster = mixed.clusters[0].cluster.as_mut().expect("a cluster");
    cluster.certificate_authority_data = Some(bundle(other));
    mixed
}

async fn published(client: &Client) -> String {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let Ok(map) = maps.get("kube-root-ca.crt").await else {
        return String::new();
    };
    map.data
        .unwrap_or_default()
        .remove("ca.crt")
        .unwrap_or_default()
}

fn certificates(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

/// Writes by `client` and waits until `watch`, which was opened long ago, tells of it.
async fn write_and_see(
    client: &Client,
    watch: &mut (impl Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Unpin),
    name: &str,
) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    maps.create(&PostParams::default(), &map)
        .await
        .expect("a write");
    let seen = async {
        loop {
            match watch
                .next()
                .await
                .expect("the watch goes on")
                .expect("an event")
            {
                WatchEvent::Added(map) if map.name_any() == name => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .expect("the event");
}

#[tokio::test]
async fn the_ca_rotates_under_clients_that_know_nothing_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(folder.path()).await;
    let before = server.kubeconfig().expect("a kubeconfig");
    let old = client(before.clone()).await;
    until("the CA is published", async || {
        certificates(&published(&old).await) == 1
    })
    .await;
    let maps: Api<ConfigMap> = Api::namespaced(old.clone(), "default");
    let watch = maps.watch(&WatchParams::default().timeout(290), "0").await;
    let mut watch = watch.expect("a watch").boxed();
    write_and_see(&old, &mut watch, "before").await;

    server.ca("rotate");
    until("the new CA is published beside the old one", async || {
        certificates(&published(&old).await) == 2
    })
    .await;
    until("the administrator's file is written anew", async || {
        server
            .kubeconfig()
            .is_some_and(|now| bundle(&now) != bundle(&before))
    })
    .await;
    let after = server.kubeconfig().expect("a kubeconfig");
    write_and_see(&old, &mut watch, "after").await;
    assert!(
        server.answers(before.clone()).await,
        "who knows only the old CA"
    );
    assert!(server.answers(after.clone()).await, "who knows both");
    assert!(
        server.answers(with_ca_of(&before, &after)).await,
        "who has read the new bundle"
    );

    server.ca("rotate");
    until("three CAs are published", async || {
        certificates(&published(&old).await) == 3
    })
    .await;
    write_and_see(&old, &mut watch, "again").await;
    assert!(
        server.answers(before.clone()).await,
        "who has slept through two rotations"
    );

    server.ca("retire");
    until("who knows only the old CA is refused", async || {
        !server.answers(before.clone()).await
    })
    .await;
    let now = server.kubeconfig().expect("a kubeconfig");
    assert!(server.answers(now.clone()).await, "who knows the last CA");
    assert!(
        !server.answers(with_ca_of(&before, &now)).await,
        "a certificate of a CA that is retired"
    );
    let maps: Api<ConfigMap> = Api::namespaced(old, "default");
    let refused = maps
        .get("before")
        .await
        .expect_err("an old certificate on an old connection");
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 401));
    let new = client(now).await;
    until("one CA is published", async || {
        certificates(&published(&new).await) == 1
    })
    .await;
}
