//! Policy on real packets: a table of cases, then what no table of connections shows.
//!
//! Four pods in three namespaces (x/a, x/b, y/a, z/c), somebody outside and the node, everybody
//! asked by everybody.

mod cases;
mod random;

use std::{
    borrow::Cow,
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use k8s_openapi::{api::networking::v1::NetworkPolicy, serde_json};
use serde_json::{Value, json};
use windlass_datapath::{Capacities, Error, PolicyWrite};
use windlass_network::policy::{
    closing,
    cluster::{Cluster, LocalPod, NamedPort, PodKey, PodSpec},
    spec::{PolicyName, PolicySpec},
    tables::Tables,
};

use crate::{
    bridged,
    echo::{PATIENCE, Server, ask_tcp, ask_udp},
    netns::NetNs,
    newer,
    world::{NODE_V4, OUTSIDE_V4, PodSockets, TCP, UDP, World, cluster_ip, small, vip},
};

use cases::{Attempt, cases};

/// A packet that is let through has long arrived after this.
pub const SHORT: Duration = Duration::from_millis(300);

/// Namespace and name of the pods, by their place in the world.
const PODS: [(&str, &str); 4] = [("x", "a"), ("x", "b"), ("y", "a"), ("z", "c")];
const OUTSIDE: usize = 4;

struct Policed {
    world: World,
    tables: Tables,
    /// Pods whose objects this node has not seen.
    unknown: Vec<usize>,
}

impl Policed {
    fn new(sockets: PodSockets) -> Self {
        Self::over(World::new(PODS.len(), sockets))
    }

    fn over(world: World) -> Self {
        world
            .outside
            .ip(&format!("route add 10.244.0.0/16 via {NODE_V4}"));
        Self {
            world,
            tables: Tables::default(),
            unknown: Vec::new(),
        }
    }

    /// Makes these the cluster's policies. Returns how many writes that took.
    fn enforce(&mut self, policies: &[Value]) -> usize {
        let writes = self.plan(policies);
        let mut maps = self.world.datapath().policy();
        closing::write(&mut maps, &writes).expect("writing the policies");
        writes.len()
    }

    /// As a restarted agent does, and one that failed to write.
    fn recover(&mut self) {
        let snapshot = self.world.datapath().policy().snapshot();
        self.tables = Tables::recover(&snapshot.expect("the tables"));
    }

    fn plan(&mut self, policies: &[Value]) -> Vec<PolicyWrite> {
        let parsed = policies.iter().enumerate().map(|(index, policy)| {
            let policy: NetworkPolicy =
                serde_json::from_value(policy.clone()).expect("a NetworkPolicy");
            let name = PolicyName {
                namespace: policy.metadata.namespace.clone(),
                name: format!("p{index}"),
            };
            (name, PolicySpec::parse(&policy).expect("a spec"))
        });
        let policies: HashMap<_, _> = parsed.collect();
        let pods = PODS.iter().enumerate();
        let pods: Vec<LocalPod> = pods
            .map(|(index, (namespace, name))| {
                let pod = &self.world.pods[index];
                let addresses = vec![pod.v4.into(), pod.v6.into()];
                LocalPod {
                    key: PodKey {
                        namespace: (*namespace).into(),
                        name: (*name).into(),
                    },
                    addresses: addresses.clone(),
                    spec: PodSpec {
                        labels: [("pod".to_owned(), (*name).to_owned())].into(),
                        ports: [80, 81].map(named_port).into(),
                        addresses,
                        ..PodSpec::default()
                    },
                }
            })
            .collect();
        let known = pods.into_iter().enumerate();
        let known = known.filter(|(index, _)| !self.unknown.contains(index));
        let namespaces = ["x", "y", "z"].map(|name| {
            let labels = [("ns".to_owned(), name.to_owned())];
            (name.to_owned(), labels.into())
        });
        let cluster = Cluster {
            policies: Cow::Owned(policies),
            namespaces: Cow::Owned(namespaces.into()),
            local: known.map(|(_, pod)| pod).collect(),
            pod_networks: ["10.244.0.0/16", "fd00:244::/48"]
                .map(|net| net.parse().expect("a network"))
                .into(),
            ..Cluster::default()
        };
        self.tables.plan(&cluster).writes
    }

    fn namespace(&self, end: usize) -> &NetNs {
        self.world
            .pods
            .get(end)
            .map_or(&self.world.outside, |pod| &pod.ns)
    }

    fn address(&self, end: usize, v4: bool) -> IpAddr {
        match self.world.pods.get(end) {
            None => OUTSIDE_V4.into(),
            Some(pod) if v4 => pod.v4.into(),
            Some(pod) => pod.v6.into(),
        }
    }

    fn count(&self, reason: &str) -> u64 {
        ["from-pod", "to-pod", "from-uplink"]
            .iter()
            .map(|hook| self.world.count(reason, hook))
            .sum()
    }
}

fn named_port(port: u16) -> NamedPort {
    NamedPort {
        name: format!("serve-{port}"),
        protocol: TCP,
        port,
    }
}

/// Whether an answer comes within the time.
pub fn reaches(from: &NetNs, target: SocketAddr, protocol: u8, patience: Duration) -> bool {
    from.run(|| match protocol {
        TCP => Talk::open(target, patience).is_some_and(|mut talk| talk.answers()),
        _ => {
            let any: IpAddr = if target.is_ipv4() {
                [0; 4].into()
            } else {
                [0u16; 8].into()
            };
            let socket = UdpSocket::bind((any, 0)).expect("a socket");
            socket.set_read_timeout(Some(patience)).expect("a timeout");
            socket.send_to(b"hello", target).is_ok() && socket.recv(&mut [0; 512]).is_ok()
        }
    })
}

/// A TCP conversation whose silence is an answer too.
pub struct Talk(pub BufReader<TcpStream>);

impl Talk {
    pub fn open(target: SocketAddr, patience: Duration) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&target, patience).ok()?;
        stream.set_read_timeout(Some(patience)).expect("a timeout");
        Some(Self(BufReader::new(stream)))
    }

    pub fn answers(&mut self) -> bool {
        let asked = writeln!(self.0.get_mut(), "hello").is_ok();
        asked && matches!(self.0.read_line(&mut String::new()), Ok(1..))
    }
}

fn policy(namespace: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": namespace}, "spec": spec})
}

fn ingress(namespace: &str, pods: Value, rules: Value) -> Value {
    let spec = json!({"podSelector": pods, "policyTypes": ["Ingress"], "ingress": rules});
    policy(namespace, spec)
}

fn egress(namespace: &str, pods: Value, rules: Value) -> Value {
    let spec = json!({"podSelector": pods, "policyTypes": ["Egress"], "egress": rules});
    policy(namespace, spec)
}

/// x/a, x/b, y/a, z/c
const XA: usize = 0;
const XB: usize = 1;
const YA: usize = 2;
const ZC: usize = 3;

#[test]
fn connections_are_what_the_policies_say() {
    every_case_holds(Policed::new(PodSockets::ByTc));
}

/// Two of the four are at a bridge, whose neighbours are not kept apart by anything but our programs.
#[test]
fn connections_of_pods_that_another_plugin_made_are_what_the_policies_say() {
    every_case_holds(Policed::over(bridged::world(PodSockets::ByTc)));
}

fn every_case_holds(mut policed: Policed) {
    let ends = 0..=OUTSIDE;
    let _servers: Vec<_> = ends
        .clone()
        .flat_map(|end| [80, 81].map(|port| (end, port)))
        .map(|(end, port)| Server::start(policed.namespace(end), port))
        .collect();
    for case in cases() {
        let audited = policed.count("policy-audited");
        policed.enforce(&case.policies);
        let mut attempts = Vec::new();
        for (from, to) in ends
            .clone()
            .flat_map(|from| ends.clone().map(move |to| (from, to)))
        {
            for (protocol, port) in [(TCP, 80), (TCP, 81), (UDP, 80), (UDP, 81)] {
                attempts.push(Attempt {
                    from,
                    to,
                    protocol,
                    port,
                });
            }
        }
        attempts.retain(|it| it.from != it.to);
        let policed = &policed;
        let wrong: Vec<_> = thread::scope(|scope| {
            let running: Vec<_> = attempts
                .into_iter()
                .map(|it| {
                    scope.spawn(move || {
                        let expected = (case.allows)(it);
                        let patience = if expected { PATIENCE } else { SHORT };
                        let target = (policed.address(it.to, true), it.port).into();
                        let from = policed.namespace(it.from);
                        let reached = reaches(from, target, it.protocol, patience);
                        (reached != expected).then(|| format!("{it:?}: reached is {reached}"))
                    })
                })
                .collect();
            running
                .into_iter()
                .filter_map(|thread| thread.join().expect("an attempt"))
                .collect()
        });
        assert!(wrong.is_empty(), "{}:\n{}", case.name, wrong.join("\n"));
        let is_audit = case.name.contains("audit");
        assert_eq!(
            policed.count("policy-audited") > audited,
            is_audit,
            "{}",
            case.name
        );
    }
    assert!(policed.count("policy-denied-ingress") > 0);
    assert!(policed.count("policy-denied-egress") > 0);
}

#[test]
fn both_families_are_subject_to_the_same_selectors() {
    let mut policed = Policed::new(PodSockets::ByTc);
    let _server = Server::start(policed.namespace(XA), 80);
    policed.enforce(&[ingress(
        "x",
        json!({}),
        json!([{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]),
    )]);
    for v4 in [true, false] {
        let target = (policed.address(XA, v4), 80).into();
        assert!(
            reaches(policed.namespace(YA), target, TCP, PATIENCE),
            "{target}"
        );
        assert!(
            !reaches(policed.namespace(ZC), target, TCP, SHORT),
            "{target}"
        );
        assert!(
            !reaches(policed.namespace(ZC), target, UDP, SHORT),
            "{target}"
        );
    }
}

#[test]
fn a_policy_applies_to_connections_that_are_open() {
    let mut policed = Policed::new(PodSockets::ByTc);
    let _servers = [
        Server::start(policed.namespace(XA), 80),
        Server::start(&policed.world.outside, 80),
    ];
    let to_pod: SocketAddr = (policed.address(XA, true), 80).into();
    let to_outside: SocketAddr = (OUTSIDE_V4, 80).into();
    let open = |end: usize, target| {
        let policed = &policed;
        policed
            .namespace(end)
            .run(move || Talk::open(target, PATIENCE).expect("open"))
    };
    let mut talks = [
        open(YA, to_pod),
        open(OUTSIDE, to_pod),
        open(XA, to_outside),
    ];
    assert!(talks.iter_mut().all(Talk::answers));
    policed.enforce(&[policy(
        "x",
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
    )]);
    for talk in &mut talks {
        talk.0
            .get_ref()
            .set_read_timeout(Some(SHORT))
            .expect("a timeout");
        assert!(!talk.answers(), "the policy is there");
    }
    policed.enforce(&[]);
    for talk in &mut talks {
        talk.0
            .get_ref()
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout");
        assert!(talk.answers(), "what was lost is sent again");
    }
}

/// To an agent that serves Services alone, the pods are another plugin's; the next one on the node may be more.
#[test]
fn pods_that_were_only_served_are_subject_to_policies_once_they_are_ours() {
    let world = bridged::world(PodSockets::ByTc);
    let pods: Vec<IpAddr> = world.pods.iter().map(|pod| pod.v4.into()).collect();
    let datapath = world.datapath();
    datapath.serve_all_namespaces(true).expect("all namespaces");
    datapath.set_foreign_pods(&pods).expect("foreign pods");
    datapath.serve_all_namespaces(false).expect("our own alone");
    let mut policed = Policed::over(world);
    let _server = Server::start(policed.namespace(XA), 80);
    let target: SocketAddr = (policed.address(XA, true), 80).into();
    for from in [YA, ZC] {
        assert!(reaches(policed.namespace(from), target, TCP, PATIENCE));
    }
    policed.enforce(&[ingress("x", json!({}), json!([]))]);
    for from in [XB, YA, ZC] {
        assert!(!reaches(policed.namespace(from), target, TCP, SHORT));
    }
}

#[test]
fn the_node_reaches_its_pods_and_nobody_is_kept_from_answering() {
    let mut policed = Policed::new(PodSockets::ByTc);
    let _servers = [
        Server::start(policed.namespace(XA), 80),
        Server::start(&policed.world.node, 9_090),
    ];
    policed.enforce(&[
        policy(
            "x",
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        ),
        ingress(
            "x",
            json!({}),
            json!([{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]),
        ),
    ]);
    for v4 in [true, false] {
        let target: SocketAddr = (policed.address(XA, v4), 80).into();
        assert_eq!(
            ask_tcp(&policed.world.node, target)
                .expect("a probe")
                .server,
            "a"
        );
        ask_udp(&policed.world.node, target).expect("a probe by UDP");
        policed.world.node.ping(target.ip()).expect("a ping");
        // The pod may not open anything, but it may answer.
        ask_tcp(policed.namespace(YA), target).expect("an answer");
        ask_udp(policed.namespace(YA), target).expect("an answer by UDP");
        policed.namespace(YA).ping(target.ip()).expect("an echo");
        assert!(policed.namespace(ZC).ping(target.ip()).is_err());
    }
    // The other way round the node is an address like others.
    let node: SocketAddr = (NODE_V4, 9_090).into();
    assert!(!reaches(policed.namespace(XA), node, TCP, SHORT));
    policed.enforce(&[egress(
        "x",
        json!({}),
        json!([{"to": [{"ipBlock": {"cidr": format!("{NODE_V4}/32")}}]}]),
    )]);
    assert!(reaches(policed.namespace(XA), node, TCP, PATIENCE));
}

#[test]
fn a_policy_over_a_service_is_decided_on_the_backend() {
    for sockets in [PodSockets::ByHook, PodSockets::ByTc] {
        let mut policed = Policed::new(sockets);
        let _server = Server::start(policed.namespace(XA), 8_080);
        policed
            .world
            .serve(1, &[cluster_ip(80, TCP)], 8_080, &[XA], true);
        policed
            .world
            .serve(2, &[cluster_ip(80, UDP)], 8_080, &[XA], true);
        policed.enforce(&[ingress(
            "x",
            json!({}),
            json!([{
                "from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}],
                "ports": [{"port": 8080}, {"port": 8080, "protocol": "UDP"}],
            }]),
        )]);
        for protocol in [TCP, UDP] {
            assert!(
                reaches(policed.namespace(YA), vip(80), protocol, PATIENCE),
                "{sockets:?}"
            );
            assert!(
                !reaches(policed.namespace(ZC), vip(80), protocol, SHORT),
                "{sockets:?}"
            );
            // Through its own Service a pod reaches itself.
            assert!(
                reaches(policed.namespace(XA), vip(80), protocol, PATIENCE),
                "{sockets:?}"
            );
        }
        policed.enforce(&[egress(
            "z",
            json!({}),
            json!([{"to": [{"ipBlock": {"cidr": "10.96.0.0/16"}}]}]),
        )]);
        assert!(
            !reaches(policed.namespace(ZC), vip(80), TCP, SHORT),
            "{sockets:?}: not the VIP"
        );
    }
}

#[test]
fn an_unknown_pod_matches_blocks_and_everybody_only() {
    let mut policed = Policed::new(PodSockets::ByTc);
    policed.unknown = vec![ZC];
    let _server = Server::start(policed.namespace(XA), 80);
    let targets = [true, false].map(|v4| SocketAddr::new(policed.address(XA, v4), 80));
    let from = |peers: Value| ingress("x", json!({}), json!([{"from": peers}]));
    let pods = || from(json!([{"namespaceSelector": {}}]));
    policed.enforce(&[pods()]);
    for target in targets {
        let dropped = policed.count("identity-unknown");
        assert!(
            !reaches(policed.namespace(ZC), target, TCP, SHORT),
            "{target}"
        );
        assert!(policed.count("identity-unknown") > dropped, "{target}");
    }
    let blocks = json!([{"ipBlock": {"cidr": "10.244.0.0/16"}}, {"ipBlock": {"cidr": "fd00::/8"}}]);
    for allowing in [from(blocks), ingress("x", json!({}), json!([{}]))] {
        policed.enforce(&[allowing]);
        for target in targets {
            assert!(
                reaches(policed.namespace(ZC), target, TCP, PATIENCE),
                "{target}"
            );
        }
    }
    policed.unknown.clear();
    policed.enforce(&[pods()]);
    for target in targets {
        let is_known = reaches(policed.namespace(ZC), target, TCP, PATIENCE);
        assert!(is_known, "{target}: now it is known");
    }
}

#[test]
fn a_rule_with_ports_says_nothing_of_icmp() {
    let mut policed = Policed::new(PodSockets::ByTc);
    let target = policed.address(XA, true);
    policed.enforce(&[ingress("x", json!({}), json!([{"ports": [{"port": 80}]}]))]);
    assert!(policed.namespace(YA).ping(target).is_err());
    policed.enforce(&[ingress(
        "x",
        json!({}),
        json!([{"from": [{"namespaceSelector": {}}]}]),
    )]);
    policed
        .namespace(YA)
        .ping(target)
        .expect("no ports, no restriction");
}

/// One that comes back, one of a build with another layout of maps, a later or an earlier one, and one that was there
/// before a build whose elements have grown: before it has been told anything.
#[test]
fn policies_outlive_the_agent() {
    let newer_build: fn(&mut World) = newer::leave;
    for change in [
        |_: &mut World| {},
        |world: &mut World| world.change_layout(1),
        |world: &mut World| world.change_layout(-1),
        newer_build,
    ] {
        let mut policed = Policed::new(PodSockets::ByTc);
        let _server = Server::start(policed.namespace(XA), 80);
        let target: SocketAddr = (policed.address(XA, true), 80).into();
        let policies = [ingress(
            "x",
            json!({}),
            json!([{"from": [{"podSelector": {}}, {"ipBlock": {"cidr": "192.0.2.0/24"}}],
                "ports": [{"port": 80, "endPort": 90}]}]),
        )];
        policed.enforce(&policies);
        policed.world.stop();
        change(&mut policed.world);
        policed.world.restart();
        assert!(!reaches(policed.namespace(YA), target, TCP, SHORT));
        assert!(reaches(policed.namespace(XB), target, TCP, PATIENCE));
        policed.recover();
        assert_eq!(
            policed.enforce(&policies),
            0,
            "the new agent finds all as it should be"
        );
        policed.enforce(&[]);
        assert!(reaches(policed.namespace(YA), target, TCP, PATIENCE));
    }
}

#[test]
fn policies_that_do_not_fit_close_the_pods_that_they_are_for() {
    let capacities = Capacities {
        policy_verdicts: 64,
        ..small()
    };
    let mut policed = Policed::over(World::with_capacities(PODS.len(), capacities));
    let _servers =
        [XA, ZC].map(|end| [80, 81].map(|port| Server::start(policed.namespace(end), port)));
    let target =
        |policed: &Policed, end, port| SocketAddr::from((policed.address(end, true), port));
    let from_y = json!([{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]);
    let fitting = ingress("z", json!({}), from_y);
    policed.enforce(std::slice::from_ref(&fitting));

    let odd: Vec<Value> = (0..2_000)
        .map(|number| json!({"port": 2 * number + 1}))
        .collect();
    let writes = policed.plan(&[
        fitting.clone(),
        ingress("x", json!({}), json!([{"ports": odd}])),
    ]);
    let written = closing::write(&mut policed.world.datapath().policy(), &writes);
    assert!(matches!(written, Err(Error::MapFull { .. })), "{written:?}");
    let to_a = target(&policed, XA, 81);
    assert!(
        !reaches(policed.namespace(YA), to_a, TCP, SHORT),
        "closed, although 81 is odd"
    );
    let to_c = target(&policed, ZC, 80);
    assert!(
        reaches(policed.namespace(YA), to_c, TCP, PATIENCE),
        "its policy is as before"
    );
    assert!(!reaches(policed.namespace(XB), to_c, TCP, SHORT));

    policed.recover();
    let smaller = ingress("x", json!({}), json!([{"ports": [{"port": 81}]}]));
    policed.enforce(&[fitting, smaller]);
    assert!(
        reaches(policed.namespace(YA), to_a, TCP, PATIENCE),
        "there is room again"
    );
    let to_a = target(&policed, XA, 80);
    assert!(!reaches(policed.namespace(YA), to_a, TCP, SHORT));
}
