//! The socket hooks: translated at connect, nothing in the packets' way.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use windlass_datapath::{
    GoneBackends,
    types::{MemberKey, ServiceKey},
};

use crate::{
    echo::{Conversation, PATIENCE, Server, ask_connected_udp, ask_tcp, ask_udp, udp_socket},
    world::{
        NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, PodSockets, TCP, UDP, VIP_V4, World, cluster_ip,
        cluster_ip_v6, small, vip, vip_v6,
    },
};

#[test]
fn the_node_reaches_every_backend_of_a_cluster_ip() {
    let world = World::new(3, PodSockets::ByHook);
    let _servers = Server::start_in(&world.pods, 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0, 1, 2], true);

    let seen: BTreeSet<_> = (0..60)
        .map(|_| {
            ask_tcp(&world.node, vip(80))
                .expect("the service answers")
                .server
        })
        .collect();
    assert_eq!(seen, BTreeSet::from(["a", "b", "c"].map(String::from)));
    assert_eq!(
        world.datapath().connections().expect("listing"),
        [],
        "no packet was translated"
    );
}

#[test]
fn a_client_sees_the_address_that_it_dialled_as_its_peer() {
    let world = World::new(1, PodSockets::ByHook);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0], true);
    world.node.run(|| {
        let mut conversation = Conversation::open(vip(80)).expect("connecting");
        conversation.ask("hello").expect("an answer");
        assert_eq!(conversation.peer(), vip(80));
    });
}

/// TCP and UDP of both families.
fn serve_all(world: &World, pods: &[usize]) {
    world.serve(1, &[cluster_ip(80, TCP)], 8080, pods, true);
    world.serve(2, &[cluster_ip(80, UDP)], 8080, pods, true);
    world.serve(3, &[cluster_ip_v6(80, TCP)], 8080, pods, false);
    world.serve(4, &[cluster_ip_v6(80, UDP)], 8080, pods, false);
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let world = World::new(1, PodSockets::ByHook);
    serve_all(&world, &[]);
    for client in [&world.node, &world.pods[0].ns] {
        for target in [vip(80), vip_v6(80)] {
            for refused in [
                ask_tcp(client, target).map(drop),
                ask_udp(client, target).map(drop),
                ask_connected_udp(client, target).map(drop),
            ] {
                let error = refused.expect_err("nobody serves");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{target}");
            }
        }
    }
}

#[test]
fn datagrams_of_both_kinds_of_sockets_are_translated_both_ways() {
    let world = World::new(2, PodSockets::ByHook);
    let _servers = Server::start_in(&world.pods, 8080);
    serve_all(&world, &[0, 1]);
    for client in [&world.node, &world.pods[0].ns] {
        for target in [vip(80), vip_v6(80)] {
            let (_, from) = ask_udp(client, target).expect("the service answers");
            assert_eq!(from, target, "who answers is who was asked");
            let peer = ask_connected_udp(client, target).expect("the service answers");
            assert_eq!(peer, target, "and the peer of who is connected");
        }
    }
    let tracked = world.datapath().connections().expect("listing");
    assert!(
        tracked.iter().all(|(_, entry)| entry.service == 0),
        "no packet was translated: {tracked:?}"
    );
}

/// Sockets of which something is remembered.
fn remembered(world: &World) -> usize {
    let pin = MapData::from_pin(world.pinned("SOCKET_REVERSE")).expect("the pinned map");
    let map: HashMap<_, [u8; 32], [u8; 28]> = Map::LruHashMap(pin).try_into().expect("a hash map");
    map.keys().filter(Result::is_ok).count()
}

#[test]
fn what_is_remembered_of_a_socket_goes_with_it_and_stays_while_it_is_open() {
    let world = World::new(1, PodSockets::ByHook);
    let _server = Server::start(&world.pods[0].ns, 8080);
    serve_all(&world, &[0]);
    world.node.run(|| {
        let targets = [vip(80), vip_v6(80)];
        let open = targets.map(|target| {
            let mut conversation = Conversation::open(target).expect("connecting");
            conversation.ask("hello").expect("an answer");
            conversation
        });
        let datagrams = targets.map(|target| {
            let socket = udp_socket(target).expect("a socket");
            socket.connect(target).expect("connecting");
            socket
        });
        // Far more than there is room for, one after the other.
        for number in 0..2 * small().sockets as usize {
            let target = targets[number % 2];
            let socket = udp_socket(target).expect("a socket");
            match number % 4 {
                0 | 1 => socket.connect(target).expect("connecting"),
                _ => drop(socket.send_to(b"", target).expect("sending")),
            }
        }
        for number in 0..50 {
            let mut short = Conversation::open(targets[number % 2]).expect("connecting");
            short.ask("hello").expect("an answer");
        }
        let deadline = Instant::now() + PATIENCE;
        while remembered(&world) != 4 {
            assert!(Instant::now() < deadline, "{} sockets", remembered(&world));
            std::thread::park_timeout(Duration::from_millis(5));
        }
        for ((tcp, udp), target) in open.iter().zip(&datagrams).zip(targets) {
            assert_eq!(tcp.peer(), target);
            assert_eq!(udp.peer_addr().expect("a peer"), target);
        }
        // And so it is known whom the end of a backend concerns.
        let gone = GoneBackends {
            backends: [100, 300].into(),
            members: [200, 400]
                .map(|backend| MemberKey {
                    service: backend / 100,
                    backend,
                })
                .into(),
            ..GoneBackends::default()
        };
        let closed = world.datapath().close_sockets(&gone).expect("closing");
        assert_eq!(closed, 4);
    });
}

#[test]
fn a_node_port_answers_on_node_addresses_and_the_nodes_loopback() {
    const PORT: u16 = 30_080;
    let world = World::new(1, PodSockets::ByHook);
    let _server = Server::start(&world.pods[0].ns, 8080);
    for (id, v4, protocol) in [
        (1, true, TCP),
        (2, true, UDP),
        (3, false, TCP),
        (4, false, UDP),
    ] {
        let frontend = ServiceKey::node_port(v4, PORT, protocol);
        world.serve(id, &[frontend], 8080, &[0], v4);
    }
    let pod = &world.pods[0].ns;
    let pairs: [[IpAddr; 2]; 2] = [
        [NODE_V4.into(), Ipv4Addr::LOCALHOST.into()],
        [NODE_V6.into(), Ipv6Addr::LOCALHOST.into()],
    ];
    for [address, loopback] in pairs {
        let (on_node, on_loopback) = ((address, PORT).into(), (loopback, PORT).into());
        for (client, target) in [
            (&world.node, on_node),
            (&world.node, on_loopback),
            (pod, on_node),
        ] {
            assert_eq!(ask_tcp(client, target).expect("by TCP").server, "a");
            let (answer, from) = ask_udp(client, target).expect("by UDP");
            assert_eq!((answer.server.as_str(), from), ("a", target));
        }
        // Nowhere in particular is the caller itself.
        let nowhere: IpAddr = match address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let nowhere = (nowhere, PORT).into();
        ask_tcp(&world.node, nowhere).expect("the node's loopback");
        for target in [on_loopback, nowhere] {
            let error = ask_tcp(pod, target).expect_err("a pod's loopback is its own");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{target}");
        }
    }
}

#[test]
fn a_socket_that_has_been_connected_to_another_since_is_not_closed() {
    let world = World::new(2, PodSockets::ByHook);
    let _servers = Server::start_in(&world.pods, 8080);
    world.serve(1, &[cluster_ip(80, UDP)], 8080, &[0], true);
    world.serve(2, &[cluster_ip(81, UDP)], 8080, &[1], true);
    world.node.run(|| {
        let socket = udp_socket(vip(80)).expect("a socket");
        for target in [vip(80), vip(81)] {
            socket.connect(target).expect("connecting");
            assert_eq!(socket.peer_addr().expect("a peer"), target);
        }
        let gone = GoneBackends {
            members: [MemberKey {
                service: 1,
                backend: 100,
            }]
            .into(),
            ..GoneBackends::default()
        };
        let closed = world.datapath().close_sockets(&gone).expect("closing");
        assert_eq!(closed, 0);
        socket.send(b"hello").expect("sending");
        socket.recv(&mut [0; 512]).expect("the other one answers");
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let world = World::new(1, PodSockets::ByHook);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0], true);
    assert_eq!(
        ask_tcp(&world.pods[0].ns, vip(80)).expect("hairpin").server,
        "a"
    );
}

#[test]
fn ipv6_works_alike_and_ipv4_over_an_ipv6_socket_too() {
    let world = World::new(1, PodSockets::ByHook);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(1, &[cluster_ip_v6(80, TCP)], 8080, &[0], false);
    world.serve(2, &[cluster_ip(80, TCP)], 8080, &[0], true);
    assert_eq!(ask_tcp(&world.node, vip_v6(80)).expect("IPv6").server, "a");
    let mapped = (VIP_V4.to_ipv6_mapped(), 80).into();
    assert_eq!(ask_tcp(&world.node, mapped).expect("mapped").server, "a");
}

#[test]
fn sockets_of_a_namespace_that_is_no_client_are_left_alone() {
    let world = World::new(1, PodSockets::ByHook);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0], true);
    // The outside has no route to the service network and shares our cgroup.
    let error = ask_tcp(&world.outside, vip(80)).expect_err("not translated");
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
}

/// Host ports may be any, and the kernel hands such a one to a socket that dials out.
#[test]
fn a_socket_of_the_host_that_drew_a_host_port_hears_what_it_is_answered() {
    let world = World::new(2, PodSockets::ByTc);
    let _pods = Server::start_in(&world.pods, 8080);
    let _outside = Server::start(&world.outside, 7000);
    let drawn = 40_000..=40_001;
    for v4 in [true, false] {
        let keys = drawn
            .clone()
            .map(|port| ServiceKey::node_port(v4, port, TCP));
        let keys: Vec<_> = keys.collect();
        world.serve(1 + u32::from(v4), &keys, 8080, &[0], v4);
    }
    let datapath = world.datapath();
    datapath.set_host_ports_in_use(true).expect("writing");
    world.node.sysctl("ipv4/ip_local_port_range", "40000 40001");
    let pod = &world.pods[1];
    for (target, server) in [
        (SocketAddr::from((OUTSIDE_V4, 7000)), "outside"),
        ((OUTSIDE_V6, 7000).into(), "outside"),
        ((pod.v4, 8080).into(), "b"),
        ((pod.v6, 8080).into(), "b"),
    ] {
        let answer = ask_tcp(&world.node, target);
        let answer = answer.unwrap_or_else(|error| panic!("{target}: {error}"));
        assert_eq!(answer.server, server);
        assert!(drawn.contains(&answer.seen_client.port()), "{answer:?}");
    }
    for node in [IpAddr::from(NODE_V4), NODE_V6.into()] {
        let answer = ask_tcp(&world.outside, (node, 40_000).into());
        assert_eq!(answer.expect("the host port serves").server, "a");
    }
}
