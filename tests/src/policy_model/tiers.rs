//! Policies of the whole cluster, in tiers before and after those of namespaces: ClusterNetworkPolicy, and the two
//! kinds that it took the place of. As their definitions tell them, over the API's own JSON.

use serde_json::{Value, json};

use super::{End, Labels, Model, Pod, PodName, Traffic, contains, selects};

const GROUP: &str = "policy.networking.k8s.io";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Cluster,
    Admin,
    Baseline,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "ClusterNetworkPolicy",
            Self::Admin => "AdminNetworkPolicy",
            Self::Baseline => "BaselineAdminNetworkPolicy",
        }
    }

    const fn version(self) -> &'static str {
        match self {
            Self::Cluster => "v1alpha2",
            Self::Admin | Self::Baseline => "v1alpha1",
        }
    }

    pub fn api_version(self) -> String {
        format!("{GROUP}/{}", self.version())
    }

    fn plural(self) -> String {
        format!("{}ies", self.name().to_lowercase().trim_end_matches('y'))
    }

    /// Of one object, or of all.
    pub fn path(self, name: &str) -> String {
        let slash = if name.is_empty() { "" } else { "/" };
        format!(
            "/apis/{}/{}{slash}{name}",
            self.api_version(),
            self.plural()
        )
    }

    /// There is one baseline, and its name is given.
    pub const fn object(self, name: &str) -> &str {
        match self {
            Self::Baseline => "default",
            _ => name,
        }
    }

    /// The parts of the definition that an API server needs; the project's own has a schema.
    pub fn definition(self) -> Value {
        let (kind, plural) = (self.name(), self.plural());
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{plural}.{GROUP}"),
                "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
            },
            "spec": {
                "group": GROUP, "scope": "Cluster",
                "names": {
                    "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase(),
                },
                "versions": [{"name": self.version(), "served": true, "storage": true, "schema": {"openAPIV3Schema":
                    {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
            },
        })
    }

    fn is_of(self, tier: &str, spec: &Value) -> bool {
        match self {
            Self::Cluster => spec["tier"] == tier,
            Self::Admin => tier == "Admin",
            Self::Baseline => tier == "Baseline",
        }
    }
}

impl Model {
    /// What a tier decides; nothing when none of its rules does, or the first one passes it on.
    pub(super) fn of_tier(
        &self,
        tier: &str,
        pod: &PodName,
        peer: End<'_>,
        (rules, peers): (&str, &str),
        dialled: Option<&Pod>,
        traffic: Traffic,
    ) -> Option<bool> {
        let policies = self.cluster_policies.iter();
        let mut of_tier: Vec<&Value> = policies
            .filter(|((kind, _), spec)| kind.is_of(tier, spec))
            .map(|(_, spec)| spec)
            .collect();
        of_tier.sort_by_key(|spec| spec["priority"].as_i64().unwrap_or_default());
        let selecting = of_tier
            .into_iter()
            .filter(|spec| self.is_named(&spec["subject"], End::Pod(pod), traffic));
        let mut rules = selecting.flat_map(|spec| spec[rules].as_array().into_iter().flatten());
        let first = rules.find(|rule| {
            let named = list(&rule[peers]);
            let ports = ["protocols", "ports"].map(|key| rule[key].as_array());
            let [protocols, ports] = ports;
            let is_port = protocols
                .or(ports)
                .is_none_or(|ports| ports.iter().any(|port| is_port(port, dialled, traffic)));
            is_port && named.iter().any(|one| self.is_named(one, peer, traffic))
        })?;
        match first["action"].as_str() {
            Some("Accept" | "Allow") => Some(true),
            Some("Deny") => Some(false),
            _ => None,
        }
    }

    /// Whether a subject or a peer means this end.
    fn is_named(&self, peer: &Value, end: End<'_>, traffic: Traffic) -> bool {
        if let Some(networks) = peer["networks"].as_array() {
            let address = traffic.family.of(self.addresses(end));
            return address.is_some_and(|it| networks.iter().any(|network| contains(network, it)));
        }
        match end {
            End::Node(node) => {
                let nodes = peer.get("nodes");
                nodes.is_some_and(|nodes| selects(nodes, &self.node_labels[node]))
            }
            End::Pod(pod) => {
                let (namespace, labels) =
                    (&self.namespaces[&pod.namespace], &self.pods[pod].labels);
                if let Some(namespaces) = peer.get("namespaces") {
                    return selects(unwrapped(namespaces), namespace);
                }
                let pods = peer.get("pods");
                pods.is_some_and(|pods| {
                    let namespaces = pods.get("namespaceSelector").or(pods.get("namespaces"));
                    namespaces.is_none_or(|it| selects(unwrapped(it), namespace))
                        && selects(&pods["podSelector"], labels)
                })
            }
        }
    }
}

/// In the older words a selector stands one deeper.
fn unwrapped(selector: &Value) -> &Value {
    selector.get("namespaceSelector").unwrap_or(selector)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn is_port(port: &Value, dialled: Option<&Pod>, traffic: Traffic) -> bool {
    let name = port.get("destinationNamedPort").or(port.get("namedPort"));
    if let Some(name) = name {
        return dialled.is_some_and(|pod| {
            let mut ports = pod.ports.iter();
            ports.any(|it| {
                *name == it.name.as_str()
                    && (it.protocol, it.port) == (traffic.protocol, traffic.port)
            })
        });
    }
    let protocol = traffic.protocol.name();
    if let Some(said) = port.get("portNumber").or(port.get("portRange")) {
        return said["protocol"].as_str().unwrap_or("TCP") == protocol
            && in_range(said, traffic.port);
    }
    port.get(protocol.to_lowercase())
        .is_some_and(|said| match said.get("destinationPort") {
            Some(port) => in_range(port.get("range").unwrap_or(port), traffic.port),
            None => true,
        })
}

/// `{port}`, `{number}`, or `{start, end}`.
fn in_range(said: &Value, port: u16) -> bool {
    let number = |name: &str| said[name].as_u64();
    let one = number("port").or(number("number"));
    let (first, last) = (number("start").or(one), number("end").or(one));
    first
        .zip(last)
        .is_some_and(|(first, last)| (first..=last).contains(&u64::from(port)))
}

/// What a node is selected by, as far as cases do.
pub fn labels_of_node(name: &str) -> Labels {
    Labels::from([("kubernetes.io/hostname".to_owned(), name.to_owned())])
}
