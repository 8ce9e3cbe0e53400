//! NetworkPolicy as the Kubernetes documentation tells it, over the API's own JSON and nothing of
//! the product's: what real packets between nodes and what the datapath's programs say is held against it.

pub mod random;
mod tiers;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

pub use tiers::{Kind, labels_of_node};

pub type Labels = BTreeMap<String, String>;

/// A pod by the short names of its namespace and itself: `x/a`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
}

impl PodName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// Of addresses: a connection is one of IPv4 or of IPv6 at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The one of these that is of this family.
    pub fn of(self, addresses: &[IpAddr]) -> Option<IpAddr> {
        let mut addresses = addresses.iter();
        addresses
            .find(|address| address.is_ipv4() == (self == Self::V4))
            .copied()
    }
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub labels: Labels,
    /// One of each family that the cluster has.
    pub addresses: Vec<IpAddr>,
    /// The index of its node.
    pub node: usize,
    pub ports: Vec<NamedPort>,
}

#[derive(Clone, Debug)]
pub struct NamedPort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// Where a connection comes from or goes to.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    Pod(&'a PodName),
    /// By its index: the node itself, and pods on its network.
    Node(usize),
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub namespaces: BTreeMap<String, Labels>,
    pub pods: BTreeMap<PodName, Pod>,
    /// The addresses of each.
    pub nodes: Vec<Vec<IpAddr>>,
    pub node_labels: Vec<Labels>,
    /// By the short name of the namespace, and the name.
    pub policies: BTreeMap<(String, String), Value>,
    /// Specs of those of the whole cluster, by their names.
    pub cluster_policies: BTreeMap<(Kind, String), Value>,
}

/// What is sent, whoever sends it.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub family: Family,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Copy)]
enum Direction {
    Ingress,
    Egress,
}

impl Model {
    pub fn allows(&self, from: End<'_>, to: End<'_>, traffic: Traffic) -> bool {
        self.leaves(from, to, traffic) && self.enters(from, to, traffic)
    }

    /// What policies of the client say.
    pub fn leaves(&self, from: End<'_>, to: End<'_>, traffic: Traffic) -> bool {
        match from {
            End::Pod(pod) if !is_itself(from, to) => {
                self.verdict(pod, to, Direction::Egress, traffic)
            }
            _ => true,
        }
    }

    /// What policies of the server say.
    pub fn enters(&self, from: End<'_>, to: End<'_>, traffic: Traffic) -> bool {
        match (from, to) {
            // A node reaches the pods that it runs: it probes them.
            (End::Node(node), End::Pod(pod)) if self.pods[pod].node == node => true,
            (_, End::Pod(pod)) if !is_itself(from, to) => {
                self.verdict(pod, from, Direction::Ingress, traffic)
            }
            _ => true,
        }
    }

    /// By a port of the pod's node that leaves the client's address alone. A client elsewhere dials the node, as far as
    /// its own node can tell.
    pub fn allows_by_its_node(
        &self,
        from: End<'_>,
        to: &PodName,
        traffic: Traffic,
        node_port: u16,
    ) -> bool {
        let node = self.pods[to].node;
        let own = match from {
            End::Pod(pod) => self.pods[pod].node,
            End::Node(node) => node,
        };
        let dialled = Traffic {
            port: node_port,
            ..traffic
        };
        match from {
            End::Pod(pod) if own != node => {
                self.verdict(pod, End::Node(node), Direction::Egress, dialled)
                    && self.verdict(to, from, Direction::Ingress, traffic)
            }
            _ => self.allows(from, End::Pod(to), traffic),
        }
    }

    fn verdict(
        &self,
        pod: &PodName,
        peer: End<'_>,
        direction: Direction,
        traffic: Traffic,
    ) -> bool {
        // Who is dialled gives the ports their names.
        let dialled = match direction {
            Direction::Ingress => Some(&self.pods[pod]),
            Direction::Egress => match peer {
                End::Pod(pod) => Some(&self.pods[pod]),
                End::Node(_) => None,
            },
        };
        let words = match direction {
            Direction::Ingress => ("ingress", "from"),
            Direction::Egress => ("egress", "to"),
        };
        let tier = |tier: &str| self.of_tier(tier, pod, peer, words, dialled, traffic);
        tier("Admin")
            .or_else(|| self.of_namespace(pod, peer, direction, words, dialled, traffic))
            .or_else(|| tier("Baseline"))
            .unwrap_or(true)
    }

    /// None: the pod is not isolated in this direction.
    fn of_namespace(
        &self,
        pod: &PodName,
        peer: End<'_>,
        direction: Direction,
        (rules, peers): (&str, &str),
        dialled: Option<&Pod>,
        traffic: Traffic,
    ) -> Option<bool> {
        let labels = &self.pods[pod].labels;
        let selecting = self.policies.iter().filter(|((namespace, _), policy)| {
            let spec = &policy["spec"];
            *namespace == pod.namespace
                && selects(&spec["podSelector"], labels)
                && concerns(spec, direction)
        });
        let mut isolated = None;
        for ((namespace, _), policy) in selecting {
            isolated = Some(false);
            let mut rules = policy["spec"][rules].as_array().into_iter().flatten();
            if rules.any(|rule| {
                holds(&rule[peers], |one| {
                    self.is_peer(one, namespace, peer, traffic.family)
                }) && holds(&rule["ports"], |one| is_port(one, dialled, traffic))
            }) {
                return Some(true);
            }
        }
        isolated
    }

    pub fn addresses(&self, end: End<'_>) -> &[IpAddr] {
        match end {
            End::Pod(pod) => &self.pods[pod].addresses,
            End::Node(node) => &self.nodes[node],
        }
    }

    fn is_peer(&self, peer: &Value, namespace: &str, end: End<'_>, family: Family) -> bool {
        if let Some(block) = peer.get("ipBlock").filter(|block| !block.is_null()) {
            let Some(address) = family.of(self.addresses(end)) else {
                return false;
            };
            let mut except = block["except"].as_array().into_iter().flatten();
            return contains(&block["cidr"], address) && !except.any(|net| contains(net, address));
        }
        let End::Pod(name) = end else {
            return false;
        };
        let in_namespace = match peer.get("namespaceSelector").filter(|it| !it.is_null()) {
            Some(selector) => selects(selector, &self.namespaces[&name.namespace]),
            None => name.namespace == namespace,
        };
        in_namespace && selects(&peer["podSelector"], &self.pods[name].labels)
    }
}

/// A pod cannot be kept from itself.
fn is_itself(from: End<'_>, to: End<'_>) -> bool {
    matches!((from, to), (End::Pod(one), End::Pod(other)) if one == other)
}

/// An empty list of peers or ports, and none, restrict nothing.
fn holds(list: &Value, one: impl Fn(&Value) -> bool) -> bool {
    match list.as_array() {
        Some(list) if !list.is_empty() => list.iter().any(one),
        _ => true,
    }
}

fn concerns(spec: &Value, direction: Direction) -> bool {
    let kind = match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    };
    match spec["policyTypes"].as_array() {
        Some(kinds) if !kinds.is_empty() => kinds.iter().any(|it| it == kind),
        _ => match direction {
            Direction::Ingress => true,
            Direction::Egress => spec["egress"].as_array().is_some_and(|it| !it.is_empty()),
        },
    }
}

fn selects(selector: &Value, labels: &Labels) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let expressions = selector["matchExpressions"].as_array();
    equal.into_iter().all(|(key, value)| {
        labels.get(key).map(String::as_str) == Some(value.as_str().unwrap_or_default())
    }) && expressions.into_iter().flatten().all(|expression| {
        let held = labels.get(expression["key"].as_str().unwrap_or_default());
        let listed = held.is_some_and(|held| {
            let mut values = expression["values"].as_array().into_iter().flatten();
            values.any(|value| value == held.as_str())
        });
        match expression["operator"].as_str() {
            Some("In") => listed,
            Some("NotIn") => !listed,
            Some("Exists") => held.is_some(),
            Some("DoesNotExist") => held.is_none(),
            other => panic!("{other:?} is no operator"),
        }
    })
}

fn is_port(rule: &Value, dialled: Option<&Pod>, traffic: Traffic) -> bool {
    let Traffic { protocol, port, .. } = traffic;
    if rule["protocol"].as_str().unwrap_or("TCP") != protocol.name() {
        return false;
    }
    match &rule["port"] {
        Value::Null => true,
        Value::String(name) => dialled.is_some_and(|pod| {
            let mut ports = pod.ports.iter();
            ports.any(|it| it.name == *name && it.protocol == protocol && it.port == port)
        }),
        first => {
            let first = first.as_u64().unwrap_or_default();
            let last = rule["endPort"].as_u64().unwrap_or(first);
            (first..=last).contains(&u64::from(port))
        }
    }
}

fn contains(network: &Value, address: IpAddr) -> bool {
    let text = network.as_str().unwrap_or_default();
    let (base, length) = text.split_once('/').unwrap_or((text, "128"));
    let length: u32 = length.parse().unwrap_or(128);
    match (base.parse(), address) {
        (Ok(IpAddr::V4(base)), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - length.min(32)).unwrap_or(0);
            u32::from(base) & mask == u32::from(address) & mask
        }
        (Ok(IpAddr::V6(base)), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - length.min(128)).unwrap_or(0);
            u128::from(base) & mask == u128::from(address) & mask
        }
        _ => false,
    }
}
