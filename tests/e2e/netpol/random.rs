//! Policies that nobody would write, and labels that change under them.

use fastrand::Rng;
use serde_json::{Value, json};

use super::cases::{Case, is, is_in, only};
use super::model::PodName;
use super::world::{Action, World, labels};

const CASES: usize = 25;
const STEPS: usize = 4;
const POLICIES: usize = 6;

pub(super) fn cases(world: &World) -> Vec<Case> {
    let seed = std::env::var("WINDLASS_SEED")
        .ok()
        .and_then(|it| it.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("WINDLASS_SEED={seed} makes the same policies again");
    let mut random = Rng::with_seed(seed);
    (0..CASES)
        .map(|number| {
            let steps = (0..STEPS).map(|_| step(&mut random, world)).collect();
            Case::new(format!("random {number} of seed {seed}"), steps)
        })
        .collect()
}

fn step(random: &mut Rng, world: &World) -> Vec<Action> {
    (0..random.usize(1..4))
        .map(|_| match random.u8(0..8) {
            0 => {
                let namespace = one(random, &["x", "y", "z"]);
                let mut given = labels(&[("ns", namespace)]);
                if random.bool() {
                    given.insert("team".into(), one(random, &["red", "blue"]).into());
                }
                Action::LabelNamespace(namespace, given)
            }
            1 | 2 => {
                let pod =
                    PodName::new(one(random, &["x", "y", "z"]), one(random, &["a", "b", "c"]));
                let mut given = labels(&[("pod", one(random, &["a", "b", "c"]))]);
                if random.bool() {
                    given.insert("team".into(), one(random, &["red", "blue"]).into());
                }
                Action::LabelPod(pod, given)
            }
            _ => Action::Apply(policy(random, world)),
        })
        .collect()
}

fn one(random: &mut Rng, of: &[&'static str]) -> &'static str {
    of[random.usize(..of.len())]
}

fn policy(random: &mut Rng, world: &World) -> Value {
    let namespace = one(random, &["x", "y", "z"]);
    let types = [
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
        Value::Null,
    ];
    json!({
        "metadata": {"name": format!("p{}", random.usize(..POLICIES)), "namespace": namespace},
        "spec": {
            "podSelector": selector(random, "pod"),
            "policyTypes": types[random.usize(..types.len())],
            "ingress": rules(random, world, "from"),
            "egress": rules(random, world, "to"),
        },
    })
}

fn selector(random: &mut Rng, key: &str) -> Value {
    let values: &[&str] = if key == "ns" {
        &["x", "y", "z"]
    } else {
        &["a", "b", "c"]
    };
    match random.u8(0..6) {
        0 => json!({}),
        1 => is("team", one(random, &["red", "blue"])),
        2 => json!({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}),
        3 => is_in(key, &values[..2]),
        4 => {
            json!({"matchExpressions": [{"key": key, "operator": "NotIn", "values": &values[1..]}]})
        }
        _ => json!({"matchLabels": {key: values[random.usize(..3)]}}),
    }
}

fn rules(random: &mut Rng, world: &World, peers: &str) -> Value {
    let rules = (0..random.usize(0..3)).map(|_| {
        let of_rule: Vec<Value> = (0..random.usize(0..3))
            .map(|_| peer(random, world))
            .collect();
        let ports: Vec<Value> = (0..random.usize(0..3)).map(|_| port(random)).collect();
        json!({peers: of_rule, "ports": ports})
    });
    rules.collect()
}

fn peer(random: &mut Rng, world: &World) -> Value {
    match random.u8(0..5) {
        0 => json!({"podSelector": selector(random, "pod")}),
        1 => json!({"namespaceSelector": selector(random, "ns")}),
        2 => {
            json!({"podSelector": selector(random, "pod"), "namespaceSelector": selector(random, "ns")})
        }
        3 => {
            let node = &world.model.nodes[random.usize(..world.model.nodes.len())];
            json!({"ipBlock": {"cidr": only(node[random.usize(..node.len())])}})
        }
        _ => {
            let pods: Vec<_> = world.model.pods.values().collect();
            let addresses = &pods[random.usize(..pods.len())].addresses;
            let address = addresses[random.usize(..addresses.len())];
            let all = if address.is_ipv4() {
                "10.0.0.0/8"
            } else {
                "::/0"
            };
            json!({"ipBlock": {"cidr": all, "except": [only(address)]}})
        }
    }
}

fn port(random: &mut Rng) -> Value {
    let protocol = one(random, &["TCP", "UDP", "SCTP"]);
    match random.u8(0..5) {
        0 => json!({"protocol": protocol}),
        1 => {
            json!({"protocol": protocol, "port": one(random, &["special", "serve-80-udp", "serve-81-tcp"])})
        }
        2 => json!({"protocol": protocol, "port": random.u16(1..81), "endPort": 80}),
        _ => json!({"protocol": protocol, "port": random.u16(80..82)}),
    }
}
