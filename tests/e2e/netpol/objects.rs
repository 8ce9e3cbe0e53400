//! What is created, changed and deleted by the API, in the cluster and in the model alike.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use windlass_tests::eventually::{eventually, until};

use super::model::{Kind, Labels, NamedPort, Pod, PodName, Protocol};
use super::world::{PORTS, Service, Services, World};

impl World {
    pub(super) fn apply(&mut self, policy: &Value) -> Result<()> {
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

    pub(super) fn delete(&mut self, namespace: &str, name: &str) -> Result<()> {
        let path = format!("{}/{name}", self.policies_path(namespace));
        self.call("DELETE", &path, None)?;
        self.model
            .policies
            .remove(&(namespace.to_owned(), name.to_owned()));
        Ok(())
    }

    pub(super) fn apply_to_cluster(&mut self, kind: Kind, name: &str, spec: &Value) -> Result<()> {
        self.define(kind)?;
        // Two runs must not meet, and one must not select what is another's.
        let real = format!("{}{name}", self.prefix);
        let mut object = json!({
            "apiVersion": kind.api_version(), "kind": kind.name(), "metadata": {"name": kind.object(&real)}, "spec": spec,
        });
        let key = (kind, kind.object(&real).to_owned());
        if self.model.cluster_policies.contains_key(&key) {
            let held = self.call("GET", &kind.path(&key.1), None)?;
            object["metadata"]["resourceVersion"] = held["metadata"]["resourceVersion"].clone();
            self.call("PUT", &kind.path(&key.1), Some(&object))?;
        } else {
            self.call("POST", &kind.path(""), Some(&object))?;
        }
        self.model.cluster_policies.insert(key, spec.clone());
        Ok(())
    }

    pub(super) fn delete_from_cluster(&mut self, kind: Kind, name: &str) -> Result<()> {
        let held = self.model.cluster_policies.keys();
        let mut held = held.filter(|(of, full)| *of == kind && full.ends_with(name));
        let key = held.next().context("no such policy")?.clone();
        self.call("DELETE", &kind.path(&key.1), None)?;
        self.model.cluster_policies.remove(&key);
        Ok(())
    }

    /// Brings the kind's definition to the cluster, which keeps it.
    fn define(&self, kind: Kind) -> Result<()> {
        let list = kind.path("");
        if self.proxy.get(&list)?.status == 200 {
            return Ok(());
        }
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        self.call("POST", path, Some(&kind.definition()))?;
        until(Duration::from_secs(30), "the kind to be served", || {
            Ok(self.proxy.get(&list)?.status == 200)
        })
    }

    fn policies_path(&self, namespace: &str) -> String {
        let namespace = self.real(namespace);
        format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
    }

    pub(super) fn pod_path(&self, pod: &PodName) -> String {
        format!(
            "/api/v1/namespaces/{}/pods/{}",
            self.real(&pod.namespace),
            pod.name
        )
    }

    pub(super) fn pod(&mut self, name: &PodName) -> Result<&mut Pod> {
        self.model
            .pods
            .get_mut(name)
            .with_context(|| format!("there is no pod {name}"))
    }

    pub(super) fn labels_of_namespace(&self, namespace: &str, given: &Labels) -> Labels {
        let mut labels = given.clone();
        labels.insert("kubernetes.io/metadata.name".into(), self.real(namespace));
        labels
    }

    pub(super) fn create_namespace(&mut self, namespace: &str, labels: Labels) -> Result<()> {
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

    pub(super) fn create_pod(&mut self, pod: &PodName, labels: Labels) -> Result<()> {
        self.create_only_pod(pod, &labels_of_pod(pod, &labels))?;
        let everywhere = self.create_service(pod, "Cluster")?;
        let local = self.create_service(pod, "Local")?;
        let services = Services { everywhere, local };
        self.services.insert(pod.clone(), services);
        Ok(())
    }

    /// One with every kind of address: whether a balancer is there is up to its status.
    fn create_service(&mut self, pod: &PodName, external: &str) -> Result<Service> {
        let ports = PORTS.iter().flat_map(|port| {
            ["TCP", "UDP"].map(|protocol| {
                let name = format!("{}-{port}", protocol.to_lowercase());
                json!({"name": name, "port": port, "protocol": protocol})
            })
        });
        let name = format!(
            "s-{}-{}-{}",
            pod.namespace,
            pod.name,
            external.to_lowercase()
        );
        let service = json!({
            "metadata": {"name": name},
            "spec": {
                "type": "LoadBalancer", "externalTrafficPolicy": external, "ipFamilyPolicy": "PreferDualStack",
                // Nobody's, so that no controller gives it another address.
                "loadBalancerClass": "windlass.dev/of-a-test",
                "selector": {"svc": pod.name}, "ports": ports.collect::<Vec<_>>(),
            },
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
        let addresses = addresses(&made["spec"]["clusterIPs"], |it| it)?;
        let node_ports = node_ports.collect();
        let balancers: Vec<IpAddr> = addresses.iter().map(|it| self.balancer(*it)).collect();
        let ingress: Value = balancers.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        self.call("PATCH", &format!("{path}/{name}/status"), Some(&status))?;
        Ok(Service {
            addresses,
            balancers,
            node_ports,
        })
    }

    /// An address that nobody has, of the family of the other; of networks for documentation.
    fn balancer(&mut self, like: IpAddr) -> IpAddr {
        self.balancers += 1;
        match like {
            IpAddr::V4(_) => Ipv4Addr::new(203, 0, 113, self.balancers).into(),
            IpAddr::V6(_) => {
                Ipv6Addr::new(0x2001, 0xdb8, 0xba1, 0, 0, 0, 0, u16::from(self.balancers)).into()
            }
        }
    }

    pub(super) fn create_only_pod(&mut self, pod: &PodName, labels: &Labels) -> Result<()> {
        let index = usize::from(pod.name.bytes().next().unwrap_or(b'a') - b'a');
        let node = index % self.nodes.len();
        let ports = named_ports(pod);
        let of_container = ports.iter().map(|port| {
            json!({"name": port.name, "containerPort": port.port, "protocol": port.protocol.name()})
        });
        let mut object = json!({
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
        if takes_its_time(pod) {
            object["spec"]["terminationGracePeriodSeconds"] = 90.into();
            object["spec"]["containers"][0]["lifecycle"] =
                json!({"preStop": {"sleep": {"seconds": 80}}});
        }
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
    pub(super) fn meet(&mut self, pod: &PodName) -> Result<()> {
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

    pub(super) fn delete_pod(&mut self, pod: &PodName) -> Result<()> {
        let path = self.pod_path(pod);
        let at_once = takes_its_time(pod).then(|| json!({"gracePeriodSeconds": 1}));
        self.call("DELETE", &path, at_once.as_ref())?;
        until(Duration::from_secs(60), "a pod to be gone", || {
            Ok(self.proxy.get(&path)?.status == 404)
        })?;
        self.model.pods.remove(pod);
        self.namespaces.remove(pod);
        Ok(())
    }

    pub(super) fn relabel(&self, path: &str, held: &Labels, wanted: &Labels) -> Result<()> {
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

    pub(super) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
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

pub(super) fn addresses(list: &Value, address: impl Fn(&Value) -> &Value) -> Result<Vec<IpAddr>> {
    let list = list.as_array().context("a list of addresses")?.iter();
    list.map(|it| Ok(address(it).as_str().context("an address")?.parse()?))
        .collect()
}

/// Whatever a case does to labels, the Service still finds its pod.
pub(super) fn labels_of_pod(pod: &PodName, given: &Labels) -> Labels {
    let mut labels = given.clone();
    labels.insert("svc".into(), pod.name.clone());
    labels
}

/// Those that only some cases have do not end before they are told twice.
fn takes_its_time(pod: &PodName) -> bool {
    pod.name == "d"
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
pub(crate) fn namespace_of(uid: &str) -> Result<File> {
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
