//! Policies of the whole cluster, alone, among themselves and with those of namespaces.

use serde_json::{Value, json};

use super::cases::{Case, is, is_in, only, policy};
use super::model::{Kind, PodName};
use super::world::{Action, World};

pub(super) fn tiers(world: &World) -> Vec<Case> {
    let mut cases = rules(world);
    cases.extend(orders());
    cases.extend(predecessors());
    cases
}

fn put(kind: Kind, name: &'static str, spec: Value) -> Action {
    Action::ApplyToCluster(kind, name, spec)
}

/// One rule of each direction with these peers for the pods of `x`.
fn spec(tier: &str, priority: u32, action: &str, peers: &Value, protocols: Option<Value>) -> Value {
    let rule = |word: &str| {
        let mut rule = json!({"action": action, word: peers});
        if let Some(protocols) = &protocols {
            rule["protocols"] = protocols.clone();
        }
        rule
    };
    json!({
        "tier": tier, "priority": priority, "subject": {"namespaces": is("ns", "x")},
        "ingress": [rule("from")], "egress": [rule("to")],
    })
}

/// What a rule says, each against everybody else being denied and against everybody else being let.
fn rules(world: &World) -> Vec<Case> {
    let [from_y, c_of_all] = [
        json!([{"namespaces": is("ns", "y")}]),
        json!([{"pods": {"podSelector": is("pod", "c")}}]),
    ];
    let a_of_y_and_z = json!([{"pods": {
        "namespaceSelector": is_in("ns", &["y", "z"]), "podSelector": is("pod", "a")}}]);
    let both = json!([from_y[0], c_of_all[0]]);
    let ports = json!([{"tcp": {"destinationPort": {"number": 80}}}, {"udp": {}}]);
    let ranges = json!([
        {"tcp": {"destinationPort": {"range": {"start": 81, "end": 90}}}},
        {"sctp": {"destinationPort": {"number": 80}}},
    ]);
    let named =
        json!([{"destinationNamedPort": "special"}, {"destinationNamedPort": "serve-80-udp"}]);
    let mut cases = Vec::new();
    for (name, peers, protocols) in [
        ("a namespace", &from_y, None),
        ("pods of all namespaces", &c_of_all, None),
        ("pods of some namespaces", &a_of_y_and_z, None),
        ("one or the other", &both, None),
        ("ports", &from_y, Some(ports)),
        ("ranges of ports", &both, Some(ranges)),
        ("named ports", &both, Some(named)),
    ] {
        for action in ["Deny", "Accept"] {
            let one = spec("Admin", 10, action, peers, protocols.clone());
            let mut actions = vec![put(Kind::Cluster, "one", one)];
            if action == "Accept" {
                let everybody = json!([{"namespaces": {}}]);
                let rest = spec("Admin", 20, "Deny", &everybody, None);
                actions.push(put(Kind::Cluster, "rest", rest));
            }
            cases.push(Case::new(format!("tiers: {action}, {name}"), vec![actions]));
        }
    }
    let address = |pod: &str| {
        let pod = &world.model.pods[&PodName::new("z", pod)];
        pod.addresses.iter().map(|it| only(*it)).collect::<Vec<_>>()
    };
    let networks = json!({
        "tier": "Admin", "priority": 10,
        "subject": {"pods": {"namespaceSelector": is("ns", "x"), "podSelector": is_in("pod", &["a", "b"])}},
        "egress": [
            {"action": "Accept", "to": [{"networks": address("b")}]},
            {"action": "Pass", "to": [{"namespaces": is("ns", "y")}]},
            {"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]},
        ],
    });
    let last = world.model.node_labels.last().cloned().unwrap_or_default();
    let nodes = json!({
        "tier": "Admin", "priority": 10, "subject": {"namespaces": is("ns", "x")},
        "egress": [{"action": "Deny", "to": [{"nodes": {"matchLabels": last}}]}],
    });
    let steps = |spec: Value| {
        let mut steps = vec![vec![put(Kind::Cluster, "one", spec)]];
        steps.resize(5, Vec::new());
        steps
    };
    cases.push(Case::new(
        "tiers: networks, in the order of rules",
        steps(networks),
    ));
    cases.push(Case::new("tiers: nodes", steps(nodes)));
    cases
}

/// Which of several decides.
fn orders() -> Vec<Case> {
    let everybody = json!([{"namespaces": {}}]);
    let from_y = json!([{"namespaces": is("ns", "y")}]);
    let from_z = json!([{"namespaces": is("ns", "z")}]);
    let on = |port: u16| json!([{"tcp": {"destinationPort": {"number": port}}}]);
    let all = json!({});
    let cluster = |name, tier, priority, action, peers: &Value| {
        put(
            Kind::Cluster,
            name,
            spec(tier, priority, action, peers, None),
        )
    };
    let own = |rules: Value| Action::Apply(policy("own", "x", &all, "ingress", rules));
    vec![
        Case::new(
            "tiers: the lower number first",
            vec![
                vec![
                    cluster("one", "Admin", 10, "Deny", &from_y),
                    cluster("two", "Admin", 20, "Accept", &everybody),
                ],
                vec![cluster("two", "Admin", 5, "Accept", &everybody)],
                vec![Action::DeleteFromCluster(Kind::Cluster, "two")],
            ],
        ),
        Case::new(
            "tiers: equal priorities do not get into each other's way",
            vec![vec![
                cluster("one", "Admin", 10, "Deny", &from_y),
                put(
                    Kind::Cluster,
                    "two",
                    json!({
                        "tier": "Admin", "priority": 10, "subject": {"namespaces": is("ns", "z")},
                        "ingress": [{"action": "Deny", "from": from_y, "protocols": on(81)}],
                        "egress": [{"action": "Deny", "to": from_y, "protocols": on(81)}],
                    }),
                ),
                put(
                    Kind::Cluster,
                    "three",
                    json!({
                        "tier": "Admin", "priority": 10, "subject": {"namespaces": is("ns", "x")},
                        "ingress": [{"action": "Deny", "from": from_z, "protocols": on(80)}],
                    }),
                ),
            ]],
        ),
        Case::new(
            "tiers: a policy of one direction says nothing of the other",
            ["ingress", "egress"]
                .iter()
                .map(|direction| {
                    let peers = if *direction == "ingress" {
                        "from"
                    } else {
                        "to"
                    };
                    let rule = json!({"action": "Deny", peers: from_y});
                    let subject = json!({"namespaces": is("ns", "x")});
                    let mut spec = json!({"tier": "Baseline", "priority": 20, "subject": subject});
                    spec[*direction] = json!([rule]);
                    vec![put(Kind::Cluster, "one", spec)]
                })
                .collect(),
        ),
        Case::new(
            "tiers: before, in and after a namespace",
            vec![
                vec![cluster("one", "Baseline", 10, "Deny", &from_y)],
                // A namespace's own policy takes the place of the baseline.
                vec![own(json!([{}]))],
                // It does not take that of the administrator's.
                vec![cluster("one", "Admin", 10, "Deny", &from_y)],
                vec![own(json!([]))],
                vec![cluster("one", "Admin", 10, "Accept", &from_y)],
                vec![cluster("one", "Admin", 10, "Pass", &everybody)],
                vec![Action::Delete("x", "own".into())],
                vec![cluster("two", "Baseline", 10, "Deny", &from_y)],
                vec![Action::DeleteFromCluster(Kind::Cluster, "one")],
            ],
        )
        .first(),
        Case::new(
            "tiers: labels change under a policy of the cluster",
            vec![
                vec![cluster(
                    "one",
                    "Admin",
                    10,
                    "Deny",
                    &json!([{"pods": {"podSelector": is("team", "red")}}]),
                )],
                vec![Action::LabelPod(
                    PodName::new("y", "b"),
                    super::world::labels(&[("pod", "b"), ("team", "red")]),
                )],
                vec![Action::LabelNamespace(
                    "z",
                    super::world::labels(&[("ns", "x")]),
                )],
                vec![Action::LabelPod(
                    PodName::new("y", "b"),
                    super::world::labels(&[("pod", "b")]),
                )],
            ],
        ),
    ]
}

/// AdminNetworkPolicy and BaselineAdminNetworkPolicy.
fn predecessors() -> Vec<Case> {
    let in_ns = |ns: &str| json!([{"namespaces": is("ns", ns)}]);
    let admin = |action: &str, ports: Option<Value>| {
        let rule = |word: &str, peers: Value| {
            let mut rule = json!({"name": "it", "action": action, word: peers});
            if let Some(ports) = &ports {
                rule["ports"] = ports.clone();
            }
            rule
        };
        let pods = json!([{"pods": {"namespaceSelector": is("ns", "y"), "podSelector": is_in("pod", &["a", "b"])}}]);
        let spec = json!({
            "priority": 30, "subject": {"namespaces": is("ns", "x")},
            "ingress": [rule("from", in_ns("y"))], "egress": [rule("to", pods)],
        });
        put(Kind::Admin, "admin", spec)
    };
    let baseline = json!({
        "subject": {"pods": {"namespaceSelector": is("ns", "x"), "podSelector": {}}},
        "ingress": [{"action": "Deny", "from": in_ns("y")}],
        "egress": [
            {"action": "Allow", "to": in_ns("y"), "ports": [{"portNumber": {"protocol": "TCP", "port": 81}}]},
            {"action": "Deny", "to": in_ns("y")},
        ],
    });
    let ports = json!([
        {"portNumber": {"protocol": "UDP", "port": 80}}, {"portRange": {"protocol": "TCP", "start": 81, "end": 82}},
        {"namedPort": "special"},
    ]);
    let from_y = json!([{"from": [{"namespaceSelector": is("ns", "y")}]}]);
    vec![
        Case::new(
            "tiers: an AdminNetworkPolicy, a namespace's and the baseline",
            vec![
                vec![put(Kind::Baseline, "default", baseline)],
                vec![Action::Apply(policy(
                    "own",
                    "x",
                    &json!({}),
                    "ingress",
                    from_y,
                ))],
                vec![admin("Deny", None)],
                vec![admin("Pass", None)],
                vec![Action::Delete("x", "own".into())],
                vec![admin("Allow", None)],
                vec![Action::DeleteFromCluster(Kind::Baseline, "default")],
            ],
        )
        .first(),
        Case::new(
            "tiers: ports of an AdminNetworkPolicy",
            vec![vec![admin("Deny", Some(ports))]],
        ),
    ]
}
