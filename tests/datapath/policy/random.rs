//! Random policies, compiled into the kernel's own maps, and the programs run on one packet of every connection
//! that somebody may want (BPF_PROG_TEST_RUN): each verdict is held against a model that knows nothing of either.

use std::{
    borrow::Cow,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use k8s_openapi::serde_json::{self, Value, json};
use windlass_network::policy::{
    closing,
    cluster::{Cluster, LocalPod, NamedPort as CompiledPort, NodeSpec, PodKey, PodSpec},
    spec::{PolicyName, PolicySpec},
    tables::Tables,
};
use windlass_tests::policy_model::{
    End, Family, Labels, Model, NamedPort, Pod, PodName, Protocol, Traffic, labels_of_node,
    random::{NAMESPACES, PODS, TEAMS, cluster_policy, one, policy, seeded},
};

use crate::{
    wire::{DROP, SYN, ipv4, ipv6, sctp, tcp, udp},
    world::{NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, PodSockets, TCP, UDP, World},
};

/// Sets of policies that replace each other, and most policies of each kind in one.
const ROUNDS: usize = 24;
const POLICIES: usize = 6;
const CLUSTER_POLICIES: usize = 4;
/// Labels and policies are made anew so often that a round changes something.
const ANEW: [usize; 2] = [3, 2];

const SCTP: u8 = 132;
const PORTS: [u16; 3] = [80, 81, 9_999];

/// The first four run here, the others on the second node.
const WHERE: [(&str, &str); 8] = [
    ("x", "a"),
    ("x", "b"),
    ("y", "a"),
    ("z", "c"),
    ("x", "c"),
    ("y", "b"),
    ("y", "c"),
    ("z", "a"),
];
const HERE: usize = 4;

/// What has an address and is no pod: two nodes, somebody outside, and a pod that nobody has heard of yet.
const NODES: [(Ipv4Addr, Ipv6Addr); 4] = [
    (NODE_V4, NODE_V6),
    (
        Ipv4Addr::new(192, 0, 2, 7),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7),
    ),
    (OUTSIDE_V4, OUTSIDE_V6),
    (
        Ipv4Addr::new(10, 244, 9, 9),
        Ipv6Addr::new(0xfd00, 0x244, 0, 9, 0, 0, 0, 9),
    ),
];
const REAL_NODES: usize = 2;

#[test]
fn the_programs_say_what_the_documentation_says_of_any_policies() {
    let world = World::new(HERE, PodSockets::ByTc);
    let (mut random, _) = seeded();
    let mut model = model(&world);
    let mut tables = Tables::default();
    let (mut asked, mut denied) = (0, 0);
    for round in 0..ROUNDS {
        relabel(&mut random, &mut model);
        if round % ANEW[0] == 0 {
            model.policies.clear();
        }
        for _ in 0..random.usize(..POLICIES) {
            let policy = policy(&mut random, &model);
            let namespace = policy["metadata"]["namespace"].as_str().expect("one");
            let key = (
                namespace.to_owned(),
                format!("p{}", random.usize(..POLICIES)),
            );
            model.policies.insert(key, policy);
        }
        if round % ANEW[1] == 0 {
            model.cluster_policies.clear();
            for number in 0..random.usize(..CLUSTER_POLICIES) {
                let spec = cluster_policy(&mut random, &model, number);
                let key = (
                    windlass_tests::policy_model::Kind::Cluster,
                    format!("c{number}"),
                );
                model.cluster_policies.insert(key, spec);
            }
        }
        let writes = tables.plan(&cluster(&model)).writes;
        closing::write(&mut world.datapath().policy(), &writes).expect("writing the policies");

        let probes = probes(&model);
        let verdicts = run(&world, &probes);
        let wrong: Vec<String> = probes
            .iter()
            .zip(&verdicts)
            .filter(|(probe, dropped)| **dropped == probe.expected)
            .map(|(probe, dropped)| format!("{}: dropped is {dropped}", probe.what))
            .collect();
        assert!(
            wrong.is_empty(),
            "round {round}, {} of {}:\n{}\nunder\n{:#?}\n{:#?}",
            wrong.len(),
            probes.len(),
            wrong.join("\n"),
            model.policies,
            model.cluster_policies,
        );
        asked += verdicts.len();
        denied += verdicts.iter().filter(|dropped| **dropped).count();
    }
    eprintln!("{asked} packets, {denied} of them dropped");
    // Both must happen often enough to mean something.
    assert!((asked / 20..asked * 19 / 20).contains(&denied));
}

/// One packet that would open a connection, and whether policies let it.
struct Probe {
    what: String,
    program: &'static str,
    interface: String,
    frame: Vec<u8>,
    expected: bool,
}

/// Whether each was dropped. All in one go, since entering a namespace takes longer than a packet.
fn run(world: &World, probes: &[Probe]) -> Vec<bool> {
    let mut interfaces = HashMap::new();
    for probe in probes {
        let name = probe.interface.as_str();
        interfaces
            .entry(name)
            .or_insert_with(|| world.node.ifindex(name));
    }
    world.node.run(|| {
        let ask = |probe: &Probe| {
            let ifindex = interfaces[probe.interface.as_str()];
            let ran = world
                .datapath()
                .test_run(probe.program, &probe.frame, ifindex);
            ran.expect("running the program").0 as i32 == DROP
        };
        probes.iter().map(ask).collect()
    })
}

fn probes(model: &Model) -> Vec<Probe> {
    let names: Vec<PodName> = WHERE.iter().map(|it| PodName::new(it.0, it.1)).collect();
    let ends = || {
        let pods = names.iter().map(End::Pod);
        pods.chain((0..NODES.len()).map(End::Node)).enumerate()
    };
    let mut probes = Vec::new();
    for (number, (from_index, from)) in ends().enumerate() {
        for (to_index, to) in ends() {
            let (from_here, to_here) = (from_index < HERE, to_index < HERE);
            for (program, interface) in hooks(from_index, to_index) {
                for (protocol, port, family) in traffics() {
                    let traffic = Traffic {
                        family,
                        protocol,
                        port,
                    };
                    // What belongs to another node is decided there.
                    let expected = (!from_here || model.leaves(from, to, traffic))
                        && (!to_here || model.enters(from, to, traffic));
                    // The same connection in every round: it is known, and judged again.
                    let source = 20_000 + (number * 32 + to_index) as u16;
                    let addresses = [from, to].map(|end| {
                        let address = family.of(model.addresses(end));
                        address.expect("everybody has both")
                    });
                    probes.push(Probe {
                        what: format!("{from:?} -> {to:?} {traffic:?} by {program}"),
                        program,
                        interface: interface.clone(),
                        frame: frame(addresses, protocol, (source, port)),
                        expected,
                    });
                }
            }
        }
    }
    probes
}

/// By which programs a packet between these ends comes, and at which interface.
fn hooks(from: usize, to: usize) -> Vec<(&'static str, String)> {
    let pod = |index: usize| format!("wlpod{index}");
    let this_node = WHERE.len();
    match (from < HERE, to < HERE) {
        (true, _) if from != to => vec![("from_pod", pod(from))],
        // The node's own packets come by the host's stack alone.
        (false, true) if from == this_node => vec![("to_pod", pod(to))],
        (false, true) => vec![("from_uplink", "wlout0".to_owned()), ("to_pod", pod(to))],
        _ => Vec::new(),
    }
}

fn traffics() -> Vec<(Protocol, u16, Family)> {
    let mut traffics = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        for port in PORTS {
            traffics.extend(Family::ALL.map(|family| (protocol, port, family)));
        }
    }
    traffics
}

fn frame(addresses: [IpAddr; 2], protocol: Protocol, ports: (u16, u16)) -> Vec<u8> {
    let payload = |src: &[u8], dst: &[u8]| match protocol {
        Protocol::Tcp => (TCP, tcp(src, dst, ports, SYN, b"")),
        Protocol::Udp => (UDP, udp(src, dst, ports, b"data")),
        // An INIT chunk.
        Protocol::Sctp => (SCTP, sctp(ports, &[1, 0, 0, 8, 0, 0, 0, 1])),
    };
    match addresses {
        [IpAddr::V4(src), IpAddr::V4(dst)] => {
            let (number, payload) = payload(&src.octets(), &dst.octets());
            ipv4(src, dst, number, 0, &payload)
        }
        [IpAddr::V6(src), IpAddr::V6(dst)] => {
            let (number, payload) = payload(&src.octets(), &dst.octets());
            ipv6(src, dst, number, &payload)
        }
        mixed => panic!("{mixed:?} are of two families"),
    }
}

fn model(world: &World) -> Model {
    let pods = WHERE.iter().enumerate().map(|(index, (namespace, name))| {
        let addresses: Vec<IpAddr> = match world.pods.get(index) {
            Some(pod) => vec![pod.v4.into(), pod.v6.into()],
            None => vec![
                [10, 244, 1, 10 + index as u8].into(),
                [0xfd00, 0x244, 0, 1, 0, 0, 0, 10 + index as u16].into(),
            ],
        };
        let pod = Pod {
            labels: Labels::from([("pod".to_owned(), (*name).to_owned())]),
            addresses,
            node: usize::from(index >= HERE),
            ports: named_ports(index),
        };
        (PodName::new(namespace, name), pod)
    });
    let nodes = NODES
        .iter()
        .map(|(v4, v6)| vec![(*v4).into(), (*v6).into()]);
    let labels = (0..NODES.len()).map(|node| match node {
        0..REAL_NODES => labels_of_node(&format!("node{node}")),
        _ => Labels::new(),
    });
    let namespaces = NAMESPACES.map(|name| {
        let labels = Labels::from([("ns".to_owned(), name.to_owned())]);
        (name.to_owned(), labels)
    });
    Model {
        namespaces: namespaces.into(),
        pods: pods.collect(),
        nodes: nodes.collect(),
        node_labels: labels.collect(),
        ..Model::default()
    }
}

/// `special` is not the same port everywhere, and some have no names for any.
fn named_ports(index: usize) -> Vec<NamedPort> {
    if index % 5 == 4 {
        return Vec::new();
    }
    let port = |name: &str, protocol, port| NamedPort {
        name: name.into(),
        protocol,
        port,
    };
    vec![
        port("special", Protocol::Tcp, 80 + index as u16 % 2),
        port("serve-80-udp", Protocol::Udp, 80),
        port("serve-81-tcp", Protocol::Tcp, 81),
    ]
}

fn relabel(random: &mut fastrand::Rng, model: &mut Model) {
    for labels in model
        .pods
        .values_mut()
        .map(|pod| &mut pod.labels)
        .chain(model.namespaces.values_mut())
    {
        match random.u8(0..4) {
            0 => drop(labels.insert("team".into(), one(random, &TEAMS).into())),
            1 => drop(labels.remove("team")),
            _ => {}
        }
    }
    let pod = random.usize(..WHERE.len());
    let pod = PodName::new(WHERE[pod].0, WHERE[pod].1);
    if let Some(pod) = model.pods.get_mut(&pod) {
        pod.labels.insert("pod".into(), one(random, &PODS).into());
    }
}

/// The same, as this node's agent knows it.
fn cluster(model: &Model) -> Cluster<'static> {
    let number = |protocol| match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
        Protocol::Sctp => SCTP,
    };
    let spec = |pod: &Pod| PodSpec {
        labels: pod.labels.clone(),
        ports: pod
            .ports
            .iter()
            .map(|port| CompiledPort {
                name: port.name.clone(),
                protocol: number(port.protocol),
                port: port.port,
            })
            .collect(),
        addresses: pod.addresses.clone(),
        ..PodSpec::default()
    };
    let key = |name: &PodName| PodKey {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    };
    let name = |namespace: Option<&str>, name: &str| PolicyName {
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
    };
    let policies = model.policies.iter().map(|((namespace, of_policy), it)| {
        let policy = serde_json::from_value(it.clone()).expect("a NetworkPolicy");
        let spec = PolicySpec::parse(&policy).expect("a spec");
        (name(Some(namespace), of_policy), spec)
    });
    let cluster_policies = model.cluster_policies.iter().map(|((_, of_policy), spec)| {
        let object: Value = json!({"metadata": {"name": of_policy}, "spec": spec});
        let object = serde_json::from_value(object).expect("an object");
        let spec = PolicySpec::parse_cluster(&object).expect("a spec");
        (name(None, of_policy), spec)
    });
    let nodes = (0..REAL_NODES).map(|node| {
        let spec = NodeSpec {
            labels: model.node_labels[node].clone(),
            addresses: model.nodes[node].clone(),
            pod_networks: Vec::new(),
        };
        (format!("node{node}"), spec)
    });
    let local = model.pods.iter().filter(|(_, pod)| pod.node == 0);
    Cluster {
        policies: Cow::Owned(policies.collect()),
        cluster_policies: vec![Cow::Owned(cluster_policies.collect())],
        namespaces: Cow::Owned(model.namespaces.clone().into_iter().collect()),
        pods: Cow::Owned(
            model
                .pods
                .iter()
                .map(|it| (key(it.0), spec(it.1)))
                .collect(),
        ),
        nodes: Cow::Owned(nodes.collect()),
        local: local
            .map(|(name, pod)| LocalPod {
                key: key(name),
                addresses: pod.addresses.clone(),
                spec: spec(pod),
            })
            .collect(),
        pod_networks: ["10.244.0.0/16", "fd00:244::/48"]
            .map(|net| net.parse().expect("a network"))
            .into(),
        ..Cluster::default()
    }
}
