//! Policy where the peer is on another node: decided on each end's own node, whatever way the
//! packets travel.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::serde_json::{self, Value, json};
use windlass_network::{
    Routing,
    policy::{
        cluster::{LocalPod, NodeSpec, PodKey, PodSpec},
        spec::{PolicyName, PolicySpec},
        tables::Tables,
    },
};

use crate::{
    cluster::Cluster,
    echo::{PATIENCE, Server},
    netns::NetNs,
    policy::{SHORT, Talk, reaches},
    world::{TCP, UDP},
};

const NODES: usize = 3;

struct Policed {
    cluster: Cluster,
    tables: Vec<Tables>,
}

impl Policed {
    fn new(routing: Routing) -> Self {
        Self {
            cluster: Cluster::new(NODES, 1, routing),
            tables: (0..NODES).map(|_| Tables::default()).collect(),
        }
    }

    /// The pod of a node is `pod` in the namespace `n0`, `n1` or `n2`.
    fn enforce(&mut self, policies: &[Value]) {
        let parsed = policies.iter().enumerate().map(|(index, policy)| {
            let policy = serde_json::from_value(policy.clone()).expect("a NetworkPolicy");
            let name = PolicyName {
                namespace: None,
                name: format!("p{index}"),
            };
            (name, PolicySpec::parse(&policy).expect("a spec"))
        });
        let policies: std::collections::HashMap<_, _> = parsed.collect();
        let key = |node: usize| PodKey {
            namespace: format!("n{node}"),
            name: "pod".into(),
        };
        let spec = |node: usize| PodSpec {
            addresses: self.cluster.nodes[node].pods[0]
                .interface
                .link
                .addresses
                .clone(),
            ..PodSpec::default()
        };
        for node in 0..NODES {
            let namespaces = (0..NODES).map(|node| {
                let name = format!("n{node}");
                (name.clone(), [("ns".to_owned(), name)].into())
            });
            let nodes = self.cluster.nodes.iter().map(|node| {
                let addresses = node.peer.addresses.clone();
                let spec = NodeSpec {
                    addresses,
                    ..NodeSpec::default()
                };
                (node.peer.name.clone(), spec)
            });
            let cluster = windlass_network::policy::cluster::Cluster {
                policies: Cow::Owned(policies.clone()),
                namespaces: Cow::Owned(namespaces.collect()),
                pods: Cow::Owned((0..NODES).map(|node| (key(node), spec(node))).collect()),
                nodes: Cow::Owned(nodes.collect()),
                local: vec![LocalPod {
                    key: key(node),
                    addresses: spec(node).addresses,
                    spec: spec(node),
                }],
                pod_networks: ["10.244.0.0/16".parse().expect("a network")].into(),
                ..Default::default()
            };
            let writes = self.tables[node].plan(&cluster).writes;
            self.cluster.nodes[node].enforce(writes);
        }
    }

    fn pod(&self, node: usize) -> &NetNs {
        &self.cluster.nodes[node].pods[0].ns
    }

    fn target(&self, node: usize, v4: bool) -> SocketAddr {
        (self.cluster.nodes[node].pods[0].address(v4), 8_080).into()
    }
}

fn ingress(namespace: &str, rules: &Value) -> Value {
    json!({
        "metadata": {"namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules},
    })
}

#[test]
fn each_node_judges_its_own_end() {
    for routing in [Routing::Direct, Routing::Vxlan] {
        let mut policed = Policed::new(routing);
        let _servers: Vec<_> = (0..NODES)
            .map(|node| Server::start(policed.pod(node), 8_080))
            .collect();
        policed.enforce(&[
            ingress(
                "n0",
                &json!([{"from": [{"namespaceSelector": {"matchLabels": {"ns": "n1"}}}]}]),
            ),
            json!({
                "metadata": {"namespace": "n2"},
                "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [
                    {"to": [{"namespaceSelector": {"matchLabels": {"ns": "n1"}}}]},
                ]},
            }),
        ]);
        for v4 in [true, false] {
            for (from, to, expected) in [
                (1, 0, true),
                (2, 0, false),
                (2, 1, true),
                (0, 1, true),
                // Nothing is open from n2 to n0, but it answers whoever asks it.
                (0, 2, true),
                (1, 2, true),
            ] {
                let patience = if expected { PATIENCE } else { SHORT };
                for protocol in [TCP, UDP] {
                    let target = policed.target(to, v4);
                    let reached = reaches(policed.pod(from), target, protocol, patience);
                    let case = format!("{routing:?} {from} -> {to} {target} {protocol}");
                    assert_eq!(reached, expected, "{case}");
                }
            }
            let own = policed.target(0, v4);
            let node = |node: usize| &policed.cluster.nodes[node].ns;
            assert!(
                reaches(node(0), own, TCP, PATIENCE),
                "{routing:?}: a probe of its own node"
            );
            assert!(
                !reaches(node(1), own, TCP, SHORT),
                "{routing:?}: another node"
            );
        }
    }
}

#[test]
fn another_node_is_a_peer_by_its_address() {
    for routing in [Routing::Direct, Routing::Vxlan] {
        let mut policed = Policed::new(routing);
        let _server = Server::start(policed.pod(0), 8_080);
        let address: IpAddr = policed.cluster.nodes[1].address(true);
        policed.enforce(&[ingress(
            "n0",
            &json!([{"from": [{"ipBlock": {"cidr": format!("{address}/32")}}]}]),
        )]);
        let target = policed.target(0, true);
        assert!(
            reaches(&policed.cluster.nodes[1].ns, target, TCP, PATIENCE),
            "{routing:?}"
        );
        assert!(
            !reaches(&policed.cluster.nodes[2].ns, target, TCP, SHORT),
            "{routing:?}"
        );
        assert!(
            !reaches(policed.pod(1), target, TCP, SHORT),
            "{routing:?}: its pod is not it"
        );
    }
}

#[test]
fn open_connections_between_nodes_are_judged_again() {
    for routing in [Routing::Direct, Routing::Vxlan] {
        let mut policed = Policed::new(routing);
        let _server = Server::start(policed.pod(0), 8_080);
        let target = policed.target(0, true);
        let mut talk = policed
            .pod(1)
            .run(|| Talk::open(target, PATIENCE).expect("open"));
        assert!(talk.answers(), "{routing:?}");
        policed.enforce(&[ingress("n0", &json!([]))]);
        let wait = |talk: &Talk, time| talk.0.get_ref().set_read_timeout(Some(time));
        wait(&talk, SHORT).expect("a timeout");
        assert!(!talk.answers(), "{routing:?}: the policy is there");
        policed.enforce(&[]);
        wait(&talk, PATIENCE).expect("a timeout");
        assert!(talk.answers(), "{routing:?}: what was lost is sent again");
    }
}
