//! What policies say, in one form for all their kinds: who is subject to it, and rules in order.
//!
//! A NetworkPolicy is a policy of the tier between the two of ClusterNetworkPolicies, whose
//! rules only accept, and which isolates whom it selects.

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use windlass_datapath::types::protocol;
use windlass_domain_names::DomainPattern;

use super::labels::{Labels, Selector};

/// On a policy: count and log what it would drop, and let it pass.
const AUDIT_ANNOTATION: &str = "windlass.dev/audit";
/// On a policy: tell by Events what it drops.
const EVENTS_ANNOTATION: &str = "windlass.dev/drop-events";

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// None: a ClusterNetworkPolicy.
    pub namespace: Option<String>,
    pub name: String,
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// In the order in which they decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    Admin,
    Namespace,
    Baseline,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySpec {
    pub tier: Tier,
    /// Lower ones decide first, within a tier.
    pub priority: i32,
    pub subject: PodMatch,
    pub audit: bool,
    /// What it drops is told by Events.
    pub events: bool,
    /// None: the policy does not concern this direction.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    Ingress,
    Egress,
}

impl PolicySpec {
    /// The names that its rules speak of.
    pub(super) fn domains(&self) -> impl Iterator<Item = &DomainPattern> {
        let peers = self.egress.iter().flatten().flat_map(|rule| &rule.peers);
        peers.flatten().filter_map(|peer| match peer {
            Peer::Domain(pattern) => Some(pattern),
            _ => None,
        })
    }

    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    pub action: Action,
    /// None: everybody.
    pub peers: Option<Vec<Peer>>,
    /// None: everything, protocols without ports too.
    pub ports: Option<Vec<PortMatch>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    Accept,
    Deny,
    /// Leaves the decision to the next tier.
    Pass,
}

/// A set of pods (those on the host's network are in none).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodMatch {
    pub namespaces: NamespaceMatch,
    pub pods: Selector,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamespaceMatch {
    Named(String),
    Labelled(Selector),
}

impl PodMatch {
    pub fn matches(&self, namespace: &str, namespace_labels: &Labels, pod: &Labels) -> bool {
        let in_namespace = match &self.namespaces {
            NamespaceMatch::Named(name) => name == namespace,
            NamespaceMatch::Labelled(selector) => selector.matches(namespace_labels),
        };
        in_namespace && self.pods.matches(pod)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    Pods(PodMatch),
    /// Addresses, whoever has them.
    Block {
        network: IpNet,
        except: Vec<IpNet>,
    },
    /// The addresses of nodes with these labels.
    Nodes(Selector),
    /// What these names were last said to be.
    Domain(DomainPattern),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortMatch {
    Range {
        protocol: u8,
        first: u16,
        last: u16,
    },
    /// The port of that name of the pod that is dialled. None: of any protocol.
    Named {
        protocol: Option<u8>,
        name: String,
    },
}

impl PortMatch {
    pub fn all_of(protocol: u8) -> Self {
        Self::Range {
            protocol,
            first: 0,
            last: u16::MAX,
        }
    }
}

impl PolicySpec {
    /// None: without a spec it selects nobody.
    pub fn parse(policy: &NetworkPolicy) -> Option<Self> {
        let spec = policy.spec.as_ref()?;
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        // The field's own rule where it is not given: ingress always, egress with egress rules.
        let concerns = |kind: &str, by_default: bool| match &spec.policy_types {
            Some(kinds) if !kinds.is_empty() => kinds.iter().any(|it| it == kind),
            _ => by_default,
        };
        let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        Some(Self {
            tier: Tier::Namespace,
            priority: 0,
            subject: PodMatch {
                namespaces: NamespaceMatch::Named(namespace.to_owned()),
                pods: spec
                    .pod_selector
                    .as_ref()
                    .map_or_else(Selector::everything, Selector::parse),
            },
            audit: is_audited(policy.metadata.annotations.as_ref()),
            events: asks_for_events(policy.metadata.annotations.as_ref()),
            ingress: concerns("Ingress", true).then(|| ingress(spec, namespace)),
            egress: concerns("Egress", has_egress).then(|| egress(spec, namespace)),
        })
    }
}

pub(super) fn is_audited(annotations: Option<&Labels>) -> bool {
    is_on(annotations, AUDIT_ANNOTATION)
}

pub(super) fn asks_for_events(annotations: Option<&Labels>) -> bool {
    is_on(annotations, EVENTS_ANNOTATION)
}

fn is_on(annotations: Option<&Labels>, annotation: &str) -> bool {
    annotations
        .and_then(|annotations| annotations.get(annotation))
        .is_some_and(|value| value == "true")
}

fn ingress(spec: &NetworkPolicySpec, namespace: &str) -> Vec<Rule> {
    let rules = spec.ingress.iter().flatten();
    rules
        .map(|rule| accept(rule.from.as_deref(), rule.ports.as_deref(), namespace))
        .collect()
}

fn egress(spec: &NetworkPolicySpec, namespace: &str) -> Vec<Rule> {
    let rules = spec.egress.iter().flatten();
    rules
        .map(|rule| accept(rule.to.as_deref(), rule.ports.as_deref(), namespace))
        .collect()
}

/// An empty list and none mean the same here: no restriction.
fn accept(
    peers: Option<&[NetworkPolicyPeer]>,
    ports: Option<&[NetworkPolicyPort]>,
    namespace: &str,
) -> Rule {
    let peers = peers.filter(|peers| !peers.is_empty());
    let ports = ports.filter(|ports| !ports.is_empty());
    Rule {
        action: Action::Accept,
        peers: peers.map(|peers| {
            let peers = peers.iter();
            peers
                .filter_map(|peer| parse_peer(peer, namespace))
                .collect()
        }),
        ports: ports.map(|ports| ports.iter().filter_map(parse_port).collect()),
    }
}

/// None: a peer that nobody can be, which validation lets no one write.
fn parse_peer(peer: &NetworkPolicyPeer, namespace: &str) -> Option<Peer> {
    if let Some(block) = &peer.ip_block {
        let except = block.except.iter().flatten();
        return Some(Peer::Block {
            network: parse_network(&block.cidr)?,
            except: except.filter_map(|net| parse_network(net)).collect(),
        });
    }
    let namespaces = match &peer.namespace_selector {
        Some(selector) => NamespaceMatch::Labelled(Selector::parse(selector)),
        None => {
            peer.pod_selector.as_ref()?;
            NamespaceMatch::Named(namespace.to_owned())
        }
    };
    let pods = peer
        .pod_selector
        .as_ref()
        .map_or_else(Selector::everything, Selector::parse);
    Some(Peer::Pods(PodMatch { namespaces, pods }))
}

/// Host bits are allowed by old objects and mean nothing.
pub(super) fn parse_network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().map(|network| network.trunc())
}

fn parse_port(port: &NetworkPolicyPort) -> Option<PortMatch> {
    let protocol = parse_protocol(port.protocol.as_deref().unwrap_or("TCP"))?;
    match &port.port {
        None => Some(PortMatch::all_of(protocol)),
        Some(IntOrString::Int(first)) => {
            let first = u16::try_from(*first).ok()?;
            let last = port
                .end_port
                .map_or(Some(first), |end| u16::try_from(end).ok())?;
            Some(PortMatch::Range {
                protocol,
                first,
                last,
            })
        }
        Some(IntOrString::String(name)) => Some(PortMatch::Named {
            protocol: Some(protocol),
            name: name.clone(),
        }),
    }
}

pub(super) fn parse_protocol(name: &str) -> Option<u8> {
    match name {
        "TCP" => Some(protocol::TCP),
        "UDP" => Some(protocol::UDP),
        "SCTP" => Some(protocol::SCTP),
        _ => None,
    }
}
