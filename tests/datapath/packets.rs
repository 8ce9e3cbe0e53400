//! tc: packets of clients whose sockets no hook has seen, from pods and from outside.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use windlass_datapath::{TcAttach, types::ServiceKey};

use crate::{
    echo::{Conversation, PATIENCE, Server, ask_connected_udp, ask_tcp, ask_udp, ask_udp_on},
    netns::NetNs,
    world::{
        NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, PodSockets, TCP, UDP, World, cluster_ip,
        cluster_ip_v6, vip, vip_v6,
    },
};

const NODE_PORT: u16 = 30_080;

fn node_port(v4: bool, protocol: u8) -> ServiceKey {
    ServiceKey::node_port(v4, NODE_PORT, protocol)
}

#[test]
fn a_pod_reaches_every_backend_by_tcp_and_udp() {
    let world = World::new(4, PodSockets::ByTc);
    let _servers = Server::start_in(&world.pods, 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0, 1, 2], true);
    world.serve(2, &[cluster_ip(53, UDP)], 8080, &[0, 1, 2], true);
    world.serve(3, &[cluster_ip_v6(80, TCP)], 8080, &[0, 1, 2], false);
    world.serve(4, &[cluster_ip_v6(53, UDP)], 8080, &[0, 1, 2], false);
    let client = &world.pods[3];
    let all = BTreeSet::from(["a", "b", "c"].map(String::from));
    for target in [vip(80), vip_v6(80)] {
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            let answer = ask_tcp(&client.ns, target).expect("the service answers");
            let own: [IpAddr; 2] = [client.v4.into(), client.v6.into()];
            assert!(
                own.contains(&answer.seen_client.ip()),
                "the source is preserved"
            );
            seen.insert(answer.server);
        }
        assert_eq!(seen, all);
    }
    for target in [vip(53), vip_v6(53)] {
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            let (answer, from) = ask_udp(&client.ns, target).expect("the service answers");
            assert_eq!(from, target);
            seen.insert(answer.server);
        }
        assert_eq!(seen, all);
    }
}

#[test]
fn a_client_outside_reaches_a_node_port_and_its_address_is_seen() {
    for tc in [TcAttach::Auto, TcAttach::Clsact] {
        let world = World::with_tc(2, PodSockets::ByTc, tc);
        let _servers = Server::start_in(&world.pods, 8080);
        for (id, v4, protocol) in [
            (1, true, TCP),
            (2, true, UDP),
            (3, false, TCP),
            (4, false, UDP),
        ] {
            world.serve(id, &[node_port(v4, protocol)], 8080, &[0, 1], v4);
        }
        let targets: [(SocketAddr, IpAddr); 2] = [
            ((NODE_V4, NODE_PORT).into(), OUTSIDE_V4.into()),
            ((NODE_V6, NODE_PORT).into(), OUTSIDE_V6.into()),
        ];
        for (target, own) in targets {
            let answer = ask_tcp(&world.outside, target).expect("TCP from outside");
            assert_eq!(answer.seen_client.ip(), own, "{tc:?}");
            let (answer, from) = ask_udp(&world.outside, target).expect("UDP from outside");
            assert_eq!((answer.seen_client.ip(), from), (own, target), "{tc:?}");
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let world = World::new(1, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0], true);
    world.serve(2, &[cluster_ip_v6(53, UDP)], 8080, &[0], false);
    let answer = ask_tcp(&world.pods[0].ns, vip(80)).expect("hairpin");
    assert_eq!(answer.seen_client.ip(), IpAddr::from([169, 254, 1, 2]));
    ask_udp(&world.pods[0].ns, vip_v6(53)).expect("hairpin by UDP and IPv6");
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let world = World::new(1, PodSockets::ByTc);
    for (id, v4, protocol) in [
        (1, true, TCP),
        (2, true, UDP),
        (3, false, TCP),
        (4, false, UDP),
    ] {
        let cluster_ip = if v4 {
            cluster_ip(80, protocol)
        } else {
            cluster_ip_v6(80, protocol)
        };
        world.serve(id, &[cluster_ip, node_port(v4, protocol)], 8080, &[], v4);
    }
    let cases: [(&NetNs, SocketAddr); 4] = [
        (&world.pods[0].ns, vip(80)),
        (&world.pods[0].ns, vip_v6(80)),
        (&world.outside, (NODE_V4, NODE_PORT).into()),
        (&world.outside, (NODE_V6, NODE_PORT).into()),
    ];
    for (client, target) in cases {
        let error = ask_tcp(client, target).expect_err("nobody serves");
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionRefused,
            "TCP to {target}"
        );
        let error = ask_connected_udp(client, target).expect_err("nobody serves");
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionRefused,
            "UDP to {target}"
        );
    }
}

#[test]
fn the_node_itself_can_be_the_backend() {
    let world = World::new(1, PodSockets::ByTc);
    let _server = Server::start(&world.node, 6443);
    world.serve_at(
        1,
        &[cluster_ip(443, TCP), node_port(true, TCP)],
        (NODE_V4, 6443).into(),
    );
    assert_eq!(
        ask_tcp(&world.pods[0].ns, vip(443))
            .expect("from a pod")
            .server,
        "node"
    );
    let outside = ask_tcp(&world.outside, (NODE_V4, NODE_PORT).into()).expect("from outside");
    assert_eq!(
        (outside.server.as_str(), outside.seen_client.ip()),
        ("node", OUTSIDE_V4.into())
    );
    assert_eq!(
        ask_tcp(&world.node, vip(443))
            .expect("from the node")
            .server,
        "node"
    );
}

#[test]
fn pods_node_and_outside_reach_pods_directly() {
    let world = World::new(2, PodSockets::ByTc);
    let _servers = Server::start_in(&world.pods, 8080);
    let _node = Server::start(&world.node, 9090);
    world
        .outside
        .ip(&format!("route add 10.244.0.0/16 via {NODE_V4}"));
    let b: SocketAddr = (world.pods[1].v4, 8080).into();
    let b_v6: SocketAddr = (world.pods[1].v6, 8080).into();
    let a = &world.pods[0];
    assert_eq!(
        ask_tcp(&a.ns, b).expect("pod to pod").seen_client.ip(),
        a.v4
    );
    assert_eq!(
        ask_tcp(&a.ns, b_v6).expect("pod to pod").seen_client.ip(),
        a.v6
    );
    assert_eq!(ask_tcp(&world.node, b).expect("node to pod").server, "b");
    let node: SocketAddr = (NODE_V4, 9090).into();
    assert_eq!(
        ask_tcp(&a.ns, node).expect("pod to node").seen_client.ip(),
        a.v4
    );
    let seen = ask_tcp(&world.outside, b)
        .expect("outside to pod")
        .seen_client;
    assert_eq!(
        seen.ip(),
        OUTSIDE_V4,
        "a routed pod is reached as it is, and answers as itself"
    );
}

#[test]
fn what_leaves_the_cluster_is_masqueraded_with_a_port_of_its_own() {
    let world = World::new(2, PodSockets::ByTc);
    let _server = Server::start(&world.outside, 7000);
    let targets: [(SocketAddr, IpAddr); 2] = [
        ((OUTSIDE_V4, 7000).into(), NODE_V4.into()),
        ((OUTSIDE_V6, 7000).into(), NODE_V6.into()),
    ];
    for (target, node) in targets {
        let mut ports = BTreeSet::new();
        let open: Vec<_> = (0..20)
            .map(|index| {
                world.pods[index % 2].ns.run(|| {
                    let mut conversation = Conversation::open(target).expect("to the outside");
                    let seen = conversation
                        .ask("hello")
                        .unwrap_or_else(|error| panic!("{target} {index}: {error}"))
                        .seen_client;
                    assert_eq!(seen.ip(), node);
                    assert!((61_000..=65_535).contains(&seen.port()), "{seen}");
                    ports.insert(seen.port());
                    conversation
                })
            })
            .collect();
        assert_eq!(ports.len(), open.len(), "every connection has its own port");
        let (answer, from) = ask_udp(&world.pods[0].ns, target).expect("UDP to the outside");
        assert_eq!((answer.seen_client.ip(), from), (node, target));
    }
    for target in [OUTSIDE_V4.into(), OUTSIDE_V6.into()] {
        world.pods[0]
            .ns
            .ping(target)
            .expect("an ICMP echo has an identifier in place of a port");
    }
}

#[test]
fn a_service_whose_backend_is_outside_is_translated_and_masqueraded() {
    let world = World::new(1, PodSockets::ByTc);
    let _server = Server::start(&world.outside, 7000);
    world.serve_at(1, &[cluster_ip(80, TCP)], (OUTSIDE_V4, 7000).into());
    let answer = ask_tcp(&world.pods[0].ns, vip(80)).expect("both translations are undone");
    assert_eq!(
        (answer.server.as_str(), answer.seen_client.ip()),
        ("outside", NODE_V4.into())
    );
}

#[test]
fn a_node_port_with_a_remote_backend_takes_the_nodes_address() {
    let world = World::new(1, PodSockets::ByTc);
    // The second host behind the uplink is where the backend lives; the client is the first.
    let remote: SocketAddr = ([192, 0, 2, 3], 7000).into();
    world.outside.ip("addr add 192.0.2.3/24 dev eth0");
    let _server = Server::start(&world.outside, 7000);
    world.serve_at(1, &[node_port(true, TCP)], remote);
    let answer = ask_tcp(&world.outside, (NODE_V4, NODE_PORT).into()).expect("through the node");
    assert_eq!(
        (answer.server.as_str(), answer.seen_client.ip()),
        ("outside", NODE_V4.into())
    );
}

#[test]
fn a_pod_cannot_send_from_an_address_that_is_not_its_own() {
    let world = World::new(2, PodSockets::ByTc);
    let _server = Server::start(&world.pods[1].ns, 8080);
    let a = &world.pods[0];
    a.ns.ip("addr add 10.244.0.99/32 dev eth0");
    let sent = a.ns.run(|| {
        let socket = UdpSocket::bind(("10.244.0.99", 0)).expect("binding the foreign address");
        socket
            .send_to(b"hello", (world.pods[1].v4, 8080))
            .expect("sending is the pod's affair")
    });
    assert_eq!(sent, 5);
    assert_eq!(world.count("dropped-spoofed-source", "from-pod"), 1);
    ask_udp(&a.ns, (world.pods[1].v4, 8080).into()).expect("its own address works");
}

#[test]
fn datagrams_of_one_socket_stay_with_one_backend_until_it_goes() {
    for sockets in [PodSockets::ByHook, PodSockets::ByTc] {
        let world = World::new(3, sockets);
        let _servers = Server::start_in(&world.pods, 5353);
        let frontends = [cluster_ip(53, UDP)];
        world.serve(1, &frontends, 5353, &[0, 1], true);
        let client = &world.pods[2].ns;
        client.run(|| {
            let mut on_b = None;
            // Random choice: one of these sockets gets the backend that is removed below.
            for _ in 0..64 {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                let (first, _) = ask_udp_on(&socket, vip(53)).expect("an answer");
                for _ in 0..5 {
                    assert_eq!(ask_udp_on(&socket, vip(53)).expect("an answer").0, first);
                }
                if first.server == "b" {
                    on_b = Some(socket);
                    break;
                }
            }
            let socket = on_b.expect("64 random choices out of two never gave the second");
            world.remove_last_backend(1, &frontends, 2);
            let (answer, _) = ask_udp_on(&socket, vip(53)).expect("the other one answers");
            assert_eq!(answer.server, "a", "{sockets:?}");
        });
    }
}

#[test]
fn one_source_port_may_talk_to_two_services_that_share_a_backend() {
    let world = World::new(2, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 5353);
    world.serve(1, &[cluster_ip(53, UDP)], 5353, &[0], true);
    world.serve(2, &[cluster_ip(54, UDP)], 5353, &[0], true);
    world.pods[1].ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        for _ in 0..3 {
            for port in [53, 54] {
                let (_, from) = ask_udp_on(&socket, vip(port)).expect("an answer");
                assert_eq!(
                    from,
                    vip(port),
                    "each answer comes from the address that was asked"
                );
            }
        }
    });
}

#[test]
fn one_source_port_may_talk_to_a_service_and_to_its_backend() {
    let world = World::new(2, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 5353);
    let direct: SocketAddr = (world.pods[0].v4, 5353).into();
    for (id, order) in [(1, [vip(53), direct]), (2, [direct, vip(53)])] {
        let frontends = [cluster_ip(53, UDP)];
        world.serve(id, &frontends, 5353, &[0], true);
        world.pods[1].ns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let ask = |target| {
                let (_, from) = ask_udp_on(&socket, target).expect("an answer");
                assert_eq!(from, target, "the answer of who was asked: {order:?}");
            };
            for target in [order, order].concat() {
                ask(target);
            }
            // Each by itself: what is known of the one goes, and the other goes on.
            world.remove_last_backend(id, &frontends, 1);
            world.datapath().collect_garbage().expect("collecting");
            ask(direct);
        });
    }
}
