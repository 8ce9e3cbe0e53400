//! Those who would notice: connections that stay open, connections that are made all the time, questions to DNS, a
//! writer who remembers what was acknowledged, and one who looks for pods that run twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use windlass_tests::cluster::{Cluster, Node};
use windlass_tests::eventually::pause;
use windlass_tests::namespace::Namespace;
use windlass_tests::netns;
use windlass_tests::proxy::Proxy;
use windlass_tests::traffic::{Held, Traffic, all_answered};

use super::faults::pids;
use super::workload::{CLIENT, STEADY};

const INTERVAL: Duration = Duration::from_millis(20);
/// How long names may be unknown: the DNS server and the agent, who starts it, were killed together, perhaps twice.
const NAMELESS: Duration = Duration::from_secs(30);

pub(super) struct Witnesses {
    stop: Arc<AtomicBool>,
    connections: Vec<(String, Held)>,
    names: JoinHandle<Result<Duration>>,
    doubles: JoinHandle<Result<u64>>,
    writer: Writer,
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
        let connections = [
            ("from the node to the ClusterIP", here()?, inner),
            ("from a pod to the ClusterIP", client.try_clone()?, inner),
            ("from outside to the NodePort", outside.try_clone()?, outer),
        ]
        .into_iter()
        .map(|(what, place, target)| {
            let held = joined(within(place, move || Held::open(target)));
            Ok((what.to_owned(), held.context(what)?))
        })
        .collect::<Result<_>>()?;
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
        let names = within(client, move || ask_names(&name, &until_stop));
        let until_stop = stop.clone();
        let doubles = std::thread::spawn(move || look_for_doubles(&until_stop));
        let path = format!("/api/v1/namespaces/{}/configmaps", namespace.name());
        let writer = Writer::start(path);
        Ok(Self {
            stop,
            connections,
            names,
            doubles,
            writer,
            traffic,
        })
    }

    /// What they say in the end; fails with the first who noticed something.
    pub(super) fn stop(self, namespace: &Namespace) -> Result<String> {
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

        let acknowledged = self.writer.stop().context("writing")?;
        let names = namespace.field(&["configmaps"], "{.items[*].metadata.name}")?;
        let there: BTreeSet<&str> = names.split_whitespace().collect();
        let lost: Vec<&String> = acknowledged
            .iter()
            .filter(|name| !there.contains(name.as_str()))
            .collect();
        ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        Ok(format!(
            "{exchanges} exchanges on 3 connections, {made} connections answered, {} writes kept, \
             {looks} looks for doubles, longest time without names {nameless:?}",
            acknowledged.len()
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

fn within<T: Send + 'static>(
    netns: File,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> JoinHandle<Result<T>> {
    std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
        work()
    })
}

/// Returns the longest time without an answer.
fn ask_names(name: &str, stop: &AtomicBool) -> Result<Duration> {
    let server: SocketAddr = "10.96.0.10:53".parse()?;
    let (mut answered, mut longest) = (Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let outcome = resolve(server, name);
        longest = longest.max(answered.elapsed());
        match outcome {
            Ok(()) => answered = Instant::now(),
            Err(error) if longest > NAMELESS => return Err(error).context(format!("{longest:?}")),
            Err(_) => {}
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

/// A process of our test image, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodProcess {
    pub(super) pid: Pid,
    /// The shim.
    pub(super) parent: Pid,
    pub(super) namespace: String,
    pub(super) pod: String,
    started: String,
}

impl PodProcess {
    fn of(pid: Pid) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        if name != "echo" || matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        let environment = fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
        // The same names may be in another test's namespace, which is just being emptied.
        let account = "var/run/secrets/kubernetes.io/serviceaccount/namespace";
        let namespace = fs::read_to_string(format!("/proc/{pid}/root/{account}")).ok()?;
        let mut variables = environment.split('\0');
        Some(Self {
            pid,
            parent: Pid::from_raw(fields.get(1)?.parse().ok()?),
            namespace,
            pod: variables
                .find_map(|variable| variable.strip_prefix("HOSTNAME="))?
                .to_owned(),
            started: (*fields.get(19)?).to_owned(),
        })
    }
}

pub(super) fn pod_processes() -> Result<Vec<PodProcess>> {
    Ok(pids()?.filter_map(PodProcess::of).collect())
}

/// A pod's name stands for one running container at any time: that is what a StatefulSet promises.
fn look_for_doubles(stop: &AtomicBool) -> Result<u64> {
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut seen: BTreeMap<_, PodProcess> = BTreeMap::new();
        for process in pod_processes()? {
            let name = (process.namespace.clone(), process.pod.clone());
            let Some(other) = seen.insert(name, process.clone()) else {
                continue;
            };
            // The first may have ended since it was seen.
            let still = PodProcess::of(other.pid) == Some(other.clone());
            if still && PodProcess::of(process.pid) == Some(process.clone()) {
                bail!("{} runs twice: {other:?} and {process:?}", process.pod);
            }
        }
        looks += 1;
        pause(INTERVAL);
    }
    Ok(looks)
}

/// Writes one object after the other. Its proxy ends with it, whoever else has failed.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<BTreeSet<String>>>>,
}

impl Writer {
    fn start(path: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let until_stop = stop.clone();
        let thread = std::thread::spawn(move || write(&path, &until_stop));
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// The names of those that were acknowledged.
    fn stop(mut self) -> Result<BTreeSet<String>> {
        self.stop.store(true, Ordering::Relaxed);
        joined(self.thread.take().context("stopped already")?)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn write(path: &str, stop: &AtomicBool) -> Result<BTreeSet<String>> {
    let proxy = Proxy::start()?;
    let mut acknowledged = BTreeSet::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("chaos-{number}");
        let body = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"key":"value"}}}}"#
        );
        // While the server is away, nothing is acknowledged.
        if let Ok(answer) = proxy.post_json(path, body.as_bytes())
            && answer.status == 201
        {
            acknowledged.insert(name);
        }
        pause(INTERVAL);
    }
    Ok(acknowledged)
}
