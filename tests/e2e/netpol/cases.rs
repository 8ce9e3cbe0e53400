//! What is asked of policies: targets, rules, peers, ports, conflicts, and changes while they hold. The
//! features are those that the upstream suite and the policy-conformance tools go through.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};
pub(super) use windlass_tests::policy_model::random::only;

use super::model::PodName;
use super::world::{Action, World};
use super::{change_cases, service_cases, tier_cases};

pub(super) struct Case {
    pub(super) name: String,
    /// Among those that every change is tested with.
    pub(super) first: bool,
    pub(super) steps: Vec<Vec<Action>>,
}

impl Case {
    pub(super) fn new(name: impl Into<String>, steps: Vec<Vec<Action>>) -> Self {
        Self {
            name: name.into(),
            first: false,
            steps,
        }
    }

    fn single(name: impl Into<String>, policies: Vec<Value>) -> Self {
        Self::new(
            name,
            vec![policies.into_iter().map(Action::Apply).collect()],
        )
    }

    pub(super) fn first(mut self) -> Self {
        self.first = true;
        self
    }
}

pub(super) fn all(world: &World) -> Vec<Case> {
    let mut cases = targets();
    cases.extend(rules());
    cases.extend(peers(world));
    cases.extend(ports());
    cases.extend(conflicts());
    cases.extend(together());
    cases.extend(change_cases::changes(world));
    cases.extend(service_cases::services(world));
    cases.extend(tier_cases::tiers(world));
    cases
}

/// A policy of both directions: pods `a` of `x`, to and from pods `a` and `b` of `x` and `y`, on TCP 80.
pub(super) fn base() -> Value {
    let peers = json!([{
        "podSelector": is_in("pod", &["a", "b"]), "namespaceSelector": is_in("ns", &["x", "y"]),
    }]);
    let ports = json!([{"protocol": "TCP", "port": 80}]);
    json!({
        "metadata": {"name": "base", "namespace": "x"},
        "spec": {
            "podSelector": {"matchLabels": {"pod": "a"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": ports}],
            "egress": [{"to": peers, "ports": ports}],
        },
    })
}

pub(super) fn is_in(key: &str, values: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": key, "operator": "In", "values": values}]})
}

fn not_in(key: &str, values: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": key, "operator": "NotIn", "values": values}]})
}

pub(super) fn is(key: &str, value: &str) -> Value {
    json!({"matchLabels": {key: value}})
}

const DIRECTIONS: [&str; 2] = ["ingress", "egress"];

fn peers_of(direction: &str) -> &'static str {
    if direction == "ingress" { "from" } else { "to" }
}

/// A policy of one direction for all pods that a selector names.
pub(super) fn policy(
    name: &str,
    namespace: &str,
    pods: &Value,
    direction: &str,
    rules: Value,
) -> Value {
    let kind = if direction == "ingress" {
        "Ingress"
    } else {
        "Egress"
    };
    json!({
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": pods, "policyTypes": [kind], direction: rules},
    })
}

fn targets() -> Vec<Case> {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut policy = base();
        change(&mut policy);
        vec![policy]
    };
    let mut cases: Vec<Case> = ["x", "y", "z"]
        .map(|namespace| {
            let policy = with(&|policy| policy["metadata"]["namespace"] = namespace.into());
            Case::single(format!("target: namespace {namespace}"), policy)
        })
        .into();
    let selectors = [
        json!({}),
        is("pod", "a"),
        is_in("pod", &["a", "b"]),
        not_in("pod", &["a"]),
        json!({"matchExpressions": [{"key": "pod", "operator": "Exists"}]}),
        json!({"matchExpressions": [{"key": "absent", "operator": "DoesNotExist"}]}),
        is("pod", "nobody"),
    ];
    cases.extend(selectors.map(|selector| {
        let policy = with(&|policy| policy["spec"]["podSelector"] = selector.clone());
        Case::single(format!("target: {selector}"), policy)
    }));
    cases
}

fn rules() -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in DIRECTIONS {
        for (name, rules) in [
            ("deny all", json!([])),
            ("allow all", json!([{}])),
            (
                "nobody and everybody",
                json!([{"ports": [{"port": 9}]}, {}]),
            ),
        ] {
            let mut policy = base();
            policy["spec"][direction] = rules;
            cases.push(Case::single(
                format!("rules: {direction}, {name}"),
                vec![policy],
            ));
        }
    }
    // Types that follow from what is there.
    for (name, spec) in [
        ("nothing said", json!({"podSelector": {}})),
        (
            "egress rules only",
            json!({"podSelector": {}, "egress": [{}]}),
        ),
        (
            "an empty list of egress",
            json!({"podSelector": {}, "egress": []}),
        ),
    ] {
        let policy = json!({"metadata": {"name": "base", "namespace": "x"}, "spec": spec});
        cases.push(Case::single(format!("types: {name}"), vec![policy]));
    }
    cases
}

fn peers(world: &World) -> Vec<Case> {
    let block = |network: String, except: Option<String>| json!([{"ipBlock": {"cidr": network, "except": except.map(|it| vec![it])}}]);
    let pod = |name: &PodName| world.model.pods[name].addresses.clone();
    let (far, near) = (pod(&PodName::new("z", "c")), pod(&PodName::new("x", "b")));
    let (address, neighbour) = (far[0], near[0]);
    let around = |bits: u8| network(address, bits);
    let [first_node, last_node] = [world.model.nodes.first(), world.model.nodes.last()]
        .map(|node| node.cloned().unwrap_or_default());
    let (node, last) = (first_node[0], last_node[0]);
    let both = |pods: Value, namespaces: Value| json!([{"podSelector": pods, "namespaceSelector": namespaces}]);
    let mut lists = vec![
        ("an empty list", json!([])),
        ("all pods, own namespace", json!([{"podSelector": {}}])),
        (
            "all pods by label of namespace",
            both(json!({}), is("ns", "x")),
        ),
        ("all pods of all namespaces", both(json!({}), json!({}))),
        ("all namespaces", json!([{"namespaceSelector": {}}])),
        (
            "pods by label, own namespace",
            json!([{"podSelector": is("pod", "c")}]),
        ),
        (
            "pods by label of one namespace",
            both(is("pod", "c"), is("ns", "x")),
        ),
        (
            "pods by label of all namespaces",
            both(is("pod", "c"), json!({})),
        ),
        (
            "pods and namespaces by expressions",
            both(is_in("pod", &["b", "c"]), not_in("ns", &["x"])),
        ),
        (
            "namespace by its name",
            json!([{"namespaceSelector":
            is("kubernetes.io/metadata.name", &world.real("y"))}]),
        ),
        (
            "all but a namespace by its name",
            json!([{"namespaceSelector":
            not_in("kubernetes.io/metadata.name", &[&world.real("y")])}]),
        ),
        (
            "one or the other",
            json!([{"namespaceSelector": is("ns", "y")}, {"podSelector": is("pod", "b")}]),
        ),
        ("a block", block(around(24), None)),
        (
            "a block with exception",
            block(around(24), Some(around(28))),
        ),
        ("one address", block(only(address), None)),
        (
            "everybody but one address",
            block("0.0.0.0/0".into(), Some(only(neighbour))),
        ),
        (
            "a block and pods that are in its exception",
            json!([
            {"ipBlock": {"cidr": around(16), "except": [around(24)]}}, {"podSelector": {}}]),
        ),
        ("the first node", block(only(node), None)),
        ("the last node", block(only(last), None)),
        ("only IPv6", block("::/0".into(), None)),
        (
            "nobody",
            json!([{"namespaceSelector": is("never", "there")}]),
        ),
    ];
    if let Some([address, neighbour, node]) = [&far, &near, &last_node]
        .map(|addresses| addresses.get(1).copied())
        .into_iter()
        .collect::<Option<Vec<IpAddr>>>()
        .as_deref()
    {
        let around = |bits: u8| network(*address, bits);
        let half = block(around(64), Some(around(127)));
        let two = json!([block(only(*address), None)[0], block(only(far[0]), None)[0]]);
        lists.extend([
            ("a block of IPv6 with exception", half),
            ("one address of IPv6", block(only(*address), None)),
            ("one pod by both of its addresses", two),
            (
                "everybody of IPv6 but one address",
                block("::/0".into(), Some(only(*neighbour))),
            ),
            ("the last node by IPv6", block(only(*node), None)),
        ]);
    }
    let mut cases = Vec::new();
    for direction in DIRECTIONS {
        for (name, list) in &lists {
            let mut policy = base();
            policy["spec"][direction][0][peers_of(direction)] = list.clone();
            let case = Case::single(format!("peers: {direction}, {name}"), vec![policy]);
            let first = [
                "a block with exception",
                "a block of IPv6 with exception",
                "one or the other",
            ];
            let first = first.contains(name);
            cases.push(if first { case.first() } else { case });
        }
    }
    cases
}

/// The block of so many bits around an address.
fn network(address: IpAddr, bits: u8) -> String {
    IpNet::new(address, bits).map_or_else(|_| only(address), |net| net.trunc().to_string())
}

fn ports() -> Vec<Case> {
    let mut single = Vec::new();
    for protocol in [json!(null), json!("TCP"), json!("UDP"), json!("SCTP")] {
        for port in [json!(null), json!(81), json!("serve-81-tcp")] {
            single.push(json!({"protocol": protocol, "port": port}));
        }
    }
    let mut lists = vec![json!([])];
    lists.extend(single.iter().map(|port| json!([port])));
    for (index, one) in single.iter().enumerate() {
        lists.extend(single[index + 1..].iter().map(|other| json!([one, other])));
    }
    lists.extend([
        json!([{"protocol": "TCP", "port": "special"}]),
        json!([{"protocol": "UDP", "port": "serve-81-udp"}]),
        json!([{"protocol": "SCTP", "port": "serve-80-sctp"}]),
        json!([{"protocol": "TCP", "port": 80, "endPort": 81}]),
        json!([{"protocol": "TCP", "port": 81, "endPort": 65_535}]),
        json!([{"protocol": "UDP", "port": 1, "endPort": 80}]),
        json!([{"protocol": "SCTP", "port": 80, "endPort": 80}, {"port": "no-such-name"}]),
    ]);
    let mut cases = Vec::new();
    for direction in DIRECTIONS {
        for list in &lists {
            let mut policy = base();
            policy["spec"][direction][0]["ports"] = list.clone();
            let text = list.to_string();
            let case = Case::single(format!("ports: {direction}, {text}"), vec![policy]);
            let first = text.contains("special") || text.contains("endPort\":81");
            cases.push(if first { case.first() } else { case });
        }
    }
    cases
}

fn conflicts() -> Vec<Case> {
    let (deny, allow) = (json!([]), json!([{}]));
    let by = |direction: &str, peer: Value| json!([{peers_of(direction): [peer]}]);
    let (source, target) = (is("pod", "b"), is("pod", "c"));
    let mut cases = vec![
        Case::single(
            "conflict: out is denied, in is allowed",
            vec![
                policy("out", "x", &source, "egress", deny.clone()),
                policy("in", "y", &target, "ingress", allow.clone()),
            ],
        ),
        Case::single(
            "conflict: out is allowed, in is denied",
            vec![
                policy("out", "x", &source, "egress", allow.clone()),
                policy("in", "y", &target, "ingress", deny.clone()),
            ],
        ),
    ];
    for direction in DIRECTIONS {
        let all_pods = by(direction, json!({"namespaceSelector": {}}));
        let all_addresses = by(direction, json!({"ipBlock": {"cidr": "0.0.0.0/0"}}));
        let no_pod = by(
            direction,
            json!({"namespaceSelector": is("never", "there")}),
        );
        let no_address = by(direction, json!({"ipBlock": {"cidr": "0.0.0.0/31"}}));
        for (name, one, other) in [
            ("deny all, allow all", &deny, Some(&allow)),
            ("deny all, all pods", &deny, Some(&all_pods)),
            ("deny all, all addresses", &deny, Some(&all_addresses)),
            ("no address, all pods", &no_address, Some(&all_pods)),
            ("no pod, all addresses", &no_pod, Some(&all_addresses)),
            ("no address", &no_address, None),
            ("no pod", &no_pod, None),
        ] {
            let mut policies = vec![policy("one", "x", &source, direction, one.clone())];
            policies.extend(other.map(|it| policy("other", "x", &source, direction, it.clone())));
            cases.push(Case::single(
                format!("conflict: {direction}, {name}"),
                policies,
            ));
        }
    }
    cases
}

/// Several policies at once, and whole namespaces.
fn together() -> Vec<Case> {
    let everybody = json!({});
    let (a, b) = (is("pod", "a"), is("pod", "b"));
    let on_81 = |protocol: &str| json!([{"ports": [{"port": 81, "protocol": protocol}]}]);
    let deny_in = policy("deny-in", "x", &everybody, "ingress", json!([]));
    let deny_out = policy("deny-out", "x", &everybody, "egress", json!([]));
    let from_a_of_x = json!([{"from": [{"podSelector": a, "namespaceSelector": is("ns", "x")}]}]);
    let to_a_of_y = json!([{"to": [{"podSelector": a, "namespaceSelector": is("ns", "y")}]}]);
    vec![
        Case::single("a namespace that nobody enters", vec![deny_in.clone()]),
        Case::single("a namespace that nobody leaves", vec![deny_out.clone()]),
        Case::single(
            "a namespace that is closed",
            vec![deny_in.clone(), deny_out],
        )
        .first(),
        Case::single(
            "a closed namespace with one open door",
            vec![
                deny_in.clone(),
                policy(
                    "open",
                    "x",
                    &a,
                    "ingress",
                    json!([{"from": [
                {"podSelector": {}, "namespaceSelector": {}}]}]),
                ),
            ],
        ),
        Case::single(
            "everybody of the own namespace and nobody else",
            vec![policy(
                "own",
                "x",
                &everybody,
                "ingress",
                json!([{"from": [{"podSelector": {}}]}]),
            )],
        ),
        Case::single(
            "in from one pod, out to one port, by one policy",
            vec![json!({
                "metadata": {"name": "both", "namespace": "x"},
                "spec": {
                    "podSelector": a, "policyTypes": ["Ingress", "Egress"],
                    "ingress": [{"from": [{"podSelector": b}]}],
                    "egress": [{"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}],
                },
            })],
        ),
        Case::single(
            "who may go anywhere is not entered for that",
            vec![
                policy("out", "x", &a, "egress", json!([{}])),
                policy("in", "x", &a, "ingress", json!([])),
            ],
        ),
        Case::single(
            "SCTP is not TCP",
            vec![deny_in, policy("sctp", "x", &a, "ingress", on_81("SCTP"))],
        ),
        Case::single(
            "only SCTP",
            vec![policy("sctp", "x", &a, "ingress", on_81("SCTP"))],
        ),
        Case::single(
            "only UDP",
            vec![policy("udp", "x", &a, "ingress", on_81("UDP"))],
        ),
        Case::single(
            "some pods by SCTP, others by TCP, and names of both",
            vec![policy(
                "mixed",
                "x",
                &everybody,
                "ingress",
                json!([
                    {"from": [{"podSelector": a}], "ports": [{"port": 80, "protocol": "SCTP"}, {"port": "serve-81-tcp"}]},
                    {"from": [{"podSelector": b, "namespaceSelector": is("ns", "y")}],
                     "ports": [{"port": "serve-81-sctp", "protocol": "SCTP"}, {"port": 80}]},
                ]),
            )],
        ),
        Case::single(
            "the client may not what both servers allow",
            vec![
                policy("out", "x", &a, "egress", to_a_of_y),
                policy("in-a", "y", &a, "ingress", from_a_of_x.clone()),
                policy("in-b", "y", &b, "ingress", from_a_of_x),
            ],
        ),
        Case::single(
            "three namespaces that are closed to each other",
            ["x", "y", "z"]
                .map(|it| {
                    let own = json!([{"from": [{"podSelector": {}}]}]);
                    policy("own", it, &everybody, "ingress", own)
                })
                .into(),
        ),
    ]
}
