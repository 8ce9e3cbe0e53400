//! The cluster that `cargo xtask up` has started, as its files in `.windlass/` describe it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Tests run side by side, in threads or in processes; one that breaks something for all of them on purpose
/// must have the cluster for itself.
const LOCK: &str = "/run/windlass-e2e.lock";

pub struct Cluster {
    environment: BTreeMap<String, String>,
    _lock: File,
}

impl Cluster {
    /// For a test that keeps to its own namespace.
    pub fn shared() -> Result<Self> {
        let lock = lock_file()?;
        lock.lock_shared()
            .context("waiting for a test that has the cluster for itself")?;
        Ok(Self {
            environment: environment()?,
            _lock: lock,
        })
    }

    /// For a test that kills a part of the cluster.
    pub fn exclusive() -> Result<Self> {
        let lock = lock_file()?;
        lock.lock().context("waiting for the other tests")?;
        Ok(Self {
            environment: environment()?,
            _lock: lock,
        })
    }

    pub fn variable(&self, name: &str) -> Result<&str> {
        let value = self.environment.get(name);
        value
            .map(String::as_str)
            .with_context(|| format!(".windlass/env does not set {name}"))
    }

    /// The first node's first.
    pub fn node_ip(&self) -> Result<IpAddr> {
        self.variable("WINDLASS_NODE_IP")?
            .parse()
            .context("WINDLASS_NODE_IP")
    }

    /// The nodes, the machine's own first. Fails when there are fewer than a test needs.
    pub fn nodes(&self, needed: usize) -> Result<Vec<Node>> {
        let names = self.variable("WINDLASS_NODES")?.split(',');
        let nodes: Vec<Node> = names
            .enumerate()
            .map(|(index, name)| {
                // The variables of all nodes but the first have their number.
                let variable = |name: &str| match index {
                    0 => name.to_owned(),
                    _ => format!("{name}_{}", index + 1),
                };
                let ip = self.variable(&variable("WINDLASS_NODE_IP"))?;
                let ip: IpAddr = ip.parse().with_context(|| format!("the address {ip}"))?;
                let netns = self.variable(&variable("WINDLASS_NODE_NETNS")).ok();
                let mut addresses = vec![ip];
                if let Ok(v6) = self.variable(&variable("WINDLASS_NODE_IPV6")) {
                    addresses.push(v6.parse().with_context(|| format!("the address {v6}"))?);
                }
                Ok(Node {
                    name: name.to_owned(),
                    ip,
                    addresses,
                    netns: netns.map(str::to_owned),
                    agent: Service {
                        pid_file: self.variable(&variable("WINDLASS_AGENT_PID_FILE"))?.into(),
                    },
                })
            })
            .collect::<Result<_>>()?;
        if nodes.len() < needed {
            bail!(
                "this test needs {needed} nodes and {} run: `cargo xtask up --nodes {needed}` starts them",
                nodes.len()
            );
        }
        Ok(nodes)
    }

    pub fn outside(&self) -> Result<&str> {
        self.variable("WINDLASS_OUTSIDE_NETNS")
    }

    pub fn agent(&self) -> Result<Service> {
        Ok(Service {
            pid_file: self.variable("WINDLASS_AGENT_PID_FILE")?.into(),
        })
    }

    pub fn control_plane(&self) -> Result<Service> {
        Ok(Service {
            pid_file: self.variable("WINDLASS_CONTROL_PLANE_PID_FILE")?.into(),
        })
    }
}

/// A node of the cluster.
pub struct Node {
    pub name: String,
    pub ip: IpAddr,
    /// One of each family that the cluster has, `ip` first.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace; the first node has the machine's own.
    pub netns: Option<String>,
    pub agent: Service,
}

/// A process that the supervisor keeps running.
pub struct Service {
    pid_file: PathBuf,
}

impl Service {
    pub fn pid(&self) -> Result<i32> {
        let text = fs::read_to_string(&self.pid_file)
            .with_context(|| format!("reading {}", self.pid_file.display()))?;
        text.trim()
            .parse()
            .with_context(|| format!("`{text}` in {}", self.pid_file.display()))
    }

    /// kill -9: no chance to say goodbye. Returns the pid that was killed.
    pub fn kill(&self) -> Result<i32> {
        let pid = self.pid()?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("killing {pid}"))?;
        Ok(pid)
    }

    /// Whether it runs, and not as the process `old`.
    pub fn runs_again(&self, old: i32) -> bool {
        self.pid()
            .is_ok_and(|pid| pid != old && kill(Pid::from_raw(pid), None).is_ok())
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line
            .context("no VmRSS")?
            .trim()
            .trim_end_matches(" kB")
            .parse::<u64>()?;
        Ok(kilobytes * 1024)
    }
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests lie in the repository's root")
}

pub fn kubeconfig() -> PathBuf {
    repository().join(".windlass/kubeconfig")
}

/// The variables that `.windlass/env` sets, as a shell sees them.
pub fn environment() -> Result<BTreeMap<String, String>> {
    let file = repository().join(".windlass/env");
    if !file.exists() {
        bail!("no cluster runs: `cargo xtask test e2e` brings one up for the tests");
    }
    let output = Command::new("sh")
        .arg("-c")
        .arg(r#". "$0" && env"#)
        .arg(&file)
        .output()
        .context("could not start a shell")?;
    if !output.status.success() {
        bail!("a shell cannot read {}", file.display());
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.starts_with("WINDLASS_"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// `cargo xtask <arguments>`; the one that runs these tests, if it is one.
pub fn xtask(arguments: &[&str]) -> Command {
    let mut command = match std::env::var_os("WINDLASS_XTASK") {
        Some(program) => Command::new(program),
        None => {
            let mut cargo = Command::new("cargo");
            cargo.arg("xtask");
            cargo
        }
    };
    command.current_dir(repository()).args(arguments);
    command
}

fn lock_file() -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(LOCK)
        .with_context(|| format!("opening {LOCK}: the tests need root"))
}
