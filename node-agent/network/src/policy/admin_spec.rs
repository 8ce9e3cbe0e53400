//! AdminNetworkPolicy and BaselineAdminNetworkPolicy (policy.networking.k8s.io/v1alpha1), which
//! ClusterNetworkPolicies took the place of: the same said in other words. They are rewritten to the
//! words of today, and what has no counterpart there is not understood.

use kube::core::DynamicObject;
use serde_json::{Map, Value, json};

use super::spec::PolicySpec;

impl PolicySpec {
    /// `tier`: `Admin` or `Baseline`. None: it cannot be read, or it selects nobody.
    pub(super) fn parse_admin(object: &DynamicObject, tier: &str) -> Option<Self> {
        let spec = object.data.get("spec")?;
        let rewritten = DynamicObject {
            data: json!({"spec": {
                "tier": tier,
                "priority": spec.get("priority").and_then(Value::as_i64).unwrap_or(0),
                "subject": spec.get("subject")?,
                "ingress": rules(&spec["ingress"], "from"),
                "egress": rules(&spec["egress"], "to"),
            }}),
            ..object.clone()
        };
        Self::parse_cluster(&rewritten)
    }
}

fn rules(rules: &Value, peers: &str) -> Value {
    let rules = rules.as_array().into_iter().flatten().map(|rule| {
        let action = match rule["action"].as_str() {
            Some("Allow") => "Accept",
            Some(other) => other,
            None => "",
        };
        let of_rule = rule[peers].as_array().into_iter().flatten();
        let mut rewritten = json!({"action": action, peers: of_rule.map(peer).collect::<Value>()});
        if let Some(ports) = rule["ports"].as_array() {
            rewritten["protocols"] = ports.iter().map(port).collect();
        }
        rewritten
    });
    rules.collect()
}

/// `namespaces: {namespaceSelector: …}` became `namespaces: …`, alone and with pods.
fn peer(peer: &Value) -> Value {
    let mut rewritten = peer.clone();
    let Some(fields) = rewritten.as_object_mut() else {
        return rewritten;
    };
    if let Some(namespaces) = fields.get_mut("namespaces") {
        unwrap_selector(namespaces);
    }
    if let Some(pods) = fields.get_mut("pods").and_then(Value::as_object_mut)
        && let Some(mut namespaces) = pods.remove("namespaces")
    {
        unwrap_selector(&mut namespaces);
        pods.insert("namespaceSelector".into(), namespaces);
    }
    rewritten
}

/// Namespaces by their relation to the subject's (`sameLabels`) stay, and are not understood.
fn unwrap_selector(namespaces: &mut Value) {
    if let Some(selector) = namespaces.get_mut("namespaceSelector") {
        *namespaces = selector.take();
    } else if ["sameLabels", "notSameLabels"]
        .iter()
        .any(|it| namespaces.get(it).is_some())
    {
        *namespaces = json!({"matchExpressions": [{"key": "", "operator": "unknown"}]});
    }
}

pub(super) fn port(port: &Value) -> Value {
    let of_protocol = |said: &Value, destination: Value| {
        let protocol = said["protocol"].as_str().unwrap_or("TCP").to_lowercase();
        let mut rewritten = Map::new();
        rewritten.insert(protocol, json!({"destinationPort": destination}));
        Value::from(rewritten)
    };
    if let Some(number) = port.get("portNumber") {
        of_protocol(number, json!({"number": number["port"]}))
    } else if let Some(range) = port.get("portRange") {
        let bounds = json!({"start": range["start"], "end": range["end"]});
        of_protocol(range, json!({"range": bounds}))
    } else if let Some(name) = port.get("namedPort") {
        json!({"destinationNamedPort": name})
    } else {
        json!({})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        cluster_spec,
        labels::Labels,
        spec::{Action, Peer, PortMatch, Tier},
    };
    use windlass_datapath::types::protocol;

    fn parse(spec: Value, tier: &str) -> Option<PolicySpec> {
        let resource = cluster_spec::resource("v1alpha1", "AdminNetworkPolicy");
        let object = DynamicObject::new("it", &resource).data(json!({"spec": spec}));
        PolicySpec::parse_admin(&object, tier)
    }

    #[test]
    fn the_old_words_mean_what_the_new_ones_do() {
        let web = json!({"matchLabels": {"app": "web"}});
        let team = json!({"matchLabels": {"team": "red"}});
        for (namespaces, pods) in [
            (
                json!({"namespaceSelector": team}),
                json!({"namespaces": {"namespaceSelector": team}, "podSelector": web}),
            ),
            (
                team.clone(),
                json!({"namespaceSelector": team, "podSelector": web}),
            ),
        ] {
            let spec = parse(
                json!({
                    "priority": 7, "subject": {"namespaces": {}},
                    "ingress": [{
                        "action": "Allow", "from": [{"namespaces": namespaces}, {"pods": pods}],
                        "ports": [
                            {"portNumber": {"protocol": "UDP", "port": 53}},
                            {"portRange": {"protocol": "TCP", "start": 80, "end": 90}},
                            {"namedPort": "dns"},
                        ],
                    }],
                }),
                "Admin",
            )
            .unwrap();
            assert_eq!(
                (spec.tier, spec.priority, &spec.egress),
                (Tier::Admin, 7, &None)
            );
            let rule = &spec.ingress.unwrap()[0];
            assert_eq!(rule.action, Action::Accept);
            let labels =
                |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
            let selects = |peer: &Peer, team: &str, app: &str| match peer {
                Peer::Pods(pods) => pods.matches("any", &labels("team", team), &labels("app", app)),
                _ => false,
            };
            let peers = rule.peers.as_ref().unwrap();
            assert!(selects(&peers[0], "red", "db") && !selects(&peers[0], "blue", "db"));
            assert!(selects(&peers[1], "red", "web") && !selects(&peers[1], "red", "db"));
            let range = |protocol, first, last| PortMatch::Range {
                protocol,
                first,
                last,
            };
            let named = PortMatch::Named {
                protocol: None,
                name: "dns".into(),
            };
            assert_eq!(
                rule.ports.as_deref().unwrap(),
                [
                    range(protocol::UDP, 53, 53),
                    range(protocol::TCP, 80, 90),
                    named
                ]
            );
        }
    }

    #[test]
    fn the_baseline_is_a_tier_of_its_own() {
        let spec = parse(
            json!({"subject": {"namespaces": {}}, "egress": [{"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]}]}),
            "Baseline",
        )
        .unwrap();
        assert_eq!((spec.tier, spec.priority), (Tier::Baseline, 0));
        assert_eq!(spec.egress.unwrap()[0].action, Action::Deny);
    }
}
