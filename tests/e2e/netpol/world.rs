//! The pods of three namespaces, what is done to them by the API, and who reaches whom.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;

use anyhow::Result;
use serde_json::Value;
use windlass_tests::cluster::{Cluster, Node};
use windlass_tests::proxy::Proxy;

use super::model::{Kind, Labels, Model, PodName, Protocol, labels_of_node};
use super::objects::labels_of_pod;

pub(super) const PORTS: [u16; 2] = [80, 81];

/// One thing done by the API.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// Creates or replaces; `metadata.namespace` is a short name.
    Apply(Value),
    Delete(&'static str, String),
    /// Creates or replaces a policy of the whole cluster, by its name and spec.
    ApplyToCluster(Kind, &'static str, Value),
    DeleteFromCluster(Kind, &'static str),
    LabelNamespace(&'static str, Labels),
    LabelPod(PodName, Labels),
    CreateNamespace(&'static str, Labels),
    DeleteNamespace(&'static str),
    CreatePod(PodName, Labels),
    DeletePod(PodName),
    /// It is asked to end. Only `d` takes its time for that.
    EndPod(PodName),
    /// The same name and labels, another address.
    RecreatePod(PodName),
    /// Of every node, in the middle of whatever they are at.
    KillAgents,
}

pub(super) struct World {
    pub(super) model: Model,
    pub(super) prefix: String,
    pub(super) proxy: Proxy,
    pub(super) nodes: Vec<Node>,
    pub(super) services: BTreeMap<PodName, Services>,
    /// Network namespaces.
    pub(super) namespaces: BTreeMap<PodName, File>,
    pub(super) mark: Cell<u32>,
    /// Counts the states that were checked: by which Service's address somebody asks takes turns with it.
    pub(super) checked: usize,
    /// Counts the addresses that balancers were said to have.
    pub(super) balancers: u8,
    _cluster: Cluster,
}

/// By which a pod is reached beside its own address.
pub(super) struct Services {
    /// What comes from outside may go to any node.
    pub(super) everywhere: Service,
    /// ... goes to the pod's node alone (`externalTrafficPolicy: Local`), which sees the client's own address.
    pub(super) local: Service,
}

pub(super) struct Service {
    /// One of each family that the cluster has.
    pub(super) addresses: Vec<IpAddr>,
    /// Likewise: those of its balancer.
    pub(super) balancers: Vec<IpAddr>,
    /// By port and protocol.
    pub(super) node_ports: BTreeMap<(u16, Protocol), u16>,
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
                node_labels: nodes
                    .iter()
                    .map(|node| labels_of_node(&node.name))
                    .collect(),
                ..Model::default()
            },
            prefix: format!("np-{purpose}-{}-", std::process::id()),
            proxy: Proxy::start()?,
            nodes,
            services: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            mark: Cell::new(0),
            checked: 0,
            balancers: 0,
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
            Action::ApplyToCluster(kind, name, spec) => self.apply_to_cluster(*kind, name, spec),
            Action::DeleteFromCluster(kind, name) => self.delete_from_cluster(*kind, name),
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
            Action::EndPod(pod) => {
                // Whether a Service still leads to it is another matter.
                self.services.remove(pod);
                self.call("DELETE", &self.pod_path(pod), None).map(drop)
            }
            Action::KillAgents => {
                // One that has just died need not be killed.
                self.nodes.iter().for_each(|node| drop(node.agent.kill()));
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
        let of_cluster: Vec<_> = self.model.cluster_policies.keys().cloned().collect();
        for (kind, name) in of_cluster {
            self.delete_from_cluster(kind, &name)?;
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
}

impl Drop for World {
    fn drop(&mut self) {
        for (kind, name) in self.model.cluster_policies.keys() {
            self.call("DELETE", &kind.path(name), None).ok();
        }
        for namespace in self.model.namespaces.keys() {
            let path = format!("/api/v1/namespaces/{}", self.real(namespace));
            self.call("DELETE", &path, None).ok();
        }
    }
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    pairs.collect()
}
