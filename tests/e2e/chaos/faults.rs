//! What is done to the cluster, and the dice that choose it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use windlass_tests::cluster::{Cluster, Node, xtask};
use windlass_tests::eventually::{pause, until};
use windlass_tests::kubectl::{kubectl, try_kubectl};
use windlass_tests::namespace::Namespace;

use super::processes::{PodProcess, pod_processes};
use super::workload::{DATABASE, JOURNAL, VAULT, WEB, Workload, last_exit_code, text};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Agent,
    ControlPlane,
    Dns,
    Containerd,
    Shim,
    Container,
    EverythingAtOnce,
    AgentAsItStarts,
    ControlPlaneAsItStarts,
    AgentStands,
    ControlPlaneStands,
    ContainerdStands,
    SocketGone,
    PluginInFlight,
    RuncInFlight,
    Supervisor,
    Rollout,
    Scale,
    DeletePods,
    Policy,
    Drain,
}

/// How often each is chosen, as a share of all.
const DICE: &[(Fault, u32)] = &[
    (Fault::Agent, 4),
    (Fault::ControlPlane, 4),
    (Fault::Dns, 1),
    (Fault::Containerd, 3),
    (Fault::Shim, 2),
    (Fault::Container, 3),
    (Fault::EverythingAtOnce, 2),
    (Fault::AgentAsItStarts, 2),
    (Fault::ControlPlaneAsItStarts, 2),
    (Fault::AgentStands, 1),
    (Fault::ControlPlaneStands, 1),
    (Fault::ContainerdStands, 1),
    (Fault::SocketGone, 1),
    (Fault::PluginInFlight, 2),
    (Fault::RuncInFlight, 2),
    (Fault::Supervisor, 1),
    (Fault::Rollout, 2),
    (Fault::Scale, 3),
    (Fault::DeletePods, 2),
    (Fault::Policy, 2),
    (Fault::Drain, 1),
];

const BACK_WITHIN: Duration = Duration::from_secs(60);
/// After so long without a sign of life an agent is let live until it gives one. A node that is silent for 40 s has no
/// ready pods any more, and the supervisor's pauses between the deaths of a process grow to 10 s.
const SPEAKS_AT_LEAST: Duration = Duration::from_secs(15);

pub(super) struct Faults<'a> {
    cluster: &'a Cluster,
    nodes: &'a [Node],
    dice: fastrand::Rng,
    injected: Vec<Fault>,
    /// When each node's agent was last known to have spoken.
    spoke: Vec<Instant>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(cluster: &'a Cluster, nodes: &'a [Node], seed: u64) -> Self {
        Self {
            cluster,
            nodes,
            dice: fastrand::Rng::with_seed(seed),
            injected: Vec::new(),
            spoke: vec![Instant::now(); nodes.len()],
        }
    }

    pub(super) fn choose(&mut self) -> Fault {
        let mut rest = self.dice.u32(0..DICE.iter().map(|(_, share)| share).sum());
        for (fault, share) in DICE {
            if rest < *share {
                return *fault;
            }
            rest -= share;
        }
        Fault::Agent
    }

    /// How long to wait before the next one: anything from at once to what a recovery takes.
    pub(super) fn moment(&mut self) -> Duration {
        Duration::from_millis(self.dice.u64(0..1_500))
    }

    pub(super) fn history(&self) -> String {
        format!("{:?}", self.injected)
    }

    pub(super) fn inject(&mut self, fault: Fault, workload: &mut Workload<'_>) -> Result<()> {
        self.injected.push(fault);
        let number = self.dice.usize(0..self.nodes.len());
        match fault {
            Fault::Agent => self.kill_agent(number),
            Fault::ControlPlane => self.kill("control-plane"),
            Fault::Containerd => self.kill(&service("containerd", number)),
            Fault::Dns => self.kill_dns(number),
            Fault::EverythingAtOnce => {
                self.kill_agent(number)?;
                self.kill(&service("containerd", number))?;
                self.kill_dns(number)?;
                self.kill("control-plane")
            }
            Fault::AgentAsItStarts => self
                .kill_as_it_starts(&service("node-agent", number), |this| {
                    this.kill_agent(number)
                }),
            Fault::ControlPlaneAsItStarts => {
                self.kill_as_it_starts("control-plane", |this| this.kill("control-plane"))
            }
            Fault::AgentStands => {
                self.let_speak(number)?;
                self.stand(&service("node-agent", number))
            }
            Fault::ControlPlaneStands => self.stand("control-plane"),
            Fault::ContainerdStands => self.stand(&service("containerd", number)),
            Fault::SocketGone => self.remove_socket(number),
            Fault::Supervisor => self.kill_supervisor(),
            Fault::Container => self.kill_container(workload),
            Fault::Shim => self.kill_shim(workload),
            Fault::PluginInFlight => self.kill_in_flight("windlass-cni", workload),
            Fault::RuncInFlight => self.kill_in_flight("runc", workload),
            Fault::Drain => self.drain(number),
            Fault::Scale => self.tell(|this| workload.scale(this.dice.u32(1..6))),
            Fault::Rollout => self.tell(|_| {
                let restart = [
                    "rollout",
                    "restart",
                    "deployment/web",
                    "deployment/vault",
                    "statefulset/db",
                    "statefulset/journal",
                ];
                workload.namespace.run(&restart).map(drop)
            }),
            Fault::DeletePods => self.tell(|_| {
                let delete = [
                    "delete",
                    "pods",
                    "-l",
                    "app in (web, db, vault, journal)",
                    "--wait=false",
                ];
                workload.namespace.run(&delete).map(drop)
            }),
            Fault::Policy => self.tell(|this| {
                if this.dice.bool() {
                    workload.namespace.apply(POLICY).map(drop)
                } else {
                    let delete = ["delete", "networkpolicy", "web", "--ignore-not-found"];
                    workload.namespace.run(&delete).map(drop)
                }
            }),
        }
    }

    /// A user's command: repeated as long as the API server is away.
    fn tell(&mut self, mut command: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        until(BACK_WITHIN, "the API server to take a command", || {
            Ok(command(self).is_ok())
        })
    }

    fn pid_file(&self, service: &str) -> Result<PathBuf> {
        let of_agent = Path::new(self.cluster.variable("WINDLASS_AGENT_PID_FILE")?);
        Ok(of_agent.with_file_name(format!("{service}.pid")))
    }

    /// Its pid; waits for one that has just been killed.
    fn pid(&self, service: &str) -> Result<Pid> {
        let file = self.pid_file(service)?;
        let mut found = None;
        until(BACK_WITHIN, service, || {
            found = read_pid(&file).filter(|pid| kill(*pid, None).is_ok());
            Ok(found.is_some())
        })?;
        found.context("a pid")
    }

    fn kill(&self, service: &str) -> Result<()> {
        let pid = self.pid(service)?;
        kill(pid, Signal::SIGKILL).with_context(|| format!("killing {service}"))
    }

    fn kill_agent(&mut self, number: usize) -> Result<()> {
        self.let_speak(number)?;
        self.kill(&service("node-agent", number))
    }

    /// Waits for the node's next sign of life, if its last one is long ago.
    fn let_speak(&mut self, number: usize) -> Result<()> {
        if self.spoke[number].elapsed() < SPEAKS_AT_LEAST {
            return Ok(());
        }
        let node = &self.nodes[number].name;
        let path = "jsonpath={.spec.renewTime}";
        let renewed = || kubectl(&["-n", "kube-node-lease", "get", "lease", node, "-o", path]).ok();
        let mut last = None;
        until(BACK_WITHIN, "a node's sign of life", || {
            let now = renewed();
            let has_spoken = last.is_some() && now.is_some() && now != last;
            last = last.take().or(now);
            Ok(has_spoken)
        })?;
        self.spoke[number] = Instant::now();
        Ok(())
    }

    /// Again and again, each time a little later or sooner.
    fn kill_as_it_starts(
        &mut self,
        service: &str,
        mut kill: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        for _ in 0..self.dice.u32(2..5) {
            kill(self)?;
            self.pid(service)?;
            pause(Duration::from_millis(self.dice.u64(0..1_000)));
        }
        kill(self)
    }

    /// Answers nothing for a while, and knows nothing of it afterwards.
    fn stand(&mut self, service: &str) -> Result<()> {
        let pid = self.pid(service)?;
        kill(pid, Signal::SIGSTOP).with_context(|| format!("stopping {service}"))?;
        pause(Duration::from_millis(self.dice.u64(500..4_000)));
        kill(pid, Signal::SIGCONT).with_context(|| format!("continuing {service}"))
    }

    fn agent_socket(&self, number: usize) -> Result<&Path> {
        let name = match number {
            0 => "WINDLASS_AGENT_SOCKET".to_owned(),
            _ => format!("WINDLASS_AGENT_SOCKET_{}", number + 1),
        };
        self.cluster.variable(&name).map(Path::new)
    }

    fn kill_dns(&self, number: usize) -> Result<()> {
        let file = format!("{}.dns.pid", self.agent_socket(number)?.display());
        // It may be dead already.
        if let Some(pid) = read_pid(Path::new(&file)) {
            kill(pid, Signal::SIGKILL).ok();
        }
        Ok(())
    }

    fn remove_socket(&self, number: usize) -> Result<()> {
        let socket = self.agent_socket(number)?;
        fs::remove_file(socket).ok();
        until(BACK_WITHIN, "the agent's socket", || Ok(socket.exists()))
    }

    /// Of all that is hurt anyway. It may fail halfway: the node takes pods again in any case.
    fn drain(&mut self, number: usize) -> Result<()> {
        let node = &self.nodes[number].name;
        let hurt = format!("--pod-selector=app in ({WEB}, {DATABASE}, {VAULT}, {JOURNAL})");
        let drain = ["drain", node, &hurt, "--ignore-daemonsets", "--timeout=5s"];
        try_kubectl(&drain, "")?;
        self.tell(|_| kubectl(&["uncordon", node]).map(drop))
    }

    /// One of the two that look after each other; or both, and then a person says `up`.
    fn kill_supervisor(&mut self) -> Result<()> {
        let both = ["supervisor", "guard"];
        match self.dice.usize(0..3) {
            2 => {
                for name in both {
                    self.kill(name)?;
                }
                let output = xtask(&["up", "--no-build"]).output()?;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                ensure!(output.status.success(), "up: {said}");
                Ok(())
            }
            one => self.kill(both[one]),
        }
    }

    /// A running process of a pod that is to be hurt.
    fn victim(&mut self, namespace: &Namespace) -> Result<Option<PodProcess>> {
        let mut found = pod_processes()?;
        found.retain(|process| process.namespace == namespace.name());
        found.retain(|process| {
            let pod = process.pod.as_str();
            [WEB, DATABASE, VAULT, JOURNAL].iter().any(|app| {
                let rest = pod.strip_prefix(app);
                rest.is_some_and(|rest| rest.starts_with('-'))
            })
        });
        if found.is_empty() {
            return Ok(None);
        }
        Ok(Some(found.swap_remove(self.dice.usize(0..found.len()))))
    }

    fn kill_container(&mut self, workload: &mut Workload<'_>) -> Result<()> {
        // What a burst before has changed would not let us count.
        workload.wait_until_settled(BACK_WITHIN)?;
        let Some(victim) = self.victim(workload.namespace)? else {
            return Ok(());
        };
        let pod = workload.namespace.get(&["pod", &victim.pod])?;
        let uid = text(&pod["metadata"]["uid"]).to_owned();
        workload.expect_restart(&uid);
        kill(victim.pid, Signal::SIGKILL).context("killing a container")?;
        until(BACK_WITHIN, "the exit code", || {
            let pod = workload.namespace.get(&["pod", &victim.pod]);
            Ok(pod.is_ok_and(|pod| last_exit_code(&pod) == Some(137)))
        })
    }

    fn kill_shim(&mut self, workload: &mut Workload<'_>) -> Result<()> {
        workload.wait_until_settled(BACK_WITHIN)?;
        let Some(victim) = self.victim(workload.namespace)? else {
            return Ok(());
        };
        let pod = workload.namespace.get(&["pod", &victim.pod])?;
        workload.expect_restart(text(&pod["metadata"]["uid"]));
        kill(victim.parent, Signal::SIGKILL).context("killing a shim")
    }

    /// Pods come and go meanwhile, and each run of the program that is seen is cut off.
    fn kill_in_flight(&mut self, program: &str, workload: &mut Workload<'_>) -> Result<()> {
        let replicas = self.dice.u32(3..7);
        self.tell(|_| workload.scale(replicas))?;
        for _ in 0..200 {
            for pid in pids()? {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                if name.trim() == program {
                    kill(pid, Signal::SIGKILL).ok();
                }
            }
            pause(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// The name that the supervisor has for a node's service.
fn service(name: &str, number: usize) -> String {
    match number {
        0 => name.to_owned(),
        _ => format!("{name}-{}", number + 1),
    }
}

fn read_pid(file: &Path) -> Option<Pid> {
    let text = fs::read_to_string(file).ok()?;
    Some(Pid::from_raw(text.trim().parse().ok()?))
}

pub(super) fn pids() -> Result<impl Iterator<Item = Pid>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| Some(Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))))
}

/// Admits everybody from everywhere, but is one more thing that changes.
const POLICY: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
"#;
