//! An etcd and the servers over it, as processes that can be killed.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use windlass_loopback::EtcdServer;

pub(crate) const SERVERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);
/// After so much silence a client asks another server.
const SILENCE: Duration = Duration::from_secs(8);

pub(crate) struct Cluster {
    servers: Vec<Server>,
    pub(crate) etcd: Vec<EtcdServer>,
    _folder: TempDir,
}

struct Server {
    process: Process,
    data: PathBuf,
    address: Ipv4Addr,
    number: usize,
    etcd: String,
}

/// Ends with its guard.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Cluster {
    /// Over an etcd of so many members.
    pub(crate) async fn start(members: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let etcd = folder.path().join("etcd");
        let etcd = EtcdServer::start_members(&etcd, members)
            .await
            .expect("etcd");
        let urls: Vec<_> = etcd.iter().map(EtcdServer::url).collect();
        let urls = urls.join(",");
        let mut cluster = Self {
            servers: Vec::new(),
            etcd,
            _folder: folder,
        };
        for number in 0..SERVERS {
            let data = cluster._folder.path().join(format!("server-{number}"));
            if let Some(first) = cluster.servers.first() {
                // One cluster, one CA and one key for tokens.
                copy(&first.data.join("pki"), &data.join("pki"));
            }
            let address = windlass_loopback::address();
            let process = serve(&data, address, number, &urls);
            let server = Server {
                process,
                data,
                address,
                number,
                etcd: urls.clone(),
            };
            server.ready().await;
            cluster.servers.push(server);
        }
        cluster
    }

    pub(crate) fn clients(&self) -> Vec<Client> {
        self.servers.iter().map(Server::client).collect()
    }

    pub(crate) fn kill(&mut self, server: usize) {
        let process = &mut self.servers[server].process.0;
        process.kill().expect("kill -9");
        process.wait().expect("it ends");
    }

    /// One that was killed; it may not serve yet.
    pub(crate) fn begin(&mut self, server: usize) {
        let server = &mut self.servers[server];
        server.process = serve(&server.data, server.address, server.number, &server.etcd);
    }

    /// Stops a server, or lets it go on.
    pub(crate) fn signal(&self, server: usize, what: Signal) {
        signal(self.servers[server].process.0.id(), what);
    }

    /// The same of a member of etcd.
    pub(crate) fn signal_member(&self, member: usize, what: Signal) {
        signal(self.etcd[member].pid(), what);
    }

    pub(crate) async fn all_ready(&self) {
        for server in &self.servers {
            server.ready().await;
        }
    }

    /// All at the same moment, of those that were killed.
    pub(crate) async fn restart_all(&mut self) {
        for server in 0..SERVERS {
            self.begin(server);
        }
        self.all_ready().await;
    }

    pub(crate) async fn restart(&mut self, server: usize) {
        self.begin(server);
        self.servers[server].ready().await;
    }
}

fn signal(pid: u32, what: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process"));
    kill(pid, what).expect("it was started here");
}

impl Server {
    async fn ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answers = if self.kubeconfig().exists() {
                self.client().apiserver_version().await.is_ok()
            } else {
                false
            };
            if answers {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "server {} does not start",
                self.number
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.data.join("admin.kubeconfig")
    }

    fn client(&self) -> Client {
        let mut kubeconfig = Kubeconfig::read_from(self.kubeconfig()).expect("a kubeconfig");
        // The advertised address is one for documentation, and the certificate names that one.
        for cluster in &mut kubeconfig.clusters {
            if let Some(cluster) = &mut cluster.cluster {
                cluster.server = Some(format!("https://{}:6443", self.address));
                cluster.tls_server_name = Some("localhost".to_owned());
            }
        }
        let options = KubeConfigOptions::default();
        let config =
            futures::executor::block_on(Config::from_custom_kubeconfig(kubeconfig, &options));
        let mut config = config.expect("a configuration");
        config.connect_timeout = Some(Duration::from_secs(2));
        config.read_timeout = Some(SILENCE);
        Client::try_from(config).expect("a client")
    }
}

fn serve(data: &Path, address: Ipv4Addr, number: usize, etcd: &str) -> Process {
    std::fs::create_dir_all(data).expect("a data folder");
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(data.join("log"));
    let child = Command::new(env!("CARGO_BIN_EXE_windlass-control-plane"))
        .args([
            "serve",
            "--store=etcd",
            "--etcd-servers",
            etcd,
            "--data-dir",
        ])
        .arg(data)
        .args(["--bind-address", &address.to_string()])
        .args(["--advertise-address", &format!("192.0.2.{}", number + 1)])
        .stderr(log.expect("a log"))
        .spawn();
    Process(child.expect("the control plane starts"))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder for keys");
    for entry in std::fs::read_dir(from).expect("keys") {
        let entry = entry.expect("a key");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copying a key");
    }
}
