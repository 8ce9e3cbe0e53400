//! Policies that nobody would write, from a seed.

use std::net::IpAddr;

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::Model;

/// Namespaces and pods that selectors ask for, by the labels `ns` and `pod`; either may have a `team` too.
pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];
pub const PODS: [&str; 3] = ["a", "b", "c"];
pub const TEAMS: [&str; 2] = ["red", "blue"];

/// The generator that `WINDLASS_SEED` makes again, and what it is called.
pub fn seeded() -> (Rng, u64) {
    let seed = std::env::var("WINDLASS_SEED")
        .ok()
        .and_then(|it| it.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("WINDLASS_SEED={seed} makes the same policies again");
    (Rng::with_seed(seed), seed)
}

pub fn one(random: &mut Rng, of: &[&'static str]) -> &'static str {
    of[random.usize(..of.len())]
}

/// A NetworkPolicy of some namespace, without a name.
pub fn policy(random: &mut Rng, model: &Model) -> Value {
    let types = [
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
        Value::Null,
    ];
    json!({
        "metadata": {"namespace": one(random, &NAMESPACES)},
        "spec": {
            "podSelector": selector(random, "pod"),
            "policyTypes": types[random.usize(..types.len())],
            "ingress": rules(random, model, "from"),
            "egress": rules(random, model, "to"),
        },
    })
}

fn selector(random: &mut Rng, key: &str) -> Value {
    let values = if key == "ns" { &NAMESPACES } else { &PODS };
    match random.u8(0..6) {
        0 => json!({}),
        1 => json!({"matchLabels": {"team": one(random, &TEAMS)}}),
        2 => json!({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}),
        3 => json!({"matchExpressions": [{"key": key, "operator": "In", "values": &values[..2]}]}),
        4 => {
            json!({"matchExpressions": [{"key": key, "operator": "NotIn", "values": &values[1..]}]})
        }
        _ => json!({"matchLabels": {key: values[random.usize(..3)]}}),
    }
}

fn rules(random: &mut Rng, model: &Model, peers: &str) -> Value {
    let rules = (0..random.usize(0..3)).map(|_| {
        let of_rule: Vec<Value> = (0..random.usize(0..3))
            .map(|_| peer(random, model))
            .collect();
        let ports: Vec<Value> = (0..random.usize(0..3)).map(|_| port(random)).collect();
        json!({peers: of_rule, "ports": ports})
    });
    rules.collect()
}

fn peer(random: &mut Rng, model: &Model) -> Value {
    match random.u8(0..5) {
        0 => json!({"podSelector": selector(random, "pod")}),
        1 => json!({"namespaceSelector": selector(random, "ns")}),
        2 => {
            json!({"podSelector": selector(random, "pod"), "namespaceSelector": selector(random, "ns")})
        }
        3 => json!({"ipBlock": {"cidr": only(of_a_node(random, model))}}),
        _ => {
            let address = of_a_pod(random, model);
            json!({"ipBlock": {"cidr": around(address), "except": [only(address)]}})
        }
    }
}

fn port(random: &mut Rng) -> Value {
    let protocol = one(random, &["TCP", "UDP", "SCTP"]);
    match random.u8(0..5) {
        0 => json!({"protocol": protocol}),
        1 => json!({"protocol": protocol, "port": name_of_port(random)}),
        2 => json!({"protocol": protocol, "port": random.u16(1..81), "endPort": 80}),
        _ => json!({"protocol": protocol, "port": random.u16(80..82)}),
    }
}

fn name_of_port(random: &mut Rng) -> &'static str {
    one(random, &["special", "serve-80-udp", "serve-81-tcp"])
}

/// The spec of a ClusterNetworkPolicy. `priority`: another one for each, since between equal ones any order would do.
pub fn cluster_policy(random: &mut Rng, model: &Model, priority: usize) -> Value {
    let mut spec = json!({
        "tier": one(random, &["Admin", "Baseline"]), "priority": priority,
        "subject": pods(random),
    });
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules = (0..random.usize(0..3)).map(|_| {
            let of_rule = (0..random.usize(1..3)).map(|_| match random.u8(0..3) {
                0 if peers == "to" => outside(random, model),
                _ => pods(random),
            });
            let of_rule: Vec<Value> = of_rule.collect();
            let action = one(random, &["Accept", "Deny", "Pass"]);
            let mut rule = json!({"action": action, peers: of_rule});
            // Ports by their names are for peers that have some.
            let named = rule[peers].as_array().is_some_and(|it| {
                it.iter()
                    .all(|peer| peer.get("pods").or(peer.get("namespaces")).is_some())
            });
            if random.bool() {
                let protocols = (0..random.usize(1..3)).map(|_| protocol(random, named));
                rule["protocols"] = protocols.collect();
            }
            rule
        });
        spec[direction] = rules.collect();
    }
    spec
}

fn pods(random: &mut Rng) -> Value {
    match random.bool() {
        true => json!({"namespaces": selector(random, "ns")}),
        false => json!({"pods": {
            "namespaceSelector": selector(random, "ns"), "podSelector": selector(random, "pod")}}),
    }
}

fn outside(random: &mut Rng, model: &Model) -> Value {
    match random.u8(0..3) {
        0 => {
            let labels = &model.node_labels[random.usize(..model.node_labels.len())];
            // One without labels stands for somebody who is no node.
            match labels.is_empty() {
                true => json!({"networks": ["0.0.0.0/0", "::/0"]}),
                false => json!({"nodes": {"matchLabels": labels}}),
            }
        }
        1 => json!({"networks": [only(of_a_node(random, model)), only(of_a_pod(random, model))]}),
        _ => json!({"networks": [around(of_a_pod(random, model))]}),
    }
}

fn protocol(random: &mut Rng, named: bool) -> Value {
    if named && random.u8(0..4) == 0 {
        return json!({"destinationNamedPort": name_of_port(random)});
    }
    let port = match random.u8(0..3) {
        0 => json!({}),
        1 => json!({"destinationPort": {"number": random.u16(80..82)}}),
        _ => json!({"destinationPort": {"range": {"start": random.u16(1..81), "end": 81}}}),
    };
    let of = Map::from_iter([(one(random, &["tcp", "udp", "sctp"]).to_owned(), port)]);
    Value::from(of)
}

fn of_a_node(random: &mut Rng, model: &Model) -> IpAddr {
    let node = &model.nodes[random.usize(..model.nodes.len())];
    node[random.usize(..node.len())]
}

fn of_a_pod(random: &mut Rng, model: &Model) -> IpAddr {
    let pods: Vec<_> = model.pods.values().collect();
    let addresses = &pods[random.usize(..pods.len())].addresses;
    addresses[random.usize(..addresses.len())]
}

/// The block of one address.
pub fn only(address: IpAddr) -> String {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    format!("{address}/{bits}")
}

/// A block that holds it, and much else of its family.
fn around(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "10.0.0.0/8",
        IpAddr::V6(_) => "::/0",
    }
}
