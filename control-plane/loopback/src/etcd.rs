//! An etcd-server with one member, or with several.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than a start takes on any machine; reached only by a fault.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;
/// Where it says without TLS whether it is well, whatever its clients have to show.
const HEALTH: u16 = 2381;

/// Whether there is a program `etcd` (Debian's package etcd-server); says so on standard error where there is not.
pub fn is_etcd_installed() -> bool {
    let installed = Command::new("etcd").arg("--version").output().is_ok();
    if !installed {
        eprintln!("not run: etcd (Debian's package etcd-server) is not installed");
    }
    installed
}

/// A process that ends with its guard.
pub struct EtcdServer {
    process: Child,
    command: Command,
    address: Ipv4Addr,
    url: String,
    log: PathBuf,
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl EtcdServer {
    /// On an address of its own, with data and log in `folder`; returns when it serves.
    ///
    /// # Errors
    /// `NotFound` where etcd is not installed; what it logged, where it ends or does not serve.
    pub async fn start(folder: &Path) -> io::Result<Self> {
        Self::launch(folder, "http", crate::address(), &[]).await
    }

    /// So many members of one etcd, each in a folder of its own in `folder`; returns when all serve.
    pub async fn start_members(folder: &Path, count: usize) -> io::Result<Vec<Self>> {
        let members: Vec<_> = (0..count)
            .map(|number| (format!("member-{number}"), crate::address()))
            .collect();
        let all = members
            .iter()
            .map(|(name, address)| format!("{name}=http://{address}:{PEERS}"));
        let all = all.collect::<Vec<_>>().join(",");
        let begun = members.iter().map(|(name, address)| {
            let flags = ["--name", name, "--initial-cluster", &all].map(OsStr::new);
            Self::begin(&folder.join(name), "http", *address, &flags)
        });
        let mut members = begun.collect::<io::Result<Vec<_>>>()?;
        for member in &mut members {
            member.wait_until_healthy().await?;
        }
        Ok(members)
    }

    /// The same for clients over TLS alone, by `flags` (`--cert-file` and so on), at the address of the certificate.
    pub async fn start_with_tls(
        folder: &Path,
        address: Ipv4Addr,
        flags: &[&OsStr],
    ) -> io::Result<Self> {
        Self::launch(folder, "https", address, flags).await
    }

    async fn launch(
        folder: &Path,
        scheme: &str,
        address: Ipv4Addr,
        flags: &[&OsStr],
    ) -> io::Result<Self> {
        let mut server = Self::begin(folder, scheme, address, flags)?;
        server.wait_until_healthy().await?;
        Ok(server)
    }

    /// It may not serve yet. Of a flag that is given twice the last counts.
    fn begin(folder: &Path, scheme: &str, address: Ipv4Addr, flags: &[&OsStr]) -> io::Result<Self> {
        let clients = format!("{scheme}://{address}:{CLIENTS}");
        let peers = format!("http://{address}:{PEERS}");
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(folder.join("data"))
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .args([
                "--listen-metrics-urls",
                &format!("http://{address}:{HEALTH}"),
            ])
            .args(flags)
            .stdout(Stdio::null());
        fs::create_dir_all(folder)?;
        let log = folder.join("log");
        Ok(Self {
            process: spawn(&mut command, &log)?,
            command,
            address,
            url: clients,
            log,
        })
    }

    /// Where its clients find it.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill().expect("it was started here");
        self.process.wait().expect("it was started here");
    }

    /// After it was killed: with the same data, at the same address. It may not serve yet.
    pub fn restart(&mut self) -> io::Result<()> {
        self.process = spawn(&mut self.command, &self.log)?;
        Ok(())
    }

    async fn wait_until_healthy(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        while !self.is_healthy().await.unwrap_or(false) {
            let ended = self.process.try_wait()?;
            if ended.is_some() || begun.elapsed() > PATIENCE {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                return Err(io::Error::other(format!("etcd does not start:\n{log}")));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn is_healthy(&self) -> io::Result<bool> {
        let mut stream = TcpStream::connect((self.address, HEALTH)).await?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.starts_with("HTTP/1.0 200"))
    }
}

fn spawn(command: &mut Command, log: &Path) -> io::Result<Child> {
    command.stderr(File::options().create(true).append(true).open(log)?);
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_serves_when_it_is_there_and_says_why_it_does_not() {
        if !is_etcd_installed() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut server = EtcdServer::start(folder.path()).await.unwrap();
        assert!(server.is_healthy().await.unwrap());
        server.kill();
        assert!(server.is_healthy().await.is_err());
        server.restart().unwrap();
        server.wait_until_healthy().await.unwrap();
        let (at, unknown) = (crate::address(), OsStr::new("--no-such-flag"));
        let refused = EtcdServer::start_with_tls(folder.path(), at, &[unknown]).await;
        let refused = refused.err().unwrap().to_string();
        assert!(refused.contains("no-such-flag"), "{refused}");
    }
}
