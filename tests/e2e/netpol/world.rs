//! The pods of three namespaces, what is done to them by the API, and who reaches whom.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use windlass_tests::cluster::{Cluster, Node};
use windlass_tests::eventually::{eventually, until};
use windlass_tests::proxy::Proxy;

use super::model::{End, Family, Labels, Model, NamedPort, Pod, PodName, Protocol, Traffic};
use super::probe::{Probe, Pulse};
use super::question::{Question, Way, ask};
use super::sctp::{self, Ear};

pub(super) const PORTS: [u16; 2] = [80, 81];
/// After so long without any answer no more are expected. Every later look is twice as patient, so that one of them
/// will do on any machine.
const PAUSE: Duration = Duration::from_millis(300);
/// An answer that is still missing then is so for good.
const AT_LAST: Duration = Duration::from_secs(10);

/// One thing done by the API.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// Creates or replaces; `metadata.namespace` is a short name.
    Apply(Value),
    Delete(&'static str, String),
    LabelNamespace(&'static str, Labels),
    LabelPod(PodName, Labels),
    CreateNamespace(&'static str, Labels),
    DeleteNamespace(&'static str),
    CreatePod(PodName, Labels),
    DeletePod(PodName),
    /// The same name and labels, another address.
    RecreatePod(PodName),
}

pub(super) struct World {
    pub(super) model: Model,
    prefix: String,
    proxy: Proxy,
    nodes: Vec<Node>,
    services: BTreeMap<PodName, Service>,
    namespaces: BTreeMap<PodName, File>,
    mark: Cell<u32>,
    /// Counts the states that were checked: they take turns in what is asked by a Service's address, and what by a
    /// node port.
    checked: usize,
    _cluster: Cluster,
}

struct Service {
    /// One of each family that the cluster has.
    addresses: Vec<IpAddr>,
    /// By port and protocol.
    node_ports: BTreeMap<(u16, Protocol), u16>,
}

impl World {
    /// Three namespaces `x`, `y`, `z` with a pod `a`, `b`, `c` each, those of one name on one node.
    pub(super) fn set_up(purpose: &str) -> Result<Self> {
        // Every answer is awaited: it must not be late for what another test does.
        let cluster = Cluster::exclusive()?;
        let nodes = cluster.nodes(1)?;
        let mut world = Self {
            model: Model {
                nodes: nodes.iter().map(|node| node.addresses.clone()).collect(),
                ..Model::default()
            },
            prefix: format!("np-{purpose}-{}-", std::process::id()),
            proxy: Proxy::start()?,
            nodes,
            services: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            mark: Cell::new(0),
            checked: 0,
            _cluster: cluster,
        };
        let names = ["x", "y", "z"];
        for namespace in names {
            world.create_namespace(namespace, labels(&[("ns", namespace)]))?;
        }
        let pods = names
            .iter()
            .flat_map(|namespace| ["a", "b", "c"].map(|pod| PodName::new(namespace, pod)));
        let pods: Vec<PodName> = pods.collect();
        for pod in &pods {
            world.create_pod(pod, labels(&[("pod", &pod.name)]))?;
        }
        for pod in &pods {
            world.meet(pod)?;
        }
        Ok(world)
    }

    /// The name that the API knows a namespace by.
    pub(super) fn real(&self, namespace: &str) -> String {
        format!("{}{namespace}", self.prefix)
    }

    pub(super) fn act(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::Apply(policy) => self.apply(policy),
            Action::Delete(namespace, name) => self.delete(namespace, name),
            Action::LabelNamespace(namespace, labels) => {
                let path = format!("/api/v1/namespaces/{}", self.real(namespace));
                let held = self.model.namespaces[*namespace].clone();
                self.relabel(&path, &held, labels)?;
                let labels = self.labels_of_namespace(namespace, labels);
                self.model
                    .namespaces
                    .insert((*namespace).to_owned(), labels);
                Ok(())
            }
            Action::LabelPod(pod, labels) => {
                let path = self.pod_path(pod);
                let labels = labels_of_pod(pod, labels);
                let held = self.model.pods[pod].labels.clone();
                self.relabel(&path, &held, &labels)?;
                self.pod(pod)?.labels = labels;
                Ok(())
            }
            Action::CreateNamespace(namespace, labels) => {
                self.create_namespace(namespace, labels.clone())
            }
            Action::DeleteNamespace(namespace) => {
                self.model.namespaces.remove(*namespace);
                self.model.pods.retain(|pod, _| pod.namespace != *namespace);
                self.services.retain(|pod, _| pod.namespace != *namespace);
                self.namespaces.retain(|pod, _| pod.namespace != *namespace);
                let path = format!("/api/v1/namespaces/{}", self.real(namespace));
                self.call("DELETE", &path, None).map(drop)
            }
            Action::CreatePod(pod, labels) => {
                self.create_pod(pod, labels.clone())?;
                self.meet(pod)
            }
            Action::DeletePod(pod) => {
                self.delete_pod(pod)?;
                self.services.remove(pod);
                Ok(())
            }
            Action::RecreatePod(pod) => {
                let labels = self.model.pods[pod].labels.clone();
                self.delete_pod(pod)?;
                self.create_only_pod(pod, &labels)?;
                self.meet(pod)
            }
        }
    }

    /// Removes all policies, and gives the first nine pods and their namespaces their first labels.
    pub(super) fn restore(&mut self) -> Result<()> {
        let held: Vec<_> = self.model.policies.keys().cloned().collect();
        for (namespace, name) in held {
            self.delete(&namespace, &name)?;
        }
        let first = |name: &&str| ["x", "y", "z"].contains(name);
        let namespaces: Vec<String> = self.model.namespaces.keys().cloned().collect();
        for namespace in &namespaces {
            let Some(name) = ["x", "y", "z"].into_iter().find(|it| it == namespace) else {
                continue;
            };
            let wanted = labels(&[("ns", name)]);
            if self.model.namespaces[name] != self.labels_of_namespace(name, &wanted) {
                self.act(&Action::LabelNamespace(name, wanted))?;
            }
        }
        let pods: Vec<PodName> = self.model.pods.keys().cloned().collect();
        for pod in pods.iter().filter(|pod| first(&pod.namespace.as_str())) {
            if !["a", "b", "c"].contains(&pod.name.as_str()) {
                self.act(&Action::DeletePod(pod.clone()))?;
                continue;
            }
            let wanted = labels(&[("pod", &pod.name)]);
            if self.model.pods[pod].labels != labels_of_pod(pod, &wanted) {
                self.act(&Action::LabelPod(pod.clone(), wanted))?;
            }
        }
        Ok(())
    }

    /// Asks everybody for everybody, and again whoever has given a wrong answer, until all answers are the model's.
    /// Returns how long that took.
    pub(super) fn check(&mut self) -> Result<Duration> {
        self.checked += 1;
        let this = &*self;
        let mut questions = this.questions();
        let started = Instant::now();
        let mut pause = PAUSE;
        loop {
            let began = Instant::now();
            let mut wrong = ask(&mut questions, pause)?;
            if wrong.is_empty() {
                wrong = this.sctp_differences(pause)?;
            }
            if wrong.is_empty() {
                return Ok(began.duration_since(started));
            }
            if pause > AT_LAST {
                let policies: Vec<String> =
                    this.model.policies.values().map(Value::to_string).collect();
                bail!(
                    "{} answers are wrong {:?} after the change:\n{}\nunder\n{}",
                    wrong.len(),
                    started.elapsed(),
                    wrong.join("\n"),
                    policies.join("\n")
                );
            }
            pause *= 2;
        }
    }

    /// By the namespace in which they are asked.
    fn questions(&self) -> Vec<(File, Vec<Question<'_>>)> {
        let from_pods = self.namespaces.iter().filter_map(|(pod, namespace)| {
            let node = self.model.pods.get(pod)?.node;
            Some((namespace.try_clone().ok()?, End::Pod(pod), node))
        });
        let from_nodes = self.nodes.iter().enumerate().filter_map(|(index, node)| {
            let file = match &node.netns {
                Some(name) => File::open(format!("/run/netns/{name}")),
                None => File::open("/proc/self/ns/net"),
            };
            Some((file.ok()?, End::Node(index), index))
        });
        let places = from_pods.chain(from_nodes);
        places
            .map(|(namespace, from, node)| {
                let targets = self.model.pods.keys();
                let questions = targets.flat_map(|to| self.questions_about(from, node, to));
                (namespace, questions.collect())
            })
            .collect()
    }

    fn questions_about<'a>(
        &'a self,
        from: End<'a>,
        node: usize,
        to: &'a PodName,
    ) -> Vec<Question<'a>> {
        let pod = &self.model.pods[to];
        let mut questions = Vec::new();
        for (family, port) in both(Family::ALL, PORTS) {
            let Some(address) = family.of(&pod.addresses) else {
                continue;
            };
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let traffic = Traffic {
                    family,
                    protocol,
                    port,
                };
                let expected = self.model.allows(from, End::Pod(to), traffic);
                let mut ways = vec![(Way::Direct, SocketAddr::new(address, port))];
                if let Some(service) = self.services.get(to) {
                    let by_node_port = (family == Family::V6) == self.checked.is_multiple_of(2);
                    ways.extend(match by_node_port {
                        true => {
                            let node = family.of(&self.model.nodes[node]);
                            let port = service.node_ports.get(&(port, protocol));
                            node.zip(port)
                                .map(|(ip, port)| (Way::NodePort, SocketAddr::new(ip, *port)))
                        }
                        false => {
                            let ip = family.of(&service.addresses);
                            ip.map(|ip| (Way::Service, SocketAddr::new(ip, port)))
                        }
                    });
                }
                questions.extend(ways.into_iter().map(|(way, target)| Question {
                    from,
                    to,
                    way,
                    traffic,
                    probe: Probe { target, protocol },
                    expected,
                }));
            }
        }
        questions
    }

    fn sctp_differences(&self, pause: Duration) -> Result<Vec<String>> {
        let names: Vec<PodName> = self.namespaces.keys().cloned().collect();
        let mut ears = names
            .iter()
            .map(|name| Ear::open(&self.namespaces[name]))
            .collect::<Result<Vec<_>>>()?;
        let mut asked = BTreeMap::new();
        for from in &names {
            let mut targets = Vec::new();
            for (index, to) in names.iter().enumerate() {
                for (family, port) in both(Family::ALL, PORTS) {
                    let Some(address) = family.of(&self.model.pods[to].addresses) else {
                        continue;
                    };
                    let mark = self.mark.get() + 1;
                    self.mark.set(mark);
                    targets.push((SocketAddr::new(address, port), mark));
                    let traffic = Traffic {
                        family,
                        protocol: Protocol::Sctp,
                        port,
                    };
                    asked.insert(mark, (from, index, traffic));
                }
            }
            sctp::send(&self.namespaces[from], &targets)?;
        }
        let expected = |(from, to, traffic): &(&PodName, usize, Traffic)| {
            let to = End::Pod(&names[*to]);
            self.model.allows(End::Pod(from), to, *traffic)
        };
        let enough = asked.values().filter(|it| expected(it)).count();
        let heard = sctp::listen(&mut ears, enough, &Pulse::new(pause));
        let wrong = asked.iter().filter(|(mark, it)| {
            let (_, to, traffic) = it;
            heard[*to].contains(&(traffic.port, **mark)) != expected(it)
        });
        Ok(wrong
            .map(|(_, it)| {
                let (from, to, traffic) = it;
                let is = expected(it);
                format!("{from} -> {} {traffic:?}: should be {is}", names[*to])
            })
            .collect())
    }

    fn apply(&mut self, policy: &Value) -> Result<()> {
        let metadata = &policy["metadata"];
        let namespace = metadata["namespace"]
            .as_str()
            .context("a namespace")?
            .to_owned();
        let name = metadata["name"].as_str().context("a name")?.to_owned();
        let path = self.policies_path(&namespace);
        let mut object = policy.clone();
        object["apiVersion"] = "networking.k8s.io/v1".into();
        object["kind"] = "NetworkPolicy".into();
        object["metadata"]["namespace"] = self.real(&namespace).into();
        let key = (namespace, name);
        match self.model.policies.contains_key(&key) {
            true => self.call("PUT", &format!("{path}/{}", key.1), Some(&object))?,
            false => self.call("POST", &path, Some(&object))?,
        };
        self.model.policies.insert(key, policy.clone());
        Ok(())
    }

    fn delete(&mut self, namespace: &str, name: &str) -> Result<()> {
        let path = format!("{}/{name}", self.policies_path(namespace));
        self.call("DELETE", &path, None)?;
        self.model
            .policies
            .remove(&(namespace.to_owned(), name.to_owned()));
        Ok(())
    }

    fn policies_path(&self, namespace: &str) -> String {
        let namespace = self.real(namespace);
        format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
    }

    fn pod_path(&self, pod: &PodName) -> String {
        format!(
            "/api/v1/namespaces/{}/pods/{}",
            self.real(&pod.namespace),
            pod.name
        )
    }

    fn pod(&mut self, name: &PodName) -> Result<&mut Pod> {
        self.model
            .pods
            .get_mut(name)
            .with_context(|| format!("there is no pod {name}"))
    }

    fn labels_of_namespace(&self, namespace: &str, given: &Labels) -> Labels {
        let mut labels = given.clone();
        labels.insert("kubernetes.io/metadata.name".into(), self.real(namespace));
        labels
    }

    fn create_namespace(&mut self, namespace: &str, labels: Labels) -> Result<()> {
        let name = self.real(namespace);
        let object = json!({"metadata": {"name": name, "labels": labels}});
        self.call("POST", "/api/v1/namespaces", Some(&object))?;
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        until(
            Duration::from_secs(20),
            "the default ServiceAccount",
            || Ok(self.proxy.get(&account)?.status == 200),
        )?;
        let labels = self.labels_of_namespace(namespace, &labels);
        self.model.namespaces.insert(namespace.to_owned(), labels);
        Ok(())
    }

    fn create_pod(&mut self, pod: &PodName, labels: Labels) -> Result<()> {
        self.create_only_pod(pod, &labels_of_pod(pod, &labels))?;
        let ports = PORTS.iter().flat_map(|port| {
            ["TCP", "UDP"].map(|protocol| {
                let name = format!("{}-{port}", protocol.to_lowercase());
                json!({"name": name, "port": port, "protocol": protocol})
            })
        });
        let service = json!({
            "metadata": {"name": format!("s-{}-{}", pod.namespace, pod.name)},
            "spec": {"type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "selector": {"svc": pod.name}, "ports": ports.collect::<Vec<_>>()},
        });
        let path = format!("/api/v1/namespaces/{}/services", self.real(&pod.namespace));
        let made = self.call("POST", &path, Some(&service))?;
        let ports = made["spec"]["ports"].as_array().context("ports")?.iter();
        let node_ports = ports.map(|port| {
            let number = |name: &str| port[name].as_u64().unwrap_or_default() as u16;
            let protocol = if port["protocol"] == "UDP" {
                Protocol::Udp
            } else {
                Protocol::Tcp
            };
            ((number("port"), protocol), number("nodePort"))
        });
        let service = Service {
            addresses: addresses(&made["spec"]["clusterIPs"], |it| it)?,
            node_ports: node_ports.collect(),
        };
        self.services.insert(pod.clone(), service);
        Ok(())
    }

    fn create_only_pod(&mut self, pod: &PodName, labels: &Labels) -> Result<()> {
        let index = usize::from(pod.name.bytes().next().unwrap_or(b'a') - b'a');
        let node = index % self.nodes.len();
        let ports = named_ports(pod);
        let of_container = ports.iter().map(|port| {
            json!({"name": port.name, "containerPort": port.port, "protocol": port.protocol.name()})
        });
        let object = json!({
            "metadata": {"name": pod.name, "labels": labels},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": self.nodes[node].name},
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "echo", "image": "windlass.dev/echo:dev", "imagePullPolicy": "IfNotPresent",
                    "args": ["--echo", "80", "--echo", "81"], "ports": of_container.collect::<Vec<_>>(),
                    "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 10},
                }],
            },
        });
        let path = format!("/api/v1/namespaces/{}/pods", self.real(&pod.namespace));
        self.call("POST", &path, Some(&object))?;
        let known = Pod {
            labels: labels.clone(),
            addresses: Vec::new(),
            node,
            ports,
        };
        self.model.pods.insert(pod.clone(), known);
        Ok(())
    }

    /// Waits until a pod is ready; takes its address and namespace.
    fn meet(&mut self, pod: &PodName) -> Result<()> {
        let path = self.pod_path(pod);
        let (uid, addresses) = eventually(Duration::from_secs(90), "a pod to be ready", || {
            let object = self.call("GET", &path, None)?;
            let mut conditions = object["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten();
            let ready = conditions.any(|it| it["type"] == "Ready" && it["status"] == "True");
            let uid = object["metadata"]["uid"].as_str().map(str::to_owned);
            if !ready {
                return Ok(None);
            }
            let addresses = addresses(&object["status"]["podIPs"], |it| &it["ip"])?;
            Ok(uid.map(|uid| (uid, addresses)))
        })?;
        self.pod(pod)?.addresses = addresses;
        self.namespaces.insert(pod.clone(), namespace_of(&uid)?);
        Ok(())
    }

    fn delete_pod(&mut self, pod: &PodName) -> Result<()> {
        let path = self.pod_path(pod);
        self.call("DELETE", &path, None)?;
        until(Duration::from_secs(60), "a pod to be gone", || {
            Ok(self.proxy.get(&path)?.status == 404)
        })?;
        self.model.pods.remove(pod);
        self.namespaces.remove(pod);
        Ok(())
    }

    fn relabel(&self, path: &str, held: &Labels, wanted: &Labels) -> Result<()> {
        let gone = held.keys().filter(|key| !wanted.contains_key(*key));
        let gone = gone.filter(|key| !key.starts_with("kubernetes.io/"));
        let mut patch: BTreeMap<&str, Value> =
            gone.map(|key| (key.as_str(), Value::Null)).collect();
        patch.extend(
            wanted
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str().into())),
        );
        let patch = json!({"metadata": {"labels": patch}});
        self.call("PATCH", path, Some(&patch)).map(drop)
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let kind = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = body.map(Value::to_string).unwrap_or_default();
        let headers = [("Content-Type", kind)];
        let response = self
            .proxy
            .request(method, path, &headers, body.as_bytes())?;
        let text = response.text();
        ensure!(
            (200..300).contains(&response.status),
            "{method} {path}: {text}"
        );
        response.json()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for namespace in self.model.namespaces.keys() {
            let path = format!("/api/v1/namespaces/{}", self.real(namespace));
            self.call("DELETE", &path, None).ok();
        }
    }
}

/// Each of these with each of those.
fn both<A: Copy, B: Copy, const N: usize, const M: usize>(
    these: [A; N],
    those: [B; M],
) -> impl Iterator<Item = (A, B)> {
    these
        .into_iter()
        .flat_map(move |this| those.map(|that| (this, that)))
}

fn addresses(list: &Value, address: impl Fn(&Value) -> &Value) -> Result<Vec<IpAddr>> {
    let list = list.as_array().context("a list of addresses")?.iter();
    list.map(|it| Ok(address(it).as_str().context("an address")?.parse()?))
        .collect()
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    pairs.collect()
}

/// Whatever a case does to labels, the Service still finds its pod.
fn labels_of_pod(pod: &PodName, given: &Labels) -> Labels {
    let mut labels = given.clone();
    labels.insert("svc".into(), pod.name.clone());
    labels
}

/// `special` is not the same port everywhere.
fn named_ports(pod: &PodName) -> Vec<NamedPort> {
    let usual = PORTS.iter().flat_map(|port| {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| NamedPort {
            name: format!("serve-{port}-{}", protocol.name().to_lowercase()),
            protocol,
            port: *port,
        })
    });
    let special = NamedPort {
        name: "special".into(),
        protocol: Protocol::Tcp,
        port: if pod.name == "c" { 81 } else { 80 },
    };
    usual.chain([special]).collect()
}

/// The network namespace of a pod, by the cgroups of its processes.
fn namespace_of(uid: &str) -> Result<File> {
    let mark = format!("pod{uid}");
    for process in fs::read_dir("/proc")?.flatten() {
        let path = process.path();
        let cgroups = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        if cgroups.contains(&mark) {
            return File::open(path.join("ns/net")).context("a pod's network namespace");
        }
    }
    bail!("no process of pod {uid} runs on this machine")
}
