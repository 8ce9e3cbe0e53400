//! ClusterNetworkPolicies (policy.networking.k8s.io, v1alpha2 and v1beta1) as [`PolicySpec`]s.
//!
//! They are custom resources, so what is read here may be anything that a version of their
//! definition allows. What is not understood fails closed, as the API asks: an `Accept` matches
//! nobody, a `Deny` or `Pass` denies everybody.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Deserialize;
use serde_json::{Value, json};
use windlass_datapath::types::protocol;
use windlass_domain_names::DomainPattern;

use super::{
    admin_spec,
    labels::Selector,
    spec::{
        Action, Direction, NamespaceMatch, Peer, PodMatch, PolicySpec, PortMatch, Rule, Tier,
        asks_for_events, is_audited, parse_network,
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
    #[serde(rename = "domainNames")]
    domain_names: Option<Vec<String>>,
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
        let mut spec = object.data.get("spec")?.clone();
        ports_of_today(&mut spec);
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
        let ingress = ingress.map(|it| {
            let protocols = it.protocols.as_deref();
            rule(Direction::Ingress, &it.action, &it.from, protocols)
        });
        let egress = spec.egress.iter();
        let egress = egress.map(|it| {
            let protocols = it.protocols.as_deref();
            rule(Direction::Egress, &it.action, &it.to, protocols)
        });
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

/// Between two releases of the definition rules had `ports` as the older kinds have them, and `match` before that.
fn ports_of_today(spec: &mut Value) {
    for direction in ["ingress", "egress"] {
        let rules = spec.get_mut(direction).and_then(Value::as_array_mut);
        for rule in rules.into_iter().flatten() {
            let list = |key: &str| rule.get(key).and_then(Value::as_array);
            let protocols = match (list("protocols"), list("ports"), list("match")) {
                (None, Some(ports), _) => ports.iter().map(admin_spec::port).collect(),
                // One that says nothing is not understood.
                (None, None, Some(matches)) if !matches.is_empty() => json!([{}]),
                _ => continue,
            };
            if let Some(fields) = rule.as_object_mut() {
                fields.insert("protocols".into(), protocols);
            }
        }
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

fn rule(
    direction: Direction,
    action: &str,
    peers: &[PeerSpec],
    protocols: Option<&[ProtocolSpec]>,
) -> Rule {
    // Who is behind a name is never known for sure, so names can let out and not keep from.
    let may_name = direction == Direction::Egress && action == "Accept";
    let understood = peers
        .iter()
        .map(|peer| peer.parse(may_name))
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
    fn parse(&self, may_name: bool) -> Option<Vec<Peer>> {
        if let Some(names) = &self.domain_names {
            let alone = self.namespaces.is_none()
                && self.pods.is_none()
                && self.nodes.is_none()
                && self.networks.is_none();
            if !(may_name && alone) {
                return None;
            }
            let names = names.iter();
            return names
                .map(|name| DomainPattern::parse(name).map(Peer::Domain))
                .collect();
        }
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
    fn names_let_out_and_do_not_keep_from() {
        let rule = |direction: &str, action: &str, names: &[&str]| {
            let peers = if direction == "egress" { "to" } else { "from" };
            let spec = parse(serde_json::json!({
                "tier": "Admin", "subject": {"namespaces": {}},
                direction: [{"action": action, peers: [{"domainNames": names}, {"networks": ["192.0.2.0/24"]}]}],
            }));
            let spec = spec.unwrap();
            spec.egress.or(spec.ingress).unwrap().remove(0)
        };
        let peers = rule("egress", "Accept", &["example.org", "*.Example.org."]).peers;
        let name = |text| Peer::Domain(DomainPattern::parse(text).unwrap());
        let network = block("192.0.2.0/24".parse().unwrap());
        assert_eq!(
            peers,
            Some(vec![name("example.org"), name("*.example.org"), network])
        );
        for nobody in [
            rule("ingress", "Accept", &["example.org"]),
            rule("egress", "Accept", &["example.org", "no name"]),
        ] {
            assert_eq!(nobody.peers, Some(Vec::new()));
        }
        for action in ["Deny", "Pass"] {
            let rule = rule("egress", action, &["example.org"]);
            assert_eq!((rule.action, rule.peers), (Action::Deny, None));
        }
    }

    #[test]
    fn words_for_ports_that_were_there_for_a_while_do_not_open_all_of_them() {
        let ports = |key: &str, ports: Value| {
            let spec = parse(json!({
                "tier": "Admin", "subject": {"namespaces": {}},
                "ingress": [{"action": "Accept", "from": [{"namespaces": {}}], key: ports}],
            }));
            spec.unwrap().ingress.unwrap().remove(0)
        };
        let rule = ports(
            "ports",
            json!([{"portNumber": {"protocol": "UDP", "port": 53}}]),
        );
        let dns = PortMatch::Range {
            protocol: protocol::UDP,
            first: 53,
            last: 53,
        };
        assert_eq!(rule.ports, Some(vec![dns]));
        let rule = ports("match", json!([{"tcp": [{"port": {"number": 80}}]}]));
        assert_eq!(rule.peers, Some(Vec::new()));
    }

    #[test]
    fn what_is_not_understood_fails_closed() {
        let rule = |action: &str| {
            let spec = parse(serde_json::json!({
                "tier": "Admin", "subject": {"namespaces": {}},
                "egress": [{"action": action, "to": [{"somethingNew": ["example.com"]}, {"networks": ["0.0.0.0/0"]}]}],
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
