//! One way in namespaces of its own: a client, a node between, and a server.
//!
//! ```text
//!   client 10.244.0.10              server 10.244.0.11, .12
//!        |                               |
//!      wlpod0 ------ node (router) ----- wlpod1
//! ```
//!
//! All ways of one size stand beside each other, so that their rounds can alternate.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use windlass_tests::{ethtool, unnamed_netns::NetNs};

use super::agent;
use super::memory_group::MemoryGroup;
use super::rules::{iptables, nftables};
use super::table::{SERVER, TARGET_PORT, Table};
use super::way::Way;
use crate::machine;
use crate::namespaces::{RunFolder, pod};
use crate::pause;
use crate::traffic::{client, server};
use crate::worker::{Worker, in_cgroups, shared_nanoseconds};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 10);
const CHANGE_LIMIT: Duration = Duration::from_secs(120);

pub struct World {
    pub way: Way,
    table: Table,
    // Dropped in this order: processes, then what they are in.
    agent: Option<Worker>,
    client: Worker,
    server: Worker,
    node: NetNs,
    _client_netns: NetNs,
    _server_netns: NetNs,
    run: RunFolder,
    memory: Option<MemoryGroup>,
}

/// What is known once everything is loaded.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Loaded {
    pub seconds: f64,
    /// What the kernel keeps.
    pub kernel_mib: Option<f64>,
    /// Resident memory of the process that keeps the rules up to date; only Windlass has one here.
    pub process_mib: Option<f64>,
}

/// A change of endpoints, ready to be made.
enum Change {
    Nothing,
    Tool(&'static [&'static str], String),
    Agent { backends: usize },
}

impl World {
    /// Everything but the Services themselves.
    pub fn new(way: Way, table: Table, endpoints: usize) -> Result<Self> {
        let run = RunFolder::create()?;
        let node = NetNs::new("node");
        node.sysctl("ipv4/ip_forward", "1");
        let client_netns = pod(&node, "wlpod0", "client", &[CLIENT]);
        let server_netns = pod(&node, "wlpod1", "server", &SERVER);
        let cgroups: Vec<PathBuf> = run.cgroup.iter().cloned().collect();
        let netns = |netns: &NetNs| ["--netns".to_owned(), netns.path().display().to_string()];

        let mut server_arguments = netns(&server_netns).to_vec();
        server_arguments.extend(["--port".into(), TARGET_PORT.to_string()]);
        let mut server = Worker::start("server", &server_arguments, &[])?;
        let _: u64 = server.ask(&server::Order::Ready)?;
        let client = Worker::start("client", &netns(&client_netns), &cgroups)?;

        let memory = MemoryGroup::create();
        let agent = if way.is_windlass() {
            let mut pods = vec![
                (&client_netns, "wlpod0", vec![CLIENT]),
                (&server_netns, "wlpod1", SERVER.to_vec()),
            ];
            let mut uplinks = Vec::new();
            if way == Way::Xdp {
                for (netns, interface, _) in pods.drain(..) {
                    ethtool::like_hardware(netns, "eth0");
                    node.ip(&format!("addr add {}/32 dev {interface}", agent::NODE));
                    uplinks.push(interface);
                }
            }
            let pods: Vec<_> = pods
                .into_iter()
                .map(|(netns, interface, addresses)| agent::Pod {
                    interface: interface.into(),
                    addresses,
                    mac: netns.mac("eth0"),
                    netns: (way == Way::SocketHook).then(|| netns.path()),
                })
                .collect();
            let mut arguments = netns(&node).to_vec();
            arguments.extend([
                "--bpffs".into(),
                run.bpffs.display().to_string(),
                "--pods".into(),
                serde_json::to_string(&pods)?,
                "--services".into(),
                table.services.len().to_string(),
                "--endpoints".into(),
                endpoints.to_string(),
            ]);
            if way == Way::Xdp {
                arguments.extend(["--uplinks".into(), uplinks.join(",")]);
            }
            if way == Way::SocketHook {
                let cgroup = run
                    .cgroup
                    .as_ref()
                    .context("no cgroup2 hierarchy is mounted")?;
                arguments.extend(["--cgroup".into(), cgroup.display().to_string()]);
            }
            let groups: Vec<PathBuf> = memory.iter().map(|group| group.path.clone()).collect();
            Some(Worker::start("agent", &arguments, &groups)?)
        } else {
            None
        };
        Ok(Self {
            way,
            table,
            agent,
            client,
            server,
            node,
            _client_netns: client_netns,
            _server_netns: server_netns,
            run,
            memory,
        })
    }

    /// Loads all Services; `None` when that takes longer than `limit`.
    pub fn load(&mut self, limit: Duration) -> Result<Option<Loaded>> {
        let before = self.kernel_bytes();
        let seconds = match self.way {
            Way::Direct | Way::Cluster => Some(0.0),
            Way::IptablesLegacy | Way::IptablesNft => {
                self.run_tool(self.restore(), &iptables::full(&self.table), limit)?
            }
            Way::Nftables => {
                self.run_tool(&["nft", "-f", "-"], &nftables::full(&self.table), limit)?
            }
            Way::Ipvs => self.run_tool(&["ipvsadm", "-R"], &self.ipvs(), limit)?,
            Way::SocketHook | Way::Tc | Way::Xdp => {
                let agent = self.agent.as_mut().context("the agent")?;
                Some(agent.ask(&agent::Order::Load)?)
            }
        };
        let Some(seconds) = seconds else {
            return Ok(None);
        };
        let kernel = before.zip(self.kernel_bytes()).map(|(before, after)| {
            // Maps are made with their buckets before the first Service: those count as well.
            let before = if self.way.is_windlass() { 0 } else { before };
            after.saturating_sub(before) as f64 / f64::from(1 << 20)
        });
        Ok(Some(Loaded {
            seconds,
            kernel_mib: kernel.filter(|_| self.way != Way::Direct),
            process_mib: self
                .agent
                .as_ref()
                .and_then(|agent| machine::resident_mib(agent.pid())),
        }))
    }

    /// Whether what was measured went the way that it is said to go.
    pub fn check(&mut self) -> Result<()> {
        if self.way == Way::Xdp {
            let agent = self.agent.as_mut().context("the agent")?;
            let sent: f64 = agent.ask(&agent::Order::SentByXdp)?;
            ensure!(sent > 0.0, "XDP has sent nothing on: tc did it");
        }
        Ok(())
    }

    pub fn target(&self) -> SocketAddr {
        match self.way {
            Way::Direct => (SERVER[0], TARGET_PORT).into(),
            _ => self.table.asked().target(),
        }
    }

    /// One round of one kind of load; the second figure is the server's processor time in microseconds.
    pub fn measure(&mut self, order: &client::Order) -> Result<(client::Answer, u64)> {
        let before: u64 = self.server.ask(&server::Order::Cpu)?;
        let answer = self
            .client
            .ask(order)
            .with_context(|| format!("measuring {}", self.way.name()))?;
        let after: u64 = self.server.ask(&server::Order::Cpu)?;
        Ok((answer, after - before))
    }

    /// Takes one endpoint of the asked Service away and gives it back; the time from the order to the first
    /// connection that the returned endpoint answers, in milliseconds.
    pub fn change(&mut self) -> Result<Option<f64>> {
        if self.way == Way::Direct {
            return Ok(None);
        }
        let (target, backend) = (self.target(), SERVER[1].to_string());
        let millis = CHANGE_LIMIT.as_millis() as u64;
        let one = self.prepare(2, 1);
        self.apply(one)?;
        let gone = client::Order::UntilNotServedBy {
            target,
            backend: backend.clone(),
            millis,
        };
        let _: client::Answer = self.client.ask(&gone)?;
        let both = self.prepare(1, 2);
        let back = client::Order::UntilServedBy {
            target,
            backend,
            millis,
        };
        self.client.send(&back)?;
        let ordered = shared_nanoseconds();
        self.apply(both)?;
        let seen: client::Answer = self.client.receive()?;
        Ok(Some(seen.at.saturating_sub(ordered) as f64 / 1e6))
    }

    /// What a change of the asked Service's endpoints is in this way's terms: finished, so that only doing
    /// it is timed.
    fn prepare(&self, from: usize, to: usize) -> Change {
        let before = self.table.asked().with_backends(from);
        match self.way {
            Way::Direct | Way::Cluster => Change::Nothing,
            Way::IptablesLegacy | Way::IptablesNft => {
                let text = iptables::change(&self.table.with_backends(to), &before);
                Change::Tool(self.restore(), text)
            }
            Way::Nftables => {
                let text = nftables::change(&self.table.with_backends(to), &before);
                Change::Tool(&["nft", "-f", "-"], text)
            }
            Way::Ipvs => {
                let (target, backend) = (self.table.asked().target(), SERVER[1]);
                let text = if to == 2 {
                    format!("-a -t {target} -r {backend}:{TARGET_PORT} -m\n")
                } else {
                    format!("-d -t {target} -r {backend}:{TARGET_PORT}\n")
                };
                Change::Tool(&["ipvsadm", "-R"], text)
            }
            Way::SocketHook | Way::Tc | Way::Xdp => Change::Agent { backends: to },
        }
    }

    fn apply(&mut self, change: Change) -> Result<()> {
        let limit = CHANGE_LIMIT;
        let done = match change {
            Change::Nothing => return Ok(()),
            Change::Tool(tool, text) => self.run_tool(tool, &text, limit)?,
            Change::Agent { backends } => {
                let agent = self.agent.as_mut().context("the agent")?;
                Some(agent.ask(&agent::Order::Change { backends })?)
            }
        };
        done.map(drop)
            .with_context(|| format!("{}: a change took longer than {limit:?}", self.way.name()))
    }

    fn restore(&self) -> &'static [&'static str] {
        match self.way {
            Way::IptablesLegacy => &[
                "iptables-legacy-restore",
                "-w",
                "5",
                "--noflush",
                "--counters",
            ],
            _ => &["iptables-nft-restore", "-w", "5", "--noflush", "--counters"],
        }
    }

    fn ipvs(&self) -> String {
        let rules = self.table.services.iter().flat_map(|service| {
            let target = service.target();
            std::iter::once(format!("-A -t {target} -s rr\n")).chain(
                service
                    .backends
                    .iter()
                    .map(move |backend| format!("-a -t {target} -r {backend} -m\n")),
            )
        });
        rules.collect()
    }

    fn kernel_bytes(&self) -> Option<u64> {
        self.memory.as_ref()?.kernel_bytes()
    }

    /// Runs a tool in the node's namespace with `input`; seconds, or `None` when it had to be ended.
    fn run_tool(&self, tool: &[&str], input: &str, limit: Duration) -> Result<Option<f64>> {
        let groups: Vec<PathBuf> = self.memory.iter().map(|group| group.path.clone()).collect();
        let mut command: Command = in_cgroups(&groups, Path::new("nsenter"));
        command
            .arg(format!("--net={}", self.node.path().display()))
            .args(tool)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", tool[0]))?;
        let mut stdin = child.stdin.take().context("the tool's input")?;
        let mut stderr = child.stderr.take().context("the tool's errors")?;
        thread::scope(|scope| {
            // A tool that ends early says why on its error output.
            scope.spawn(move || stdin.write_all(input.as_bytes()));
            let errors = scope.spawn(move || {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut stderr, &mut text).map(|_| text)
            });
            let status = loop {
                if let Some(status) = child.try_wait()? {
                    break status;
                }
                if started.elapsed() > limit {
                    child.kill()?;
                    child.wait()?;
                    return Ok(None);
                }
                pause::between_looks(Duration::from_micros(500));
            };
            let seconds = started.elapsed().as_secs_f64();
            if !status.success() {
                let errors = errors.join().ok().and_then(Result::ok).unwrap_or_default();
                bail!("{} failed ({status}): {}", tool[0], errors.trim());
            }
            Ok(Some(seconds))
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.agent.take().is_some() {
            let bpffs = self.run.bpffs.clone();
            if let Err(error) = self.node.run(move || windlass_datapath::cleanup(&bpffs)) {
                eprintln!("cleaning up: {error}");
            }
        }
    }
}
