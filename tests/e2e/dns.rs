//! Cluster DNS is a process of its own: names are resolved whatever happens to the agent.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::until;
use windlass_tests::namespace::Namespace;

use crate::services::client_pod;

const BACK_WITHIN: Duration = Duration::from_secs(60);
const NAME: &str = "kubernetes.default.svc.cluster.local";

#[test]
fn names_are_resolved_while_the_agent_stands_still() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("dns")?;
    namespace.apply(&client_pod("client"))?;
    namespace.wait_ready("client")?;
    let container = Container::of(&namespace, "client")?;
    container.resolves(NAME)?;
    let stopped = Stopped::new(cluster.agent()?.pid()?)?;
    for _ in 0..5 {
        container.resolves(NAME)?;
    }
    drop(stopped);
    container.resolves(NAME)
}

#[test]
fn the_dns_server_outlives_the_agent_and_is_replaced_when_it_dies() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("dns")?;
    namespace.apply(&client_pod("client"))?;
    namespace.wait_ready("client")?;
    let server = server_pid(&cluster)?;

    let killed = cluster.agent()?.kill()?;
    until(BACK_WITHIN, "the agent to come back", || {
        Ok(cluster.agent()?.runs_again(killed))
    })?;
    let container = Container::of(&namespace, "client")?;
    container.resolves(NAME)?;
    ensure!(server_pid(&cluster)? == server, "the server was replaced");

    kill(Pid::from_raw(server), Signal::SIGKILL).context("killing the DNS server")?;
    until(BACK_WITHIN, "names to be resolved again", || {
        Ok(server_pid(&cluster)? != server && container.resolves(NAME).is_ok())
    })
}

fn server_pid(cluster: &Cluster) -> Result<i32> {
    let file = format!("{}.dns.pid", cluster.variable("WINDLASS_AGENT_SOCKET")?);
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("`{text}` in {file}"))
}

/// A process that is stopped as long as this lives.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: i32) -> Result<Self> {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).context("stopping the agent")?;
        Ok(Self(Pid::from_raw(pid)))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).ok();
    }
}

/// A pod's network and file system as seen by one of its processes: `kubectl exec` goes through the agent, which
/// these tests stop.
struct Container {
    pid: i32,
}

impl Container {
    /// Found by the pod's uid, which the runtime's cgroups carry.
    fn of(namespace: &Namespace, pod: &str) -> Result<Self> {
        let hostname = namespace.field(&["pod", pod], "{.metadata.name}")?;
        let address = namespace.field(&["pod", pod], "{.status.podIP}")?;
        let processes = fs::read_dir("/proc")?.flatten();
        let pid = processes
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .find(|pid| {
                let hosts = PathBuf::from(format!("/proc/{pid}/root/etc/hosts"));
                fs::read_to_string(hosts).is_ok_and(|hosts| {
                    hosts.lines().any(|line| {
                        line.split_whitespace()
                            .eq([address.as_str(), hostname.as_str()])
                    })
                })
            });
        Ok(Self {
            pid: pid.with_context(|| format!("no process of pod {pod} at {address}"))?,
        })
    }

    fn resolves(&self, name: &str) -> Result<()> {
        let output = std::process::Command::new("nsenter")
            .args([
                "--target",
                &self.pid.to_string(),
                "--net",
                "--mount",
                "--root",
            ])
            .args(["/bin/busybox", "nslookup", name])
            .output()
            .context("could not start nsenter")?;
        ensure!(
            output.status.success(),
            "{name} is not resolved: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}
