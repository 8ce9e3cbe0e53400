//! NetworkPolicy as the Kubernetes documentation tells it, in plain code over the API's own
//! objects, and the compiled tables held against it for random clusters.

mod checks;
mod kernel;
mod random;

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use windlass_datapath::types::protocol;

use super::{
    cluster::{Cluster, LocalPod, NamedPort, PodKey, PodSpec},
    cluster_spec,
    labels::Labels,
    names::Names,
    spec::{Direction, PolicyName, PolicySpec},
};

#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub address: IpAddr,
    pub ports: Vec<(&'static str, &'static str, u16)>,
    pub local: bool,
    /// Its object is there, but not in this node's view yet.
    pub unknown: bool,
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub namespaces: BTreeMap<String, Labels>,
    pub pods: Vec<Pod>,
    pub policies: Vec<NetworkPolicy>,
    /// Specs of ClusterNetworkPolicies.
    pub cluster_policies: Vec<Value>,
    /// What names were said to be, by the addresses.
    pub names: Names,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub peer: IpAddr,
    pub protocol: &'static str,
    pub port: u16,
}

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    equal.into_iter().all(|(k, v)| labels.get(k) == Some(v))
        && expressions.into_iter().all(|it| {
            let values = it.values.clone().unwrap_or_default();
            let held = labels.get(&it.key);
            match it.operator.as_str() {
                "In" => held.is_some_and(|held| values.contains(held)),
                "NotIn" => !held.is_some_and(|held| values.contains(held)),
                "Exists" => held.is_some(),
                "DoesNotExist" => held.is_none(),
                other => panic!("{other} is no operator"),
            }
        })
}

impl World {
    fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        let mut pods = self.pods.iter();
        pods.find(|pod| pod.address == address && !pod.unknown)
    }

    fn peer_matches(&self, policy: &NetworkPolicy, peer: &NetworkPolicyPeer, at: IpAddr) -> bool {
        if let Some(block) = &peer.ip_block {
            let holds = |net: &str| net.parse::<IpNet>().unwrap().contains(&at);
            let mut except = block.except.iter().flatten();
            return holds(&block.cidr) && !except.any(|net| holds(net));
        }
        let Some(pod) = self.pod_at(at) else {
            return false;
        };
        let namespace = match &peer.namespace_selector {
            Some(selector) => selects(selector, &self.namespaces[&pod.namespace]),
            None => Some(&pod.namespace) == policy.metadata.namespace.as_ref(),
        };
        let pods = peer.pod_selector.as_ref();
        namespace && pods.is_none_or(|selector| selects(selector, &pod.labels))
    }

    /// `target`: the pod that is dialled, if it is one.
    fn port_matches(&self, port: &NetworkPolicyPort, target: Option<&Pod>, probe: Probe) -> bool {
        if port.protocol.as_deref().unwrap_or("TCP") != probe.protocol {
            return false;
        }
        match &port.port {
            None => true,
            Some(IntOrString::Int(first)) => {
                let last = port.end_port.unwrap_or(*first);
                (*first..=last).contains(&i32::from(probe.port))
            }
            Some(IntOrString::String(name)) => target.is_some_and(|target| {
                let mut ports = target.ports.iter();
                ports.any(|it| *it == (name.as_str(), probe.protocol, probe.port))
            }),
        }
    }

    /// Tiers, in which the first rule that matches decides.
    fn allows(&self, pod: &Pod, direction: Direction, probe: Probe) -> bool {
        let admin = self.cluster_verdict("Admin", pod, direction, probe);
        let namespace = || self.namespace_verdict(pod, direction, probe);
        let baseline = || self.cluster_verdict("Baseline", pod, direction, probe);
        admin.or_else(namespace).or_else(baseline).unwrap_or(true)
    }

    fn cluster_verdict(
        &self,
        tier: &str,
        pod: &Pod,
        direction: Direction,
        probe: Probe,
    ) -> Option<bool> {
        let of_tier = self.cluster_policies.iter().filter(|it| it["tier"] == tier);
        let mut of_tier: Vec<&Value> = of_tier.collect();
        of_tier.sort_by_key(|it| it["priority"].as_i64());
        let (rules, peers) = match direction {
            Direction::Ingress => ("ingress", "from"),
            Direction::Egress => ("egress", "to"),
        };
        let selecting = of_tier
            .into_iter()
            .filter(|it| self.cluster_peer_matches(&it["subject"], pod.address));
        for rule in selecting.flat_map(|it| it[rules].as_array().into_iter().flatten()) {
            let target = match direction {
                Direction::Ingress => Some(pod),
                Direction::Egress => self.pod_at(probe.peer),
            };
            let mut of_rule = rule[peers].as_array().into_iter().flatten();
            let ports = rule["protocols"].as_array();
            if of_rule.any(|peer| self.cluster_peer_matches(peer, probe.peer))
                && ports.is_none_or(|ports| {
                    ports
                        .iter()
                        .any(|port| cluster_port_matches(port, target, probe))
                })
            {
                return match rule["action"].as_str() {
                    Some("Accept") => Some(true),
                    Some("Deny") => Some(false),
                    _ => None,
                };
            }
        }
        None
    }

    fn cluster_peer_matches(&self, peer: &Value, at: IpAddr) -> bool {
        if let Some(networks) = peer["networks"].as_array() {
            let mut networks = networks.iter().filter_map(Value::as_str);
            return networks.any(|net| net.parse::<IpNet>().unwrap().contains(&at));
        }
        if let Some(patterns) = peer["domainNames"].as_array() {
            let mut names = self.names.get(&at).into_iter().flatten();
            return names.any(|name| {
                let mut patterns = patterns.iter().filter_map(Value::as_str);
                patterns.any(|pattern| match pattern.strip_prefix('*') {
                    Some(end) => name.ends_with(end),
                    None => name == pattern,
                })
            });
        }
        let selector = |value: &Value| -> LabelSelector {
            serde_json::from_value(value.clone()).unwrap_or_default()
        };
        let Some(pod) = self.pod_at(at) else {
            return false;
        };
        let namespace = &self.namespaces[&pod.namespace];
        match peer.get("pods") {
            None => selects(&selector(&peer["namespaces"]), namespace),
            Some(pods) => {
                selects(&selector(&pods["namespaceSelector"]), namespace)
                    && selects(&selector(&pods["podSelector"]), &pod.labels)
            }
        }
    }

    /// None: no policy selects the pod.
    fn namespace_verdict(&self, pod: &Pod, direction: Direction, probe: Probe) -> Option<bool> {
        let mut isolated = false;
        for policy in &self.policies {
            let spec = policy.spec.as_ref().unwrap();
            let selector = spec.pod_selector.clone().unwrap_or_default();
            let kinds = spec.policy_types.clone().unwrap_or_else(|| {
                let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
                let kinds = ["Ingress", "Egress"];
                kinds[..1 + usize::from(egress)]
                    .iter()
                    .map(|it| (*it).into())
                    .collect()
            });
            let kind = match direction {
                Direction::Ingress => "Ingress",
                Direction::Egress => "Egress",
            };
            if policy.metadata.namespace.as_ref() != Some(&pod.namespace)
                || !selects(&selector, &pod.labels)
                || !kinds.iter().any(|it| it == kind)
            {
                continue;
            }
            isolated = true;
            let rules: Vec<(Vec<_>, Vec<_>)> = match direction {
                Direction::Ingress => {
                    let rules = spec.ingress.clone().unwrap_or_default().into_iter();
                    rules
                        .map(|it| (it.from.unwrap_or_default(), it.ports.unwrap_or_default()))
                        .collect()
                }
                Direction::Egress => {
                    let rules = spec.egress.clone().unwrap_or_default().into_iter();
                    rules
                        .map(|it| (it.to.unwrap_or_default(), it.ports.unwrap_or_default()))
                        .collect()
                }
            };
            let target = match direction {
                Direction::Ingress => Some(pod),
                Direction::Egress => self.pod_at(probe.peer),
            };
            let allowed = rules.iter().any(|(peers, ports)| {
                (peers.is_empty()
                    || peers
                        .iter()
                        .any(|peer| self.peer_matches(policy, peer, probe.peer)))
                    && (ports.is_empty()
                        || ports
                            .iter()
                            .any(|port| self.port_matches(port, target, probe)))
            });
            if allowed {
                return Some(true);
            }
        }
        isolated.then_some(false)
    }

    fn cluster(&self) -> Cluster<'_> {
        let spec = |pod: &Pod| PodSpec {
            uid: pod.name.clone(),
            labels: pod.labels.clone(),
            ports: pod
                .ports
                .iter()
                .map(|(name, protocol, port)| NamedPort {
                    name: (*name).into(),
                    protocol: number(protocol),
                    port: *port,
                })
                .collect(),
            addresses: vec![pod.address],
            terminating: false,
        };
        let key = |pod: &Pod| PodKey {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        };
        let policies = self.policies.iter().map(|policy| {
            let name = PolicyName {
                namespace: policy.metadata.namespace.clone(),
                name: policy.metadata.name.clone().unwrap(),
            };
            (name, PolicySpec::parse(policy).unwrap())
        });
        let cluster_policies = self.cluster_policies.iter().enumerate();
        let cluster_policies = cluster_policies.map(|(number, spec)| {
            let name = PolicyName {
                namespace: None,
                name: format!("c{number}"),
            };
            let object = DynamicObject::new(
                &name.name,
                &cluster_spec::resource("v1alpha2", "ClusterNetworkPolicy"),
            )
            .data(json!({"spec": spec}));
            (name, PolicySpec::parse_cluster(&object).unwrap())
        });
        let known = self.pods.iter().filter(|pod| !pod.unknown);
        let local = self.pods.iter().filter(|pod| pod.local && !pod.unknown);
        Cluster {
            policies: Cow::Owned(policies.collect()),
            cluster_policies: vec![Cow::Owned(cluster_policies.collect())],
            namespaces: Cow::Owned(self.namespaces.clone().into_iter().collect()),
            pods: Cow::Owned(known.map(|pod| (key(pod), spec(pod))).collect()),
            local: local
                .map(|pod| LocalPod {
                    key: key(pod),
                    addresses: vec![pod.address],
                    spec: spec(pod),
                })
                .collect(),
            names: Cow::Borrowed(&self.names),
            pod_networks: ["10.244.0.0/16", "fd00:244::/48"]
                .map(|net| net.parse().unwrap())
                .into(),
            ..Cluster::default()
        }
    }
}

fn cluster_port_matches(port: &Value, target: Option<&Pod>, probe: Probe) -> bool {
    if let Some(name) = port["destinationNamedPort"].as_str() {
        return target.is_some_and(|target| {
            let mut ports = target.ports.iter();
            ports.any(|it| *it == (name, probe.protocol, probe.port))
        });
    }
    let Some(of_protocol) = port.get(probe.protocol.to_lowercase()) else {
        return false;
    };
    let (port, probed) = (&of_protocol["destinationPort"], u64::from(probe.port));
    match (port["number"].as_u64(), &port["range"]) {
        (Some(number), _) => number == probed,
        (None, Value::Null) => true,
        (None, range) => {
            let bound = |name: &str| range[name].as_u64().unwrap();
            (bound("start")..=bound("end")).contains(&probed)
        }
    }
}

fn number(protocol: &str) -> u8 {
    match protocol {
        "TCP" => protocol::TCP,
        "UDP" => protocol::UDP,
        "SCTP" => protocol::SCTP,
        "ICMP" => protocol::ICMP,
        other => panic!("{other}"),
    }
}
