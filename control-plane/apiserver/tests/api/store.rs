//! What the servers of this suite keep their objects in: the embedded store, or with `WINDLASS_TEST_STORE=etcd` an
//! etcd-server each, on loopback.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use windlass_store::{Embedded, EmbeddedOptions, Etcd, EtcdOptions, Store};

/// An etcd-server that ends with its test.
pub struct EtcdServer {
    process: Child,
    url: String,
    _folder: TempDir,
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl EtcdServer {
    /// `None` where it is not installed.
    pub fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let [url, peers] = [(); 2].map(|()| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}", listener.local_addr().unwrap())
        });
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.path())
            .args(["--listen-client-urls", &url])
            .args(["--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match process {
            Ok(process) => Some(Self {
                process,
                url,
                _folder: folder,
            }),
            Err(_) => {
                eprintln!("not run: etcd (Debian's package etcd-server) is not installed");
                None
            }
        }
    }

    pub async fn connect(&self) -> Arc<dyn Store> {
        for _ in 0..600 {
            let options = EtcdOptions {
                endpoints: vec![self.url.clone()],
                ..Default::default()
            };
            if let Ok(store) = Etcd::connect(options).await
                && store.current_revision().await.is_ok()
            {
                return Arc::new(store);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("etcd does not start");
    }
}

/// A new store; embedded ones live in `folder`.
pub async fn open(folder: &Path) -> (Arc<dyn Store>, Option<EtcdServer>) {
    if std::env::var("WINDLASS_TEST_STORE").is_ok_and(|kind| kind == "etcd") {
        let server = EtcdServer::start().expect("etcd-server is installed");
        return (server.connect().await, Some(server));
    }
    let options = EmbeddedOptions::default();
    let store = Embedded::open(&folder.join("store"), options).await;
    (Arc::new(store.unwrap()), None)
}
