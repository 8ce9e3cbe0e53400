//! The control plane as a process, and how to reach it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::connection::{Connection, Endpoint};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub enum Store {
    Embedded,
    Etcd(String),
}

pub struct ApiServer {
    process: Child,
    program: PathBuf,
    data: PathBuf,
    store: Store,
    pub endpoint: Endpoint,
    /// From the process's start to the first `/readyz` that says so.
    pub started_in: Duration,
}

impl ApiServer {
    pub async fn start(program: &Path, data: &Path, store: Store) -> Result<Self> {
        std::fs::create_dir_all(data).context("making a data folder")?;
        let address = (windlass_loopback::address(), 6443).into();
        let started = Instant::now();
        let mut process = serve(program, data, &store, address)?;
        let kubeconfig = data.join("admin.kubeconfig");
        while !kubeconfig.exists() {
            ensure!(
                process.try_wait()?.is_none(),
                "the control plane ended: see {}",
                data.display()
            );
            ensure!(
                started.elapsed() < PATIENCE,
                "the control plane does not start"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut server = Self {
            process,
            program: program.to_owned(),
            data: data.to_owned(),
            store,
            endpoint: Endpoint {
                address,
                tls: Arc::new(client_tls(&kubeconfig)?),
            },
            started_in: Duration::ZERO,
        };
        server.ready(started).await?;
        server.usable().await?;
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Asks it to end, as a service manager does.
    pub async fn stop(&mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let asked = Instant::now();
        while self.process.try_wait()?.is_none() {
            ensure!(
                asked.elapsed() < PATIENCE,
                "the control plane does not stop"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub async fn start_again(&mut self) -> Result<()> {
        let started = Instant::now();
        self.process = serve(
            &self.program,
            &self.data,
            &self.store,
            self.endpoint.address,
        )?;
        self.ready(started).await
    }

    async fn ready(&mut self, started: Instant) -> Result<()> {
        loop {
            if let Ok(mut connection) = Connection::open(&self.endpoint).await
                && connection.get("/readyz").await.is_ok()
            {
                self.started_in = started.elapsed();
                return Ok(());
            }
            ensure!(
                started.elapsed() < PATIENCE,
                "the control plane is not ready"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Until pods can be created: their ServiceAccount is made by a controller.
    async fn usable(&self) -> Result<()> {
        let mut connection = Connection::open(&self.endpoint).await?;
        let begun = Instant::now();
        let path = "/api/v1/namespaces/default/serviceaccounts/default";
        while connection.get(path).await.is_err() {
            ensure!(begun.elapsed() < PATIENCE, "the controllers do not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(program: &Path, data: &Path, store: &Store, address: SocketAddr) -> Result<Child> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(data.join("log"))
        .context("opening a log")?;
    let mut command = Command::new(program);
    command
        .args([
            "serve",
            "--advertise-address",
            "192.0.2.2",
            "--bind-address",
            &address.ip().to_string(),
            "--secure-port",
            &address.port().to_string(),
            "--data-dir",
        ])
        .arg(data)
        .env("RUST_LOG", "warn")
        .stdout(Stdio::null())
        .stderr(log);
    if let Store::Etcd(url) = store {
        command.args(["--store=etcd", "--etcd-servers", url]);
    }
    command
        .spawn()
        .with_context(|| format!("starting {}", program.display()))
}

/// Of the kubeconfig that the control plane writes, which is JSON: one cluster, one user, everything inline.
fn client_tls(kubeconfig: &Path) -> Result<rustls::ClientConfig> {
    let text = std::fs::read_to_string(kubeconfig).context("reading the kubeconfig")?;
    let parsed: serde_json::Value = serde_json::from_str(&text).context("the kubeconfig")?;
    let decode = |entry: &str, name: &str| {
        let value = parsed.pointer(entry).and_then(|entry| entry[name].as_str());
        let value = value.with_context(|| format!("the kubeconfig lacks {name}"))?;
        base64::engine::general_purpose::STANDARD
            .decode(value)
            .context("the kubeconfig's base64")
    };
    let (cluster, user) = ("/clusters/0/cluster", "/users/0/user");
    let mut roots = rustls::RootCertStore::empty();
    let ca = decode(cluster, "certificate-authority-data")?;
    roots.add(CertificateDer::from_pem_slice(&ca)?)?;
    let certificate = CertificateDer::from_pem_slice(&decode(user, "client-certificate-data")?)?;
    let key = PrivateKeyDer::from_pem_slice(&decode(user, "client-key-data")?)?;
    rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .context("the client's TLS")
}
