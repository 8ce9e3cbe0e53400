//! The load against a cluster that is there already, whoever made it: its own pods, its own Services, its own
//! controllers, from a machine that reaches both (one of its nodes).

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::Plan;
use super::results::{Measured, Results};
use super::way::Way;
use super::world::Loaded;
use crate::machine::Machine;
use crate::pause;
use crate::progress::Progress;
use crate::rounds::Round;
use crate::traffic::client::{Answer, Order};
use crate::worker::Worker;

const REPLICAS: usize = 2;
const CHUNK: usize = 500;
const READY_LIMIT: Duration = Duration::from_secs(180);

pub fn measure(
    kubeconfig: &Path,
    image: &str,
    port: u16,
    plan: &Plan,
    progress: &Progress,
) -> Result<Results> {
    let cluster = Cluster::create(kubeconfig, image, port)?;
    let mut results = Results::new(Machine::describe(&["kubectl"]), REPLICAS);
    let mut client = Worker::start("client", &[], &[])?;
    let direct = cluster.pods()?;
    let mut made = 0;
    for size in &plan.sizes {
        ensure!(*size > made, "sizes must grow");
        let seconds = cluster.create_services(made..*size, &mut client)?;
        progress.say(format_args!(
            "{size} Services: made and answering after {seconds:.2} s"
        ));
        made = *size;
        let service = cluster.address_of(size / 2)?;
        let mut pair = [Way::Direct, Way::Cluster].map(|way| Measured::new(way, *size));
        pair[1].loaded = Some(Loaded {
            seconds,
            ..Loaded::default()
        });
        for round in 0..plan.rounds {
            for at in 0..pair.len() {
                let way = (at + round) % pair.len();
                let target = [direct[round % direct.len()], service][way];
                let round = Round::of(target, &plan.lengths, false, &mut |order| {
                    Ok((client.ask::<Answer>(order)?, 0))
                })?;
                pair[way].rounds.push(round);
            }
        }
        results.measured.extend(pair);
    }
    Ok(results)
}

struct Cluster {
    kubeconfig: PathBuf,
    namespace: String,
    port: u16,
}

impl Cluster {
    fn create(kubeconfig: &Path, image: &str, port: u16) -> Result<Self> {
        let cluster = Self {
            kubeconfig: kubeconfig.to_owned(),
            namespace: format!("windlass-bench-{}", std::process::id()),
            port,
        };
        cluster.kubectl(&["create", "namespace", &cluster.namespace], None)?;
        let deployment = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": "server" },
            "spec": {
                "replicas": REPLICAS,
                "selector": { "matchLabels": { "app": "server" } },
                "template": {
                    "metadata": { "labels": { "app": "server" } },
                    "spec": { "containers": [{
                        "name": "server",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "readinessProbe": { "tcpSocket": { "port": port } },
                    }]},
                },
            },
        });
        cluster.namespaced(&["create", "-f", "-"], Some(&deployment.to_string()))?;
        let limit = format!("--timeout={}s", READY_LIMIT.as_secs());
        cluster.namespaced(&["rollout", "status", "deployment/server", &limit], None)?;
        Ok(cluster)
    }

    fn pods(&self) -> Result<Vec<SocketAddr>> {
        let path = "jsonpath={.items[*].status.podIP}";
        let text = self.namespaced(&["get", "pods", "-l", "app=server", "-o", path], None)?;
        let addresses = text.split_whitespace().map(|ip| {
            let ip = ip.parse().with_context(|| format!("pod IP `{ip}`"))?;
            Ok(SocketAddr::new(ip, self.port))
        });
        addresses.collect()
    }

    /// Seconds from the first request to the first answer through the last Service.
    fn create_services(&self, range: std::ops::Range<usize>, client: &mut Worker) -> Result<f64> {
        let started = Instant::now();
        let last = range.end - 1;
        let all: Vec<usize> = range.collect();
        for chunk in all.chunks(CHUNK) {
            let items: Vec<Value> = chunk.iter().map(|index| self.service(*index)).collect();
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
            self.namespaced(&["create", "-f", "-"], Some(&list.to_string()))?;
        }
        let target = self.address_of(last)?;
        let order = Order::Connections { target, millis: 1 };
        let deadline = Instant::now() + READY_LIMIT;
        while let Err(error) = client.ask::<Answer>(&order) {
            if Instant::now() > deadline {
                return Err(error.context(
                    "a Service of the cluster does not answer here: run this on one of its nodes",
                ));
            }
            pause::between_looks(Duration::from_millis(2));
        }
        Ok(started.elapsed().as_secs_f64())
    }

    fn service(&self, index: usize) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": format!("service-{index}") },
            "spec": {
                "selector": { "app": "server" },
                "ports": [{ "port": 80, "targetPort": self.port }],
            },
        })
    }

    fn address_of(&self, index: usize) -> Result<SocketAddr> {
        let name = format!("service/service-{index}");
        let ip = self.namespaced(&["get", &name, "-o", "jsonpath={.spec.clusterIP}"], None)?;
        Ok(SocketAddr::new(
            ip.trim()
                .parse()
                .with_context(|| format!("ClusterIP `{ip}`"))?,
            80,
        ))
    }

    fn namespaced(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let mut all = vec!["-n", &self.namespace];
        all.extend(arguments);
        self.kubectl(&all, input)
    }

    fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let mut child = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments)
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {}: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", &self.namespace, "--wait=false"];
        if let Err(error) = self.kubectl(&delete, None) {
            eprintln!("{error:#}");
        }
    }
}
