//! NetworkPolicy as the Kubernetes documentation tells it, in plain code over the API's own
//! objects, and the compiled tables held against it for random clusters.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::core::DynamicObject;
use proptest::prelude::*;
use serde_json::{Value, json};
use windlass_datapath::{
    PolicyWrite,
    types::{Addr, PolicyPeer, PolicyPortKey, VerdictKey, decision, protocol},
};

use super::{
    cluster::{Cluster, LocalPod, NamedPort, PodKey, PodSpec},
    cluster_spec,
    compile::Desired,
    labels::Labels,
    spec::{Direction, PolicyName, PolicySpec},
    tables::Tables,
};

#[derive(Clone, Debug)]
struct Pod {
    namespace: String,
    name: String,
    labels: Labels,
    address: IpAddr,
    ports: Vec<(&'static str, &'static str, u16)>,
    local: bool,
    /// Its object is there, but not in this node's view yet.
    unknown: bool,
}

#[derive(Clone, Debug)]
struct World {
    namespaces: BTreeMap<String, Labels>,
    pods: Vec<Pod>,
    policies: Vec<NetworkPolicy>,
    /// Specs of ClusterNetworkPolicies.
    cluster_policies: Vec<Value>,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    peer: IpAddr,
    protocol: &'static str,
    port: u16,
}

// ---- the model

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
            let object = DynamicObject::new(&name.name, &cluster_spec::resource())
                .data(json!({"spec": spec}));
            (name, PolicySpec::parse_cluster(&object).unwrap())
        });
        let known = self.pods.iter().filter(|pod| !pod.unknown);
        let local = self.pods.iter().filter(|pod| pod.local && !pod.unknown);
        Cluster {
            policies: Cow::Owned(policies.collect()),
            cluster_policies: Cow::Owned(cluster_policies.collect()),
            namespaces: Cow::Owned(self.namespaces.clone().into_iter().collect()),
            pods: Cow::Owned(known.map(|pod| (key(pod), spec(pod))).collect()),
            local: local
                .map(|pod| LocalPod {
                    key: key(pod),
                    addresses: vec![pod.address],
                    spec: spec(pod),
                })
                .collect(),
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

// ---- the tables, asked as the kernel asks them

#[derive(Default)]
struct Kernel {
    tables: Desired,
}

impl Kernel {
    fn apply(&mut self, write: &PolicyWrite) {
        let tables = &mut self.tables;
        match *write {
            PolicyWrite::PutPort(key, value) => drop(tables.ports.insert(key, value)),
            PolicyWrite::PutVerdict(key, value) => drop(tables.verdicts.insert(key, value)),
            PolicyWrite::PutPeer(key, value) => drop(tables.peers.insert(key, value)),
            PolicyWrite::PutNetwork(key, value) => drop(tables.networks.insert(key, value)),
            PolicyWrite::PutPod(key, value) => drop(tables.pods.insert(key, value)),
            PolicyWrite::PutState(_) => {}
            PolicyWrite::DeletePod(key) => drop(tables.pods.remove(&key)),
            PolicyWrite::DeletePeer(key) => drop(tables.peers.remove(&key)),
            PolicyWrite::DeleteNetwork(key) => drop(tables.networks.remove(&key)),
            PolicyWrite::DeleteVerdict(key) => drop(tables.verdicts.remove(&key)),
            PolicyWrite::DeletePort(key) => drop(tables.ports.remove(&key)),
        }
    }

    fn allows(&self, pod: IpAddr, direction: Direction, probe: Probe) -> bool {
        let Some(classes) = self.tables.pods.get(&Addr::from(pod)) else {
            return true;
        };
        let class = match direction {
            Direction::Ingress => classes.ingress,
            Direction::Egress => classes.egress,
        };
        if class == 0 {
            return true;
        }
        let identity = self.peer(probe.peer).identity;
        let verdicts = &self.tables.verdicts;
        let verdict = verdicts
            .get(&VerdictKey { class, identity })
            .or_else(|| verdicts.get(&VerdictKey { class, identity: 0 }));
        let Some(verdict) = verdict else {
            return false;
        };
        let mut decision = verdict.decision;
        let protocol = number(probe.protocol);
        for bits in (0..=16).rev() {
            let port = probe.port & (u32::MAX << (16 - bits)) as u16;
            let prefix = windlass_datapath::PolicyPortPrefix {
                key: PolicyPortKey::new(verdict.ports, protocol, port.to_be()),
                length: PolicyPortKey::HEAD + bits,
            };
            if let Some(found) = self.tables.ports.get(&prefix) {
                decision = *found;
                break;
            }
        }
        decision.flags & decision::ALLOW != 0
    }

    fn peer(&self, address: IpAddr) -> PolicyPeer {
        let octets = Addr::from(address).octets();
        if let Some(peer) = self.tables.peers.get(&Addr::from(address)) {
            return *peer;
        }
        let holding = self.tables.networks.iter().filter(|(network, _)| {
            let (own, length) = (network.addr.octets(), network.length as usize);
            (0..length).all(|bit| (own[bit / 8] ^ octets[bit / 8]) & (0x80 >> (bit % 8)) == 0)
        });
        let longest = holding.max_by_key(|(network, _)| network.length);
        longest.map_or_else(PolicyPeer::default, |(_, peer)| *peer)
    }
}

// ---- random clusters

const OUTSIDE: [&str; 4] = ["192.0.2.9", "198.51.100.7", "10.244.9.9", "2001:db8::9"];
const PORTS: [u16; 6] = [53, 80, 81, 443, 8_080, 9_999];

fn labels() -> impl Strategy<Value = Labels> {
    let label = (
        prop::sample::select(vec!["app", "tier"]),
        prop::sample::select(vec!["a", "b", "c"]),
    );
    let labels = prop::collection::btree_map(label.prop_map(|it| it.0.to_owned()), Just(()), 0..3);
    (labels, prop::collection::vec(0..3usize, 2)).prop_map(|(keys, values)| {
        let values = values
            .into_iter()
            .map(|value| ["a", "b", "c"][value].to_owned());
        keys.into_keys().zip(values).collect()
    })
}

fn selector() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec!["app", "tier"]);
    let value = prop::sample::select(vec!["a", "b", "c"]);
    let other = prop::sample::select(vec!["a", "b", "c"]);
    let operator = prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist"]);
    prop_oneof![
        2 => Just(json!({})),
        3 => (key.clone(), value.clone()).prop_map(|(k, v)| json!({"matchLabels": {k: v}})),
        3 => (key, operator, value, other).prop_map(|(key, operator, a, b)| {
            let values = if operator.ends_with("In") { json!([a, b]) } else { Value::Null };
            json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
        }),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    let networks = vec![
        "0.0.0.0/0",
        "10.244.0.0/16",
        "10.244.0.0/24",
        "10.244.0.12/32",
        "192.0.2.0/24",
        "::/0",
        "fd00:244::/64",
        "2001:db8::/32",
    ];
    let except = vec!["10.244.0.8/29", "192.0.2.8/30", "fd00:244::8/125"];
    let block = (
        prop::sample::select(networks),
        prop::option::of(prop::sample::select(except)),
    );
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (selector(), selector()).prop_map(|(pods, namespaces)| {
            json!({"podSelector": pods, "namespaceSelector": namespaces})
        }),
        block.prop_map(|(cidr, except)| {
            json!({"ipBlock": {"cidr": cidr, "except": except.map(|it| vec![it])}})
        }),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = prop::sample::select(vec!["TCP", "UDP", "SCTP"]);
    let target = prop_oneof![
        1 => Just(json!({})),
        3 => prop::sample::select(PORTS.to_vec()).prop_map(|port| json!({"port": port})),
        2 => prop::sample::select(vec!["web", "dns", "none"]).prop_map(|name| json!({"port": name})),
        2 => (1..9_000u16, 0..3_000u16)
            .prop_map(|(first, more)| json!({"port": first, "endPort": first + more})),
    ];
    (protocol, target).prop_map(|(protocol, mut port)| {
        port["protocol"] = json!(protocol);
        port
    })
}

fn rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let rule = (
        prop::collection::vec(peer(), 0..3),
        prop::collection::vec(port(), 0..3),
    );
    let rule = rule.prop_map(move |(from, ports)| json!({peers: from, "ports": ports}));
    prop::collection::vec(rule, 0..3).prop_map(Value::from)
}

fn policy() -> impl Strategy<Value = Value> {
    let kinds = prop_oneof![
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Ingress", "Egress"])),
        Just(Value::Null),
    ];
    let namespace = prop::sample::select(vec!["x", "y"]);
    let parts = (namespace, selector(), kinds, rules("from"), rules("to"));
    parts.prop_map(|(namespace, pods, kinds, ingress, egress)| {
        json!({
            "metadata": {"namespace": namespace},
            "spec": {
                "podSelector": pods, "policyTypes": kinds, "ingress": ingress, "egress": egress,
            },
        })
    })
}

fn cluster_peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|namespaces| json!({"namespaces": namespaces})),
        (selector(), selector()).prop_map(|(namespaces, pods)| {
            json!({"pods": {"namespaceSelector": namespaces, "podSelector": pods}})
        }),
    ]
}

fn cluster_rules(peers: &'static str, outside: bool) -> impl Strategy<Value = Value> {
    let networks = vec![
        json!(["0.0.0.0/0"]),
        json!(["10.244.0.8/29", "2001:db8::/32"]),
    ];
    let networks = prop::sample::select(networks).prop_map(|it| json!({"networks": it}));
    let peer = if outside {
        prop_oneof![2 => cluster_peer().boxed(), 1 => networks.boxed()].boxed()
    } else {
        cluster_peer().boxed()
    };
    let protocol = prop::sample::select(vec!["tcp", "udp", "sctp"]);
    let port = prop_oneof![
        Just(json!({})),
        prop::sample::select(PORTS.to_vec())
            .prop_map(|port| json!({"destinationPort": {"number": port}})),
        (1..500u16).prop_map(|start| {
            json!({"destinationPort": {"range": {"start": start, "end": start + 300}}})
        }),
    ];
    let protocols = prop_oneof![
        4 => (protocol, port).prop_map(|(protocol, port)| json!({protocol: port})),
        1 => Just(json!({"destinationNamedPort": "web"})),
    ];
    let protocols = prop::option::of(prop::collection::vec(protocols, 1..3));
    let action = prop::sample::select(vec!["Accept", "Deny", "Pass"]);
    let rule = (action, prop::collection::vec(peer, 1..3), protocols);
    let rule = rule.prop_map(move |(action, of_rule, protocols)| {
        let mut rule = json!({"action": action, peers: of_rule});
        if let Some(protocols) = protocols {
            rule["protocols"] = protocols.into();
        }
        rule
    });
    prop::collection::vec(rule, 0..3).prop_map(Value::from)
}

/// With a priority each: between equal ones any order would do.
fn cluster_policies() -> impl Strategy<Value = Vec<Value>> {
    let tier = prop::sample::select(vec!["Admin", "Baseline"]);
    let policy = (
        tier,
        cluster_peer(),
        cluster_rules("from", false),
        cluster_rules("to", true),
    );
    prop::collection::vec(policy, 0..4).prop_map(|policies| {
        let numbered = policies.into_iter().enumerate();
        numbered
            .map(|(number, (tier, subject, ingress, egress))| {
                json!({
                    "tier": tier, "priority": 100 - number, "subject": subject,
                    "ingress": ingress, "egress": egress,
                })
            })
            .collect()
    })
}

fn named(policies: Vec<Value>) -> Vec<NetworkPolicy> {
    let numbered = (0..).zip(policies);
    numbered
        .map(|(number, mut policy)| {
            policy["metadata"]["name"] = json!(format!("p{number}"));
            serde_json::from_value(policy).unwrap()
        })
        .collect()
}

fn pods() -> impl Strategy<Value = Vec<Pod>> {
    let ports = prop::sample::subsequence(
        vec![
            ("web", "TCP", 80),
            ("web", "UDP", 8_080),
            ("dns", "UDP", 53),
            ("web", "TCP", 8_080),
        ],
        0..3,
    );
    let flags = (any::<bool>(), prop::bool::weighted(0.15));
    let pod = (
        prop::sample::select(vec!["x", "y", "z"]),
        labels(),
        ports,
        flags,
    );
    prop::collection::vec(pod, 1..7).prop_map(|pods| {
        let numbered = pods.into_iter().enumerate();
        numbered
            .map(
                |(index, (namespace, labels, ports, (local, unknown)))| Pod {
                    namespace: namespace.into(),
                    name: format!("pod{index}"),
                    labels,
                    address: if index % 3 == 2 {
                        IpAddr::from([0xfd00, 0x244, 0, 0, 0, 0, 0, 8 + index as u16])
                    } else {
                        IpAddr::from([10, 244, 0, 10 + index as u8])
                    },
                    ports,
                    local: local || index == 0,
                    unknown: unknown && index != 0,
                },
            )
            .collect()
    })
}

fn worlds() -> impl Strategy<Value = World> {
    let namespaces = prop::collection::vec(labels(), 3);
    let policies = prop::collection::vec(policy(), 0..5);
    let parts = (namespaces, pods(), policies, cluster_policies());
    parts.prop_map(|(namespaces, pods, policies, cluster_policies)| World {
        cluster_policies,
        namespaces: ["x", "y", "z"]
            .map(String::from)
            .into_iter()
            .zip(namespaces)
            .collect(),
        pods,
        policies: named(policies),
    })
}

fn probes(world: &World) -> Vec<Probe> {
    let pods = world.pods.iter().map(|pod| pod.address);
    let outside = OUTSIDE.iter().map(|address| address.parse().unwrap());
    let mut probes = Vec::new();
    for peer in pods.chain(outside) {
        for protocol in ["TCP", "UDP", "SCTP"] {
            for port in PORTS {
                probes.push(Probe {
                    peer,
                    protocol,
                    port,
                });
            }
        }
        probes.push(Probe {
            peer,
            protocol: "ICMP",
            port: 0,
        });
    }
    probes
}

/// Every pod of the node, in both directions, towards everybody.
fn questions(world: &World) -> Vec<(&Pod, Direction, Probe)> {
    let probes = probes(world);
    let local = world.pods.iter().filter(|pod| pod.local && !pod.unknown);
    let mut questions = Vec::new();
    for pod in local {
        for direction in [Direction::Ingress, Direction::Egress] {
            // The datapath does not ask about a pod and itself.
            let others = probes.iter().filter(|probe| probe.peer != pod.address);
            questions.extend(others.map(|probe| (pod, direction, *probe)));
        }
    }
    questions
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_tables_say_what_the_documentation_says(world in worlds()) {
        let mut kernel = Kernel::default();
        let plan = Tables::default().plan(&world.cluster());
        plan.writes.iter().for_each(|write| kernel.apply(write));
        for (pod, direction, probe) in questions(&world) {
            prop_assert_eq!(
                kernel.allows(pod.address, direction, probe),
                world.allows(pod, direction, probe),
                "{} {:?} {:?}", pod.name, direction, probe
            );
        }
    }

    /// Whatever single write a packet comes after, it meets the old answer or the new one.
    #[test]
    fn in_the_middle_of_a_change_nothing_third_is_said(
        world in worlds(),
        policies in prop::collection::vec(policy(), 0..5),
    ) {
        let next = World { policies: named(policies), ..world.clone() };
        let mut kernel = Kernel::default();
        let mut tables = Tables::default();
        for write in tables.plan(&world.cluster()).writes {
            kernel.apply(&write);
        }
        let questions: Vec<_> = questions(&world)
            .into_iter()
            .step_by(3)
            .map(|(pod, direction, probe)| {
                let old = world.allows(pod, direction, probe);
                (pod, direction, probe, old, next.allows(pod, direction, probe))
            })
            .collect();
        for write in tables.plan(&next.cluster()).writes {
            kernel.apply(&write);
            for (pod, direction, probe, old, new) in &questions {
                let said = kernel.allows(pod.address, *direction, *probe);
                prop_assert!(
                    said == *old || said == *new,
                    "{} {direction:?} {probe:?}: {said} after {write:?}", pod.name
                );
            }
        }
        for (pod, direction, probe, _, new) in questions {
            prop_assert_eq!(kernel.allows(pod.address, direction, probe), new);
        }
        // A new agent finds nothing to do.
        let snapshot = windlass_datapath::PolicySnapshot {
            pods: kernel.tables.pods.into_iter().collect(),
            peers: kernel.tables.peers.into_iter().collect(),
            networks: kernel.tables.networks.into_iter().collect(),
            verdicts: kernel.tables.verdicts.into_iter().collect(),
            ports: kernel.tables.ports.into_iter().collect(),
            state: windlass_datapath::types::PolicyState {
                revision: 7,
                enforced: tables.enforced(),
            },
        };
        prop_assert_eq!(Tables::recover(&snapshot).plan(&next.cluster()).writes, []);
    }
}
