//! Those who would notice: connections and conversations that stay open, connections that are made all the time,
//! questions to DNS, a writer who remembers what was acknowledged, one whom policies keep out, and one who looks for pods
//! that run twice.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use windlass_tests::cluster::{Cluster, Node};
use windlass_tests::eventually::{pause, until};
use windlass_tests::namespace::Namespace;
use windlass_tests::netns;
use windlass_tests::traffic::{Held, Traffic, all_answered};

use super::faults::pids;
use super::intruder::Intruder;
use super::ledger::{Ledger, Pages};
use super::processes::look_for_doubles;
use super::workload::{CLIENT, STEADY};

pub(super) const INTERVAL: Duration = Duration::from_millis(20);
/// How long names may be unknown once nobody is killed any more. Meanwhile nothing follows: the agent, who starts the DNS
/// server, may be killed each time before it has.
const NAMELESS: Duration = Duration::from_secs(60);
/// How long a conversation by datagrams may be without an answer: none of them needs an agent, but a machine of two cores
/// that starts everything again is slow.
const SILENT: Duration = Duration::from_secs(10);

pub(super) struct Witnesses {
    stop: Arc<AtomicBool>,
    connections: Vec<(String, Held)>,
    names: JoinHandle<Result<Duration>>,
    /// To questions for a name.
    answers: Arc<AtomicU64>,
    doubles: JoinHandle<Result<u64>>,
    conversations: Vec<(String, JoinHandle<Result<u64>>)>,
    ledgers: Vec<Ledger>,
    intruder: Intruder,
    traffic: Vec<(String, Traffic)>,
}

impl Witnesses {
    pub(super) fn start(cluster: &Cluster, nodes: &[Node], namespace: &Namespace) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let service: IpAddr = namespace
            .field(&["service", STEADY], "{.spec.clusterIP}")?
            .parse()?;
        let port = |name: &str| -> Result<u16> {
            let path = format!("{{.spec.ports[?(@.name==\"{name}\")].nodePort}}");
            Ok(namespace.field(&["service", STEADY], &path)?.parse()?)
        };
        let last = nodes.last().context("a node")?;
        let node_port = |name: &str| Ok::<_, anyhow::Error>(SocketAddr::new(last.ip, port(name)?));
        let outside = named(cluster.outside()?)?;
        let client = network_of(CLIENT)?;

        let (inner, outer) = (SocketAddr::new(service, 9000), node_port("echo")?);
        let direct = SocketAddr::new(pod_address(namespace)?, 9000);
        let (mut connections, mut conversations) = (Vec::new(), Vec::new());
        for (what, place, target) in [
            ("from the node to the ClusterIP", &here()?, inner),
            ("from a pod to the ClusterIP", &client, inner),
            ("from a pod to a pod", &client, direct),
            ("from outside to the NodePort", &outside, outer),
        ] {
            let held = joined(within(place.try_clone()?, move || Held::open(target)));
            connections.push((what.to_owned(), held.context(what)?));
            let until_stop = stop.clone();
            let conversation = within(place.try_clone()?, move || converse(target, &until_stop));
            conversations.push((what.to_owned(), conversation));
        }
        let http = SocketAddr::new(service, 80);
        let by_port = node_port("http")?;
        let traffic = vec![
            ("from the node".to_owned(), Traffic::start(http)),
            (
                "from outside".to_owned(),
                netns::inside(cluster.outside()?, || Ok(Traffic::start(by_port)))?,
            ),
        ];
        let name = format!("{STEADY}.{}.svc.cluster.local", namespace.name());
        let until_stop = stop.clone();
        let intruder = Intruder::start(&client, namespace, &stop)?;
        let answers = Arc::new(AtomicU64::new(0));
        let counted = answers.clone();
        let names = within(client, move || ask_names(&name, &counted, &until_stop));
        let until_stop = stop.clone();
        let doubles = std::thread::spawn(move || look_for_doubles(&until_stop));
        let ledgers = [Pages::ConfigMaps, Pages::CustomResources]
            .map(|pages| Ledger::open(namespace.name(), pages));
        let ledgers = ledgers.into_iter().collect::<Result<_>>()?;
        Ok(Self {
            stop,
            connections,
            names,
            answers,
            doubles,
            conversations,
            ledgers,
            intruder,
            traffic,
        })
    }

    /// Once nobody is killed any more.
    pub(super) fn wait_for_names(&self) -> Result<()> {
        let before = self.answers.load(Ordering::Relaxed);
        until(NAMELESS, "a name to be known", || {
            Ok(self.answers.load(Ordering::Relaxed) > before)
        })
    }

    /// What they say in the end; fails with the first who noticed something.
    pub(super) fn stop(self) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut exchanges = 0;
        for (what, connection) in self.connections {
            exchanges += connection
                .stop()
                .with_context(|| format!("the connection {what}"))?;
        }
        let mut made = 0;
        for (what, traffic) in self.traffic {
            let connections = traffic.stop()?;
            made += connections.len();
            all_answered(&connections).with_context(|| format!("new connections {what}"))?;
        }
        let nameless = joined(self.names).context("asking for a name")?;
        let looks = joined(self.doubles).context("looking for pods that run twice")?;

        let mut datagrams = 0;
        for (what, conversation) in self.conversations {
            datagrams +=
                joined(conversation).with_context(|| format!("the conversation {what}"))?;
        }
        let tries = self.intruder.stop().context("under a policy")?;
        let writes = self.ledgers.into_iter().map(Ledger::close);
        let writes: usize = writes.sum::<Result<usize>>()?;
        Ok(format!(
            "{exchanges} exchanges on 4 connections, {datagrams} answers by datagram, {made} connections answered, \
             {writes} writes kept and told once, {tries} tries kept out, {looks} looks for doubles, \
             longest time without names {nameless:?}",
        ))
    }
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the witness panicked"))?
}

fn here() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("this network namespace")
}

fn named(netns: &str) -> Result<File> {
    let path = format!("/run/netns/{netns}");
    File::open(&path).with_context(|| format!("opening {path}"))
}

/// The network namespace of a pod whose container runs busybox.
fn network_of(pod: &str) -> Result<File> {
    for pid in pids()? {
        let name = fs::read_to_string(format!("/proc/{pid}/root/etc/hostname"));
        let inside = fs::read_to_string(format!("/proc/{pid}/comm"));
        if name.is_ok_and(|name| name.trim() == pod) && inside.is_ok_and(|it| it.trim() == "sleep")
        {
            return Ok(File::open(format!("/proc/{pid}/ns/net"))?);
        }
    }
    bail!("no process of the pod {pod}")
}

pub(super) fn within<T: Send + 'static>(
    netns: File,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> JoinHandle<Result<T>> {
    std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
        work()
    })
}

fn pod_address(namespace: &Namespace) -> Result<IpAddr> {
    let selector = format!("app={STEADY}");
    let path = "{.items[0].status.podIP}";
    Ok(namespace.field(&["pods", "-l", &selector], path)?.parse()?)
}

/// Datagrams by one socket and their answers; a lost one is sent again, as clients do. Returns how many came back.
fn converse(target: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.connect(target)?;
    let (mut said, mut answered) = (0_u64, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let sent = socket.send(&said.to_be_bytes());
        let outcome = sent.and_then(|_| hear(&socket, said));
        if outcome.is_ok() {
            said += 1;
            answered = Instant::now();
        }
        ensure!(
            answered.elapsed() < SILENT,
            "no answer for {SILENT:?} after {said}: {outcome:?}"
        );
        pause(INTERVAL);
    }
    Ok(said)
}

/// The answer to this. Answers to what was sent again come twice: were they left where they are, each later answer would
/// wait behind them for good.
fn hear(socket: &UdpSocket, said: u64) -> std::io::Result<()> {
    let mut heard = [0; 8];
    while heard != said.to_be_bytes() {
        socket.recv(&mut heard)?;
    }
    Ok(())
}

/// Returns the longest time without an answer.
fn ask_names(name: &str, answers: &AtomicU64, stop: &AtomicBool) -> Result<Duration> {
    let server: SocketAddr = "10.96.0.10:53".parse()?;
    let (mut answered, mut longest) = (Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let outcome = resolve(server, name);
        longest = longest.max(answered.elapsed());
        if outcome.is_ok() {
            answered = Instant::now();
            answers.fetch_add(1, Ordering::Relaxed);
        }
        pause(INTERVAL);
    }
    Ok(longest)
}

/// One A question and its answer; a negative answer is none.
fn resolve(server: SocketAddr, name: &str) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(server)?;
    let mut question = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    socket.send(&question)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    ensure!(
        length > 12 && answer[..2] == question[..2],
        "no answer to this"
    );
    ensure!(answer[3] & 0xf == 0, "rcode {}", answer[3] & 0xf);
    ensure!(answer[7] == 1, "{} addresses", answer[7]);
    Ok(())
}
