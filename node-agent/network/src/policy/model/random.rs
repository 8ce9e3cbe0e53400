//! Random clusters.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{super::labels::Labels, Pod, World};

pub(super) const OUTSIDE: [&str; 4] = ["192.0.2.9", "198.51.100.7", "10.244.9.9", "2001:db8::9"];
pub(super) const PORTS: [u16; 6] = [53, 80, 81, 443, 8_080, 9_999];

pub(super) fn labels() -> impl Strategy<Value = Labels> {
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

pub(super) fn policy() -> impl Strategy<Value = Value> {
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
    let patterns = vec![
        "a.example.org",
        "*.example.org",
        "*.b.example.org",
        "example.net",
    ];
    let names = prop::sample::subsequence(patterns, 1..3);
    let names = names.prop_map(|names| json!({"domainNames": names}));
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
    let named = match outside {
        true => prop::option::weighted(0.3, names).boxed(),
        false => Just(None).boxed(),
    };
    let rule = (action, prop::collection::vec(peer, 1..3), named, protocols);
    let rule = rule.prop_map(move |(action, mut of_rule, named, protocols)| {
        // Only what accepts may speak of names.
        of_rule.extend(named.filter(|_| action == "Accept"));
        let mut rule = json!({"action": action, peers: of_rule});
        if let Some(protocols) = protocols {
            rule["protocols"] = protocols.into();
        }
        rule
    });
    prop::collection::vec(rule, 0..3).prop_map(Value::from)
}

/// With a priority each: between equal ones any order would do.
pub(super) fn cluster_policies() -> impl Strategy<Value = Vec<Value>> {
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

pub(super) fn named(policies: Vec<Value>) -> Vec<NetworkPolicy> {
    let numbered = (0..).zip(policies);
    numbered
        .map(|(number, mut policy)| {
            policy["metadata"]["name"] = json!(format!("p{number}"));
            serde_json::from_value(policy).unwrap()
        })
        .collect()
}

pub(super) fn pods() -> impl Strategy<Value = Vec<Pod>> {
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

/// An address, and the names that it was last said to be one of.
pub(super) fn named_address() -> impl Strategy<Value = (IpAddr, BTreeSet<String>)> {
    let pod = vec!["10.244.0.11", "10.244.0.12", "fd00:244::a"];
    let addresses: Vec<&str> = OUTSIDE.into_iter().chain(pod).collect();
    let names = vec![
        "a.example.org",
        "b.example.org",
        "c.b.example.org",
        "example.net",
        "d.net",
    ];
    let names = prop::sample::subsequence(names, 0..3);
    (prop::sample::select(addresses), names).prop_map(|(address, names)| {
        let names = names.into_iter().map(str::to_owned).collect();
        (address.parse().unwrap(), names)
    })
}

pub(super) fn worlds() -> impl Strategy<Value = World> {
    let namespaces = prop::collection::vec(labels(), 3);
    let policies = prop::collection::vec(policy(), 0..5);
    let names = prop::collection::vec(named_address(), 0..4);
    let parts = (namespaces, pods(), policies, cluster_policies(), names);
    parts.prop_map(
        |(namespaces, pods, policies, cluster_policies, names)| World {
            cluster_policies,
            names: names.into_iter().collect(),
            namespaces: ["x", "y", "z"]
                .map(String::from)
                .into_iter()
                .zip(namespaces)
                .collect(),
            pods,
            policies: named(policies),
        },
    )
}
