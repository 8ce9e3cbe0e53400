//! The control plane as a process of its own, ended with its guard.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Longer than anything here takes; reached only by a fault.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
const PROGRAM: &str = env!("CARGO_BIN_EXE_windlass-control-plane");

pub(crate) struct Server {
    process: Child,
    data: PathBuf,
    address: Ipv4Addr,
    /// Who signed the serving certificate, where that is not the cluster's CA (PEM).
    outside_ca: Option<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs another command of the program, which must succeed.
pub(crate) fn run(arguments: &[&str], data: &Path) {
    let (command, files) = arguments.split_at(2);
    let status = Command::new(PROGRAM)
        .args(command)
        .arg("--data-dir")
        .arg(data)
        .args(files)
        .stderr(Stdio::null())
        .status();
    assert!(status.expect("it runs").success(), "{arguments:?}");
}

impl Server {
    pub(crate) async fn start(data: &Path) -> Self {
        Self::start_with(data, &[], None).await
    }

    /// With further `flags`, among them perhaps a serving certificate of the CA `outside_ca`.
    pub(crate) async fn start_with(data: &Path, flags: &[&str], outside_ca: Option<&str>) -> Self {
        let address = windlass_loopback::address();
        let process = Command::new(PROGRAM)
            .args(["serve", "--data-dir"])
            .arg(data)
            .args(["--bind-address", &address.to_string()])
            .args(["--advertise-address", "192.0.2.1"])
            .args(flags)
            .stderr(Stdio::null())
            .spawn()
            .expect("the control plane starts");
        let server = Self {
            process,
            data: data.to_owned(),
            address,
            outside_ca: outside_ca.map(str::to_owned),
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
    pub(crate) fn kubeconfig(&self) -> Option<Kubeconfig> {
        let mut kubeconfig = Kubeconfig::read_from(self.data.join("admin.kubeconfig")).ok()?;
        for cluster in &mut kubeconfig.clusters {
            let cluster = cluster.cluster.as_mut()?;
            cluster.server = Some(format!("https://{}:6443", self.address));
            cluster.tls_server_name = Some("localhost".to_owned());
            if let Some(ca) = &self.outside_ca {
                cluster.certificate_authority_data = Some(STANDARD.encode(ca));
            }
        }
        Some(kubeconfig)
    }

    /// An administrator's.
    pub(crate) async fn client(&self) -> Client {
        client(self.kubeconfig().expect("a kubeconfig")).await
    }

    /// Whether a client that starts now with this file gets an answer.
    pub(crate) async fn answers(&self, kubeconfig: Kubeconfig) -> bool {
        client(kubeconfig).await.apiserver_version().await.is_ok()
    }

    pub(crate) fn ca(&self, command: &str) {
        self.key("ca", command);
    }

    pub(crate) fn key(&self, which: &str, command: &str) {
        run(&[which, command], &self.data);
    }

    /// Resident memory in MiB.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("the kernel tells it") / 1024
    }
}

pub(crate) async fn client(kubeconfig: Kubeconfig) -> Client {
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    Client::try_from(config.expect("a configuration")).expect("a client")
}

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(PAUSE).await;
    }
}
