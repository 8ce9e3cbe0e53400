//! Direct answers: clients outside, backends on another node than the one that was dialled.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use windlass_datapath::types::{Addr, ServiceKey};
use windlass_network::{Announcer, Routing};

use crate::{
    bulk::there_and_back,
    cluster::{Cluster, OUTSIDE_V4, OUTSIDE_V6},
    echo::{Conversation, PATIENCE, Server, ask_tcp, ask_udp},
    world::{TCP, UDP},
};

const OUTSIDES: [(bool, IpAddr); 2] = [
    (true, IpAddr::V4(OUTSIDE_V4)),
    (false, IpAddr::V6(OUTSIDE_V6)),
];

/// Two nodes, the second of which has the backends. Both know the Services, as all nodes do.
fn cluster(routing: Routing) -> Cluster {
    Cluster::answering_directly(2, 1, routing)
}

fn node_port(cluster: &Cluster, port: u16, protocol: u8, backend: (IpAddr, u16)) {
    for node in &cluster.nodes {
        node.node_port(port, protocol, backend);
    }
}

#[test]
fn the_backend_sees_the_client_and_its_node_answers() {
    for routing in [Routing::Direct, Routing::Vxlan] {
        let cluster = cluster(routing);
        let [asked, behind] = [0, 1].map(|index| &cluster.nodes[index]);
        let pod = &behind.pods[0];
        let _servers = [
            Server::start(&pod.ns, 8080),
            Server::start(&behind.ns, 8081),
        ];
        for (v4, outside) in OUTSIDES {
            // A pod, and the node itself.
            for (backend, name) in [
                ((pod.address(v4), 8080), &pod.ns.name),
                ((behind.address(v4), 8081), &behind.ns.name),
            ] {
                node_port(&cluster, 30_080, TCP, backend);
                let target = SocketAddr::new(asked.address(v4), 30_080);
                let case = format!("{routing:?}: {target} for {name}");
                let answer =
                    ask_tcp(&cluster.outside, target).unwrap_or_else(|e| panic!("{case}: {e}"));
                assert_eq!(&answer.server, name, "{case}");
                assert_eq!(answer.seen_client.ip(), outside, "{case}");

                node_port(&cluster, 30_081, UDP, backend);
                let target = SocketAddr::new(asked.address(v4), 30_081);
                let (answer, by) = ask_udp(&cluster.outside, target)
                    .unwrap_or_else(|e| panic!("{case}, UDP: {e}"));
                assert_eq!((&answer.server, by), (name, target), "{case}, UDP");
                assert_eq!(answer.seen_client.ip(), outside, "{case}, UDP");
            }
            // An address that no node has, such as a balancer's.
            let balanced: IpAddr = match v4 {
                true => [192, 0, 2, 200].into(),
                false => "2001:db8::200".parse().expect("an address"),
            };
            for node in &cluster.nodes {
                let key = ServiceKey::new(Addr::from(balanced), 80, TCP);
                node.serve(key, (pod.address(v4), 8080));
            }
            let announcer = asked.announce(&[balanced]);
            let target = SocketAddr::new(balanced, 80);
            let deadline = Instant::now() + PATIENCE;
            while asked.announced().is_empty() {
                assert!(Instant::now() < deadline, "{balanced} is not announced");
                thread::park_timeout(Duration::from_millis(10));
            }
            let answer = ask_tcp(&cluster.outside, target)
                .unwrap_or_else(|e| panic!("{routing:?}: {target}: {e}"));
            assert_eq!(answer.seen_client.ip(), outside, "{routing:?}: {target}");
            drop(announcer);
            // Nobody listens: the refusal comes from the address that was dialled.
            node_port(&cluster, 30_082, TCP, (pod.address(v4), 9));
            let target = SocketAddr::new(asked.address(v4), 30_082);
            let error = ask_tcp(&cluster.outside, target).expect_err("nobody listens");
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionRefused,
                "{target}: {error}"
            );
        }
        // Within the cluster nothing is answered directly: the ways back differ.
        node_port(&cluster, 30_080, TCP, (pod.address(true), 8080));
        let target = SocketAddr::new(asked.address(true), 30_080);
        for from in [&behind.ns, &pod.ns, &asked.ns, &asked.pods[0].ns] {
            let answer = ask_tcp(from, target)
                .unwrap_or_else(|e| panic!("{routing:?}: {target} by {}: {e}", from.name));
            assert_eq!(answer.server, pod.ns.name);
        }
    }
}

#[test]
fn large_packets_pass_both_ways_and_conversations_outlive_the_agents() {
    const SIZE: usize = 4 << 20;
    for routing in [Routing::Direct, Routing::Vxlan] {
        let mut cluster = cluster(routing);
        let [asked, behind] = [0, 1].map(|index| &cluster.nodes[index]);
        let pod = &behind.pods[0];
        let _server = Server::start(&pod.ns, 8080);
        for (v4, _) in OUTSIDES {
            node_port(&cluster, 30_080, TCP, (pod.address(v4), 9000));
            let target = SocketAddr::new(asked.address(v4), 30_080);
            let listen = SocketAddr::new(pod.address(v4), 9000);
            let what = format!("{routing:?} v4={v4}");
            there_and_back(&cluster.outside, target, &pod.ns, listen, SIZE, &what);

            // A datagram that leaves no room for the option comes by way of the first node.
            node_port(&cluster, 30_081, UDP, (pod.address(v4), 8080));
            let target = SocketAddr::new(asked.address(v4), 30_081);
            let headers = if v4 { 28 } else { 48 };
            let mtu = if routing == Routing::Direct {
                1_500
            } else {
                1_450
            };
            let answer = cluster.outside.run(|| {
                let any: IpAddr = if v4 { [0; 4].into() } else { [0_u16; 8].into() };
                let socket = UdpSocket::bind((any, 0)).expect("a socket");
                socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                let message = vec![b'x'; mtu - headers];
                socket.send_to(&message, target).expect("sending");
                let mut buffer = [0; 2_048];
                let (length, _) = socket.recv_from(&mut buffer).expect("an answer");
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            });
            assert!(answer.starts_with(&pod.ns.name), "{routing:?}: {answer}");
        }
        node_port(&cluster, 30_080, TCP, (pod.address(true), 8080));
        let target = SocketAddr::new(asked.address(true), 30_080);
        let conversation = cluster.outside.run(|| Conversation::open(target));
        let mut conversation = conversation.expect("connecting");
        conversation.ask("hello").expect("an answer");
        for node in 0..2 {
            cluster.restart(node);
            conversation
                .ask("still there")
                .unwrap_or_else(|e| panic!("{routing:?}: after the restart of {node}: {e}"));
        }
    }
}

/// A backend can tell by the address and port of a client only one connection: two that a client has from one
/// port, by two addresses, are not mixed up.
#[test]
fn one_source_port_by_two_addresses_never_mixes_answers() {
    let cluster = cluster(Routing::Direct);
    let [asked, behind] = [0, 1].map(|index| &cluster.nodes[index]);
    let pod = &behind.pods[0];
    let _server = Server::start(&pod.ns, 8080);
    for port in [30_080, 30_081] {
        let key = ServiceKey::node_port(true, port, UDP);
        for node in &cluster.nodes {
            node.serve(key, (pod.address(true), 8080));
        }
    }
    cluster.outside.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut buffer = [0; 512];
        for port in [30_080, 30_081, 30_080] {
            let target = SocketAddr::new(asked.address(true), port);
            socket.send_to(b"hello", target).expect("sending");
            let (_, by) = socket.recv_from(&mut buffer).expect("an answer");
            assert_eq!(by, target);
        }
    });
}

/// The node that answered for a balancer's address is gone, or gives it up: the next one chooses alike.
#[test]
fn connections_outlive_the_move_of_a_balancers_address() {
    let cluster = Cluster::answering_directly(3, 1, Routing::Direct);
    // Backends of the node that answered, of the one that will, and of a third.
    let mut moved = Moved::new(&cluster, 3);
    let before = cluster.nodes[1].count("new-connection", "from-uplink");
    for (conversation, server) in &mut moved.conversations {
        for question in ["after", "and on"] {
            let answer = conversation.ask(question);
            let answer = answer.unwrap_or_else(|e| panic!("{server}: {e}"));
            assert_eq!(&answer.server, server);
        }
    }
    // What was said before and since, counted where the backends are; each has a Service of each family.
    for (index, node) in cluster.nodes.iter().rev().enumerate() {
        for id in [1, 2].map(|family| 2 * index as u32 + family) {
            assert!(node.answered(id) > 100, "{id}: {}", node.answered(id));
        }
    }
    let adopted = cluster.nodes[1].count("new-connection", "from-uplink") - before;
    assert!(adopted >= 6, "only {adopted} came to the other node");
}

/// A node that spoke for the client in a name of its own took that with it: its connections end, not in silence.
#[test]
fn connections_in_a_nodes_own_name_end_with_the_move_of_a_balancers_address() {
    let cluster = Cluster::new(2, 1, Routing::Direct);
    let mut moved = Moved::new(&cluster, 1);
    for (conversation, _) in &mut moved.conversations {
        let error = conversation.ask("after").expect_err("it is over");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
}

/// Conversations of both families by way of the first node's addresses, which are now the second's.
struct Moved {
    /// With the name of who answers.
    conversations: Vec<(Conversation, String)>,
    _announcer: Announcer,
    _servers: Vec<Server>,
}

impl Moved {
    /// With pods of the last so many nodes.
    fn new(cluster: &Cluster, backends: usize) -> Self {
        let balanced = |index: usize, v4: bool| -> IpAddr {
            let last = 200 + index as u8;
            match v4 {
                true => [192, 0, 2, last].into(),
                false => [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)].into(),
            }
        };
        let pods = cluster.nodes.iter().rev().take(backends);
        let pods: Vec<_> = pods.map(|node| &node.pods[0]).collect();
        let servers = pods
            .iter()
            .map(|pod| Server::start(&pod.ns, 8080))
            .collect();
        let mut targets = Vec::new();
        for (index, pod) in pods.iter().enumerate() {
            for v4 in [true, false] {
                let address = balanced(index, v4);
                let id = 1 + 2 * index as u32 + u32::from(v4);
                for node in &cluster.nodes {
                    let key = ServiceKey::new(Addr::from(address), 80, TCP);
                    node.serve_by_table(id, key, (pod.address(v4), 8080));
                }
                targets.push((address, pod.ns.name.clone()));
            }
        }
        let addresses: Vec<IpAddr> = targets.iter().map(|(address, _)| *address).collect();
        // Until whoever is outside would send to that node.
        let announce = |node: usize| {
            let node = &cluster.nodes[node];
            let announcer = node.announce(&addresses);
            let mac = node.ns.mac("eth0").map(|octet| format!("{octet:02x}"));
            let mac = mac.join(":");
            for address in &addresses {
                let deadline = Instant::now() + PATIENCE;
                let knows = || {
                    let known = cluster.outside.tool("ip", &format!("neigh show {address}"));
                    known.contains(&mac)
                };
                while !knows() {
                    assert!(Instant::now() < deadline, "{address} is not announced");
                    // Who is asked for nothing is not known either.
                    cluster.outside.run(|| {
                        let socket = UdpSocket::bind(("::", 0)).expect("a socket");
                        let _ = socket.send_to(&[], (*address, 9));
                    });
                    thread::park_timeout(Duration::from_millis(10));
                }
            }
            announcer
        };
        let first = announce(0);
        let conversations = targets.into_iter().map(|(address, server)| {
            let target = SocketAddr::new(address, 80);
            let conversation = cluster.outside.run(|| Conversation::open(target));
            let mut conversation = conversation.expect("connecting");
            conversation.ask("before").expect("an answer");
            (conversation, server)
        });
        let conversations = conversations.collect();
        drop(first);
        Self {
            conversations,
            _announcer: announce(1),
            _servers: servers,
        }
    }
}
