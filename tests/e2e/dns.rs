//! Cluster DNS is a process of its own: names are resolved whatever happens to the agent. What it says to whom stands
//! in `table`.

mod client;
mod table;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::until;
use windlass_tests::namespace::Namespace;

const BACK_WITHIN: Duration = Duration::from_secs(60);
const NAME: &str = "kubernetes.default.svc.cluster.local";

#[test]
fn names_are_resolved_while_the_agent_stands_still() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let namespace = Namespace::create("dns")?;
    namespace.start_client("client")?;
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
    namespace.start_client("client")?;
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

/// Offered at a steady pace, so that the latency is that of a server which has time, and not of a queue. Beside it, in
/// alternating rounds, one that sends each question back as it came: what the machine itself takes.
#[test]
#[ignore = "measures: cargo xtask test e2e -- --ignored questions_a_second --nocapture, on an idle machine"]
fn questions_a_second_of_a_server_on_one_core() -> Result<()> {
    const ROUNDS: usize = 3;
    let cluster = Cluster::exclusive()?;
    for task in fs::read_dir(format!("/proc/{}/task", server_pid(&cluster)?))? {
        let thread = task?.file_name().to_string_lossy().parse()?;
        stay_on(Pid::from_raw(thread), 0).context("one core for the server")?;
    }
    let mirror = mirror()?;
    stay_on(Pid::from_raw(0), 1).context("another one for the client")?;
    for per_second in [5_000, 10_000, 20_000, 30_000] {
        for _ in 0..ROUNDS {
            let known = ask("10.96.0.10:53".parse()?, per_second, |answer| {
                answer[3] & 0xf == 0 && answer[7] == 1
            })?;
            let mirrored = ask(mirror, per_second, |_| true)?;
            println!("{per_second} questions a second: {known}; sent back: {mirrored}");
            ensure!(
                known.answered * 2 > known.asked,
                "the server does not answer"
            );
        }
    }
    Ok(())
}

/// How a pace was kept up with.
struct Pace {
    asked: usize,
    answered: usize,
    half: Duration,
    nearly_all: Duration,
}

impl std::fmt::Display for Pace {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lost = self.asked - self.answered;
        write!(
            out,
            "p50 {:?}, p99 {:?}, {lost} lost",
            self.half, self.nearly_all
        )
    }
}

fn ask(server: SocketAddr, per_second: usize, is_answer: impl Fn(&[u8]) -> bool) -> Result<Pace> {
    const FOR: Duration = Duration::from_secs(2);
    const TICK: Duration = Duration::from_millis(1);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    let asked = per_second * FOR.as_secs() as usize;
    let mut sent: Vec<Instant> = Vec::with_capacity(asked);
    let mut took: Vec<Duration> = Vec::with_capacity(asked);
    let mut buffer = [0; 512];
    let begun = Instant::now();
    while begun.elapsed() < FOR + Duration::from_secs(1) && took.len() < asked {
        let due = (begun.elapsed() + TICK).as_secs_f64() * per_second as f64;
        while sent.len() < (due as usize).min(asked) {
            // The id of a question is its number, as far as two octets go.
            let question = question(NAME, sent.len() as u16);
            sent.push(Instant::now());
            socket.send(&question)?;
        }
        while let Ok(length) = socket.recv(&mut buffer) {
            ensure!(length > 12 && is_answer(&buffer), "no answer");
            let id = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
            // The youngest question of this id.
            let newest = sent.len() - 1;
            let number = newest - (newest.wrapping_sub(id) & 0xffff);
            took.push(sent[number].elapsed());
        }
    }
    took.sort();
    let of = |share: usize| took.get(took.len() * share / 100).copied();
    Ok(Pace {
        asked,
        answered: took.len(),
        half: of(50).unwrap_or_default(),
        nearly_all: of(99).unwrap_or_default(),
    })
}

/// Sends back what it gets, on the server's core, until the test ends.
fn mirror() -> Result<SocketAddr> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    std::thread::spawn(move || -> Result<()> {
        stay_on(Pid::from_raw(0), 0)?;
        let mut buffer = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut buffer)?;
            socket.send_to(&buffer[..length], from)?;
        }
    });
    Ok(address)
}

fn stay_on(thread: Pid, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    Ok(sched_setaffinity(thread, &cores)?)
}

/// Asks for a name's address of IPv4.
fn question(name: &str, id: u16) -> Vec<u8> {
    let mut question = id.to_be_bytes().to_vec();
    question.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    question
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
