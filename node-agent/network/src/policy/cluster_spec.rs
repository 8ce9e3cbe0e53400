//! ClusterNetworkPolicies (policy.networking.k8s.io, v1alpha2 and v1beta1) as [`PolicySpec`]s.
//!
//! They are custom resources, so what is read here may be anything that a version of their
//! definition allows. What is not understood fails closed, as the API asks: an `Accept` matches
//! nobody, a `Deny` or `Pass` denies everybody.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Deserialize;
use windlass_datapath::types::protocol;

use super::{
    labels::Selector,
    spec::{
        Action, NamespaceMatch, Peer, PodMatch, PolicySpec, PortMatch, Rule, Tier, asks_for_events,
        is_audited, parse_network,
    },
};

/// Kinds of the policies' group, in one of its versions.
pub(super) fn resource(version: &str, kind: &str) -> ApiResource {
    let plural = format!("{}ies", kind.to_lowercase().trim_end_matches('y'));
    let kind = GroupVersionKind::gvk("policy.networking.k8s.io", version, kind);
    ApiResource::from_gvk_with_plural(&kind, &plural)
}

#[derive(Deserialize)]
struct Spec {
    tier: String,
    #[serde(default)]
    priority: i32,
    subject: Subject,
    #[serde(default)]
    ingress: Vec<IngressRule>,
    #[serde(default)]
    egress: Vec<EgressRule>,
}

#[derive(Deserialize)]
struct Subject {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPod>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamespacedPod {
    #[serde(default)]
    namespace_selector: LabelSelector,
    #[serde(default)]
    pod_selector: LabelSelector,
}

#[derive(Deserialize)]
struct IngressRule {
    action: String,
    #[serde(default)]
    from: Vec<PeerSpec>,
    protocols: Option<Vec<ProtocolSpec>>,
}

#[derive(Deserialize)]
struct EgressRule {
    action: String,
    #[serde(default)]
    to: Vec<PeerSpec>,
    protocols: Option<Vec<ProtocolSpec>>,
}

#[derive(Deserialize)]
struct PeerSpec {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPod>,
    nodes: Option<LabelSelector>,
    networks: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProtocolSpec {
    tcp: Option<PortSpec>,
    udp: Option<PortSpec>,
    sctp: Option<PortSpec>,
    destination_named_port: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortSpec {
    destination_port: Option<Port>,
}

#[derive(Deserialize)]
struct Port {
    number: Option<u16>,
    range: Option<PortRange>,
}

#[derive(Deserialize)]
struct PortRange {
    start: u16,
    end: u16,
}

impl PolicySpec {
    /// None: it cannot be read, or it selects nobody.
    pub fn parse_cluster(object: &DynamicObject) -> Option<Self> {
        let spec = object.data.get("spec")?.clone();
        let spec: Spec = serde_json::from_value(spec)
            .inspect_err(|error| {
                let name = object.metadata.name.as_deref();
                tracing::warn!(%error, name, "a ClusterNetworkPolicy cannot be read");
            })
            .ok()?;
        let subject = match (spec.subject.namespaces, spec.subject.pods) {
            (Some(namespaces), None) => in_namespaces(&namespaces),
            (None, Some(pods)) => pods.parse(),
            _ => return None,
        };
        let ingress = spec.ingress.iter();
        let ingress = ingress.map(|it| rule(&it.action, &it.from, it.protocols.as_deref()));
        let egress = spec.egress.iter();
        let egress = egress.map(|it| rule(&it.action, &it.to, it.protocols.as_deref()));
        Some(Self {
            tier: match spec.tier.as_str() {
                "Admin" => Tier::Admin,
                "Baseline" => Tier::Baseline,
                _ => return None,
            },
            priority: spec.priority,
            subject,
            audit: is_audited(object.metadata.annotations.as_ref()),
            events: asks_for_events(object.metadata.annotations.as_ref()),
            ingress: Some(ingress.collect()).filter(|rules: &Vec<_>| !rules.is_empty()),
            egress: Some(egress.collect()).filter(|rules: &Vec<_>| !rules.is_empty()),
        })
    }
}

fn in_namespaces(selector: &LabelSelector) -> PodMatch {
    PodMatch {
        namespaces: NamespaceMatch::Labelled(Selector::parse(selector)),
        pods: Selector::everything(),
    }
}

impl NamespacedPod {
    fn parse(&self) -> PodMatch {
        PodMatch {
            namespaces: NamespaceMatch::Labelled(Selector::parse(&self.namespace_selector)),
            pods: Selector::parse(&self.pod_selector),
        }
    }
}

fn rule(action: &str, peers: &[PeerSpec], protocols: Option<&[ProtocolSpec]>) -> Rule {
    let understood = peers
        .iter()
        .map(PeerSpec::parse)
        .collect::<Option<Vec<_>>>()
        .zip(ports(protocols));
    let action = match action {
        "Accept" => Action::Accept,
        "Pass" => Action::Pass,
        _ => Action::Deny,
    };
    match understood {
        Some((peers, ports)) => Rule {
            action,
            peers: Some(peers.into_iter().flatten().collect()),
            ports,
        },
        None => Rule {
            action: if action == Action::Accept {
                Action::Accept
            } else {
                Action::Deny
            },
            peers: (action == Action::Accept).then(Vec::new),
            ports: None,
        },
    }
}

impl PeerSpec {
    /// None: not understood.
    fn parse(&self) -> Option<Vec<Peer>> {
        match (&self.namespaces, &self.pods, &self.nodes, &self.networks) {
            (Some(namespaces), None, None, None) => {
                Some(vec![Peer::Pods(in_namespaces(namespaces))])
            }
            (None, Some(pods), None, None) => Some(vec![Peer::Pods(pods.parse())]),
            (None, None, Some(nodes), None) => Some(vec![Peer::Nodes(Selector::parse(nodes))]),
            (None, None, None, Some(networks)) => networks
                .iter()
                .map(|network| parse_network(network).map(block))
                .collect(),
            _ => None,
        }
    }
}

fn block(network: IpNet) -> Peer {
    Peer::Block {
        network,
        except: Vec::new(),
    }
}

/// Outer None: not understood.
fn ports(protocols: Option<&[ProtocolSpec]>) -> Option<Option<Vec<PortMatch>>> {
    match protocols {
        None => Some(None),
        Some(protocols) => protocols
            .iter()
            .map(ProtocolSpec::parse)
            .collect::<Option<Vec<_>>>()
            .map(Some),
    }
}

impl ProtocolSpec {
    fn parse(&self) -> Option<PortMatch> {
        let of = |protocol: u8, spec: &PortSpec| match &spec.destination_port {
            None => Some(PortMatch::all_of(protocol)),
            Some(port) => {
                let (first, last) = match (port.number, &port.range) {
                    (Some(number), None) => (number, number),
                    (None, Some(range)) => (range.start, range.end),
                    _ => return None,
                };
                Some(PortMatch::Range {
                    protocol,
                    first,
                    last,
                })
            }
        };
        match (
            &self.tcp,
            &self.udp,
            &self.sctp,
            &self.destination_named_port,
        ) {
            (Some(tcp), None, None, None) => of(protocol::TCP, tcp),
            (None, Some(udp), None, None) => of(protocol::UDP, udp),
            (None, None, Some(sctp), None) => of(protocol::SCTP, sctp),
            (None, None, None, Some(name)) => Some(PortMatch::Named {
                protocol: None,
                name: name.clone(),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: serde_json::Value) -> Option<PolicySpec> {
        let object = DynamicObject::new("it", &resource("v1alpha2", "ClusterNetworkPolicy"))
            .data(serde_json::json!({"spec": spec}));
        PolicySpec::parse_cluster(&object)
    }

    #[test]
    fn a_policy_is_read_whole() {
        let spec = parse(serde_json::json!({
            "tier": "Admin", "priority": 7,
            "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}}},
            "egress": [{
                "action": "Deny",
                "to": [{"networks": ["10.0.0.0/8", "fd00::/8"]}, {"nodes": {}}],
                "protocols": [{"tcp": {"destinationPort": {"range": {"start": 1, "end": 9}}}}, {"udp": {}}],
            }],
        }))
        .unwrap();
        assert_eq!(
            (spec.tier, spec.priority, spec.ingress),
            (Tier::Admin, 7, None)
        );
        let rule = &spec.egress.unwrap()[0];
        assert_eq!(rule.action, Action::Deny);
        assert_eq!(rule.peers.as_ref().unwrap().len(), 3);
        assert_eq!(
            rule.ports.as_ref().unwrap(),
            &[
                PortMatch::Range {
                    protocol: protocol::TCP,
                    first: 1,
                    last: 9
                },
                PortMatch::all_of(protocol::UDP)
            ]
        );
    }

    #[test]
    fn pods_without_namespaces_are_those_of_all() {
        let spec = parse(serde_json::json!({
            "tier": "Baseline", "priority": 0, "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": [{"pods": {"podSelector": {}}}]}],
        }))
        .unwrap();
        let peers = spec.ingress.unwrap().remove(0).peers.unwrap();
        let everybody = PodMatch {
            namespaces: NamespaceMatch::Labelled(Selector::everything()),
            pods: Selector::everything(),
        };
        assert_eq!(peers, [Peer::Pods(everybody)]);
    }

    #[test]
    fn what_is_not_understood_fails_closed() {
        let rule = |action: &str| {
            let spec = parse(serde_json::json!({
                "tier": "Admin", "subject": {"namespaces": {}},
                "egress": [{"action": action, "to": [{"domainNames": ["example.com"]}, {"networks": ["0.0.0.0/0"]}]}],
            }));
            spec.unwrap().egress.unwrap().remove(0)
        };
        assert_eq!(rule("Accept").peers, Some(Vec::new()));
        for action in ["Deny", "Pass", "Whatever"] {
            let rule = rule(action);
            assert_eq!(
                (rule.action, rule.peers, rule.ports),
                (Action::Deny, None, None)
            );
        }
    }
}
