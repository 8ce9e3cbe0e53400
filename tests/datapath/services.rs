//! Service semantics by real traffic: objects as the API has them, compiled as the agent
//! does, and dialled by pods, by the node and from outside.

use std::{
    collections::{BTreeSet, HashSet},
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use serde_json::json;
use windlass_datapath::{
    GoneBackends, ServiceWrite,
    types::{Addr, MemberKey, ServiceKey, ServiceValue},
};

use crate::{
    agent::{Agent, BALANCED_V4, BALANCED_V6, NODE, NODE_PORT, OTHER, dual_spec, endpoint, spec},
    echo::{Conversation, PATIENCE, Server, ask_tcp, ask_udp, udp_socket},
    traffic_policies::By,
    world::{
        NODE_V4, NODE_V6, OUTSIDE_V4, PodSockets, TCP, UDP, VIP_V4, World, cluster_ip,
        cluster_ip_v6, vip, vip_v6,
    },
};

#[test]
fn a_host_port_answers_on_the_node_whatever_its_number() {
    const HOST_PORT: u16 = 8081;
    for sockets in [PodSockets::ByTc, PodSockets::ByHook] {
        let world = World::new(2, sockets);
        let _server = Server::start(&world.pods[0].ns, 8080);
        let any = ServiceKey::node_port(true, HOST_PORT, TCP);
        let any_v6 = ServiceKey::node_port(false, HOST_PORT, TCP);
        let one = ServiceKey::new(Addr::from(NODE_V4), HOST_PORT + 1, UDP);
        world.serve(1, &[any], 8080, &[0], true);
        world.serve(2, &[any_v6], 8080, &[0], false);
        world.serve(3, &[one], 8080, &[0], true);
        world
            .datapath()
            .set_host_ports_in_use(true)
            .expect("writing");
        let on_node: SocketAddr = (NODE_V4, HOST_PORT).into();
        for from in [&world.outside, &world.node, &world.pods[1].ns] {
            assert_eq!(ask_tcp(from, on_node).expect("a host port").server, "a");
            let v6 = (NODE_V6, HOST_PORT).into();
            assert_eq!(ask_tcp(from, v6).expect("a host port").server, "a");
            let (answer, peer) = ask_udp(from, (NODE_V4, HOST_PORT + 1).into()).expect("by UDP");
            assert_eq!((answer.server.as_str(), peer.port()), ("a", HOST_PORT + 1));
        }
        ask_tcp(&world.node, ([127, 0, 0, 1], HOST_PORT).into()).expect("on loopback");
        let error = ask_tcp(&world.pods[1].ns, ([127, 0, 0, 1], HOST_PORT).into());
        let error = error.expect_err("a pod's loopback is its own");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let seen = ask_tcp(&world.outside, on_node).expect("again").seen_client;
        assert_eq!(seen.ip(), OUTSIDE_V4, "the client's address is preserved");
        world
            .datapath()
            .set_host_ports_in_use(false)
            .expect("writing");
        let error = ask_tcp(&world.outside, on_node).expect_err("not looked up any more");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn sockets_of_a_departed_backend_are_closed_and_no_others() {
    let world = World::new(2, PodSockets::ByHook);
    let _server = Server::start(&world.pods[0].ns, 8080);
    let frontends = [cluster_ip(80, TCP)];
    let udp_frontends = [cluster_ip(53, UDP)];
    world.serve(1, &frontends, 8080, &[0], true);
    world.serve(2, &udp_frontends, 8080, &[0], true);
    let direct: SocketAddr = (world.pods[0].v4, 8080).into();
    for client in [&world.pods[1].ns, &world.node] {
        client.run(|| {
            let open = |target| TcpStream::connect_timeout(&target, PATIENCE).expect("connecting");
            let (mut by_service, mut by_address) = (open(vip(80)), open(direct));
            // As a program dials that knows IPv6 sockets only.
            let mapped = |target: SocketAddr| match target.ip() {
                IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), target.port()),
                IpAddr::V6(_) => target,
            };
            let mut by_mapped = open(mapped(vip(80)));
            let udp = |target: SocketAddr| {
                let any: IpAddr = match target {
                    SocketAddr::V4(_) => [0, 0, 0, 0].into(),
                    SocketAddr::V6(_) => [0u16; 8].into(),
                };
                let socket = UdpSocket::bind((any, 0)).expect("a socket");
                socket.connect(target).expect("connecting");
                socket
                    .set_read_timeout(Some(Duration::from_millis(100)))
                    .expect("a timeout");
                socket
            };
            let (udp_service, udp_direct) = (udp(vip(53)), udp(direct));
            let udp_mapped = udp(mapped(vip(53)));
            let unconnected = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            unconnected.send_to(b"hello", vip(53)).expect("sending");
            let gone = GoneBackends {
                members: HashSet::from([MemberKey {
                    service: 2,
                    backend: 200,
                }]),
                backends: HashSet::from([100]),
                ..GoneBackends::default()
            };
            let closed = world.node.run(|| world.datapath().close_sockets(&gone));
            assert_eq!(closed.expect("closing"), 4);
            let mut buffer = [0; 16];
            for stream in [&mut by_service, &mut by_mapped] {
                stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                let error = stream.read(&mut buffer).expect_err("closed");
                assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
            }
            for socket in [&udp_service, &udp_mapped] {
                let error = socket.recv(&mut buffer).expect_err("closed");
                assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
            }
            by_address
                .set_read_timeout(Some(Duration::from_millis(100)))
                .expect("a timeout");
            let error = by_address.read(&mut buffer).expect_err("nothing to read");
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "still open");
            udp_direct.send(b"hello").expect("still open");
            unconnected.send_to(b"hello", vip(53)).expect("still open");
        });
    }
}

#[test]
fn affinity_is_the_same_by_socket_hook_and_by_tc_and_over_all_addresses() {
    let world = World::new(4, PodSockets::ByHook);
    let _servers = Server::start_in(&world.pods[..3], 8080);
    let frontends = [
        cluster_ip(80, TCP),
        ServiceKey::node_port(true, NODE_PORT, TCP),
    ];
    world.serve_with(1, &frontends, 8080, &[0, 1, 2], true, 3_600);
    let client = &world.pods[3];
    let first = ask_tcp(&client.ns, vip(80)).expect("by socket hook").server;
    let node_port = (NODE_V4, NODE_PORT).into();
    assert_eq!(
        ask_tcp(&client.ns, node_port).expect("by NodePort").server,
        first
    );
    let index = ["a", "b", "c"].iter().position(|name| *name == first);
    let held = world.pods[index.expect("one of them")].v4;
    // Packets that passed no hook, as of a virtual machine in the pod.
    for port in 1_000..1_020 {
        let frame = crate::wire::tcp_v4(client.v4, VIP_V4, (port, 80), 0x02, 0);
        let (_, out) = crate::wire::run(&world, "from_pod", &frame, "wlpod3");
        assert_eq!(out[30..34], held.octets(), "by tc");
    }
}

#[test]
fn a_flood_of_half_open_connections_leaves_room_for_other_pods() {
    let world = World::new(3, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0], true);
    let (flooding, other) = (&world.pods[1], &world.pods[2]);
    // The table of this test has room for 8,192 connections, a sixteenth of them for one pod.
    let mut dropped = 0;
    for port in 1_000..2_000 {
        let frame = crate::wire::tcp_v4(flooding.v4, VIP_V4, (port, 80), 0x02, 0);
        let (verdict, _) = crate::wire::run(&world, "from_pod", &frame, "wlpod1");
        dropped += u64::from(verdict == 2);
    }
    assert_eq!(dropped, 1_000 - 512);
    assert_eq!(world.count("dropped-half-open-quota", "from-pod"), dropped);
    for _ in 0..20 {
        ask_tcp(&other.ns, vip(80)).expect("another pod notices nothing");
    }
    // A collection counts anew: what the flood left is still half open.
    world.datapath().collect_garbage().expect("collecting");
    let frame = crate::wire::tcp_v4(flooding.v4, VIP_V4, (3_000, 80), 0x02, 0);
    assert_eq!(crate::wire::run(&world, "from_pod", &frame, "wlpod1").0, 2);
    // Answered connections cost nothing of the quota.
    for _ in 0..600 {
        ask_tcp(&other.ns, vip(80)).expect("as many as it likes");
    }
}

#[test]
fn datagrams_larger_than_a_packet_pass_in_fragments() {
    let world = World::new(2, PodSockets::ByTc);
    world.serve(1, &[cluster_ip(53, UDP)], 5353, &[0], true);
    world.serve(2, &[cluster_ip_v6(53, UDP)], 5353, &[0], false);
    world.serve(
        3,
        &[ServiceKey::node_port(true, NODE_PORT, UDP)],
        5353,
        &[0],
        true,
    );
    let server = world.pods[0].ns.run(|| {
        let socket = UdpSocket::bind(("::", 5353)).expect("binding");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket
    });
    let targets = [
        (&world.pods[1].ns, vip(53)),
        (&world.pods[1].ns, vip_v6(53)),
        (&world.outside, (NODE_V4, NODE_PORT).into()),
    ];
    for (from, target) in targets {
        let payload: Vec<u8> = (0..6_000u32).map(|index| index as u8).collect();
        let client = from.run(|| udp_socket(target)).expect("a socket");
        client.send_to(&payload, target).expect("sending");
        let mut buffer = vec![0; 9_000];
        let (length, peer) = server.recv_from(&mut buffer).expect("the whole datagram");
        assert_eq!(buffer[..length], payload, "to {target}");
        server.send_to(&payload, peer).expect("answering");
        let (length, peer) = client.recv_from(&mut buffer).expect("the whole answer");
        assert_eq!((length, peer), (payload.len(), target));
    }
}

#[test]
fn every_node_chooses_the_same_backend_for_a_flow_from_outside() {
    let choices = || {
        let world = World::new(3, PodSockets::ByTc);
        let mut agent = Agent::new(&world);
        let endpoints: Vec<_> = world
            .pods
            .iter()
            .map(|pod| endpoint(pod.v4, NODE))
            .collect();
        agent.apply(spec("Cluster"), &endpoints);
        let mut choices = Vec::new();
        for port in 2_000..2_100 {
            let frame = crate::wire::tcp_v4(OUTSIDE_V4, NODE_V4, (port, NODE_PORT), 0x02, 0);
            let (_, out) = crate::wire::run(&world, "from_uplink", &frame, "wlout0");
            choices.push(out[30..34].to_vec());
        }
        choices
    };
    let (one, other) = (choices(), choices());
    assert_eq!(one, other, "two nodes, one choice");
    let distinct: BTreeSet<_> = one.iter().collect();
    assert_eq!(distinct.len(), 3, "and all backends have a share");
}

#[test]
fn a_path_that_is_narrower_than_the_pods_link_is_discovered_through_the_service() {
    let world = World::new(1, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve_node_port(NODE_PORT);
    world.outside.run(|| {
        let target = (NODE_V4, NODE_PORT).into();
        let mut conversation = Conversation::open(target).expect("connecting");
        conversation.ask("before").expect("an answer");
        // A router between says that the answers are too big; the backend must believe it.
        let known = world.datapath().connections().expect("listing");
        let (answer, entry) = known
            .iter()
            .find(|(key, _)| key.src == Addr::from(world.pods[0].v4))
            .expect("the answers' direction");
        let on_the_wire = entry.to;
        let (sport, dport) = (
            u16::from_be(on_the_wire.sport),
            u16::from_be(on_the_wire.dport),
        );
        let about = crate::wire::tcp_v4(NODE_V4, OUTSIDE_V4, (sport, dport), 0x10, 0);
        let error = crate::wire::too_big_v4(OTHER.into(), NODE_V4, &about);
        let (_, out) = crate::wire::run(&world, "from_uplink", &error, "wlout0");
        assert_eq!(
            out[30..34],
            world.pods[0].v4.octets(),
            "it reaches the backend"
        );
        assert_eq!(
            out[54..58],
            answer.src.octets()[12..],
            "which knows its own packet"
        );
        conversation.ask("after").expect("an answer");
    });
}

#[test]
fn whom_the_node_denies_is_dropped_by_tc_and_where_it_can_be_by_xdp() {
    let world = World::new(1, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve_node_port(NODE_PORT);
    world.outside.ip("addr add 192.0.2.3/24 dev eth0");
    let node_port: SocketAddr = (NODE_V4, NODE_PORT).into();
    ask_tcp(&world.outside, node_port).expect("nobody is denied");
    let deny = |networks: &[(IpAddr, u8)]| {
        world.node.run(|| {
            let datapath = world.datapath();
            datapath.set_denied_networks(networks).expect("writing");
        });
    };
    let attach = || {
        let attached = world.node.run(|| world.datapath().attach_uplink("wlout0"));
        attached.expect("attaching again");
    };
    let outside: [(IpAddr, u8); 1] = [(OUTSIDE_V4.into(), 32)];
    deny(&outside);
    assert!(By::Tcp.is_met_with_silence(&world.outside, node_port));
    assert!(world.count("dropped-denied", "from-uplink") > 0);
    assert_eq!(world.count("dropped-denied", "xdp"), 0);
    attach();
    assert!(By::Tcp.is_met_with_silence(&world.outside, node_port));
    assert!(world.count("dropped-denied", "xdp") > 0);
    world
        .outside
        .ip("route add 192.0.2.1/32 dev eth0 src 192.0.2.3");
    ask_tcp(&world.outside, node_port).expect("another address is not denied");
    deny(&[]);
    attach();
    world.outside.ip("route del 192.0.2.1/32 dev eth0");
    ask_tcp(&world.outside, node_port).expect("nobody is denied any more");
}

#[test]
fn xdp_applies_source_ranges_and_passes_what_it_cannot_judge() {
    const PASS: i32 = 2;
    const DROP: i32 = 1;
    const SYN: u8 = 2;
    let world = World::new(1, PodSockets::ByTc);
    let pod = &world.pods[0];
    let mut spec = dual_spec("Local");
    spec["loadBalancerSourceRanges"] = json!(["198.51.100.0/24", "2001:db8:5::/48"]);
    let endpoints = [endpoint(pod.v4, NODE), endpoint(pod.v6, NODE)];
    Agent::new(&world).apply(spec, &endpoints);
    let verdict = |frame: &[u8]| crate::wire::run(&world, "xdp_uplink", frame, "wlout0").0;
    let v4 = |from: [u8; 4], to, port| crate::wire::tcp_v4(from.into(), to, (1_000, port), SYN, 0);
    let v6 = |from: &str, to, port| {
        crate::wire::tcp_v6(from.parse().expect("an address"), to, (1_000, port), SYN)
    };
    let (stranger, known) = ([192, 0, 2, 2], [198, 51, 100, 9]);
    let (stranger_v6, known_v6) = ("2001:db8:6::9", "2001:db8:5::9");
    let refused = v4(stranger, BALANCED_V4, 80);
    for (frame, expected, what) in [
        (refused.clone(), DROP, "in no range"),
        (v6(stranger_v6, BALANCED_V6, 80), DROP, "in no range, IPv6"),
        (v4(known, BALANCED_V4, 80), PASS, "in a range"),
        (v6(known_v6, BALANCED_V6, 80), PASS, "in a range, IPv6"),
        (v4(stranger, BALANCED_V4, 81), PASS, "no service"),
        (v6(stranger_v6, BALANCED_V6, 81), PASS, "no service, IPv6"),
        (
            v4(stranger, NODE_V4, NODE_PORT),
            PASS,
            "a NodePort has none",
        ),
        (
            v6(stranger_v6, NODE_V6, NODE_PORT),
            PASS,
            "nor has one of IPv6",
        ),
    ] {
        assert_eq!(verdict(&frame), expected, "{what}");
    }
    let datapath = world.datapath();
    let denied: [(IpAddr, u8); 2] = [
        ([198, 51, 100, 9].into(), 32),
        ("2001:db8:5::".parse().expect("an address"), 64),
    ];
    world
        .node
        .run(|| datapath.set_denied_networks(&denied))
        .expect("writing");
    for (frame, expected, what) in [
        (v4(known, NODE_V4, 22), DROP, "denied, whatever it dials"),
        (v6(known_v6, NODE_V6, 22), DROP, "denied, IPv6"),
        (
            v4([198, 51, 100, 10], NODE_V4, 22),
            PASS,
            "the next address",
        ),
        (
            v6("2001:db8:5:1::9", NODE_V6, 22),
            PASS,
            "the next network, IPv6",
        ),
    ] {
        assert_eq!(verdict(&frame), expected, "{what}");
    }
    for length in 34..refused.len() {
        let verdict = verdict(&refused[..length]);
        assert_eq!(
            verdict,
            if length < 54 { PASS } else { DROP },
            "{length} octets"
        );
    }
    let mut other = refused.clone();
    other[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(verdict(&other), PASS, "LLDP");
}

#[test]
fn one_endpoints_change_among_many_is_a_handful_of_writes() {
    let world = World::new(1, PodSockets::ByTc);
    let mut agent = Agent::new(&world);
    let endpoints: Vec<_> = (1..=100u8)
        .map(|number| endpoint([10, 244, 1, number], "other-node"))
        .collect();
    agent.apply(spec("Cluster"), &endpoints);
    let started = Instant::now();
    let writes = agent.apply(spec("Cluster"), &endpoints[1..]);
    println!("{} writes in {:?}", writes.len(), started.elapsed());
    // Time is the machine's; how much there is to do is ours. Entries of the Maglev table are written as memory.
    let is_maglev = |write: &&ServiceWrite| matches!(write, ServiceWrite::PutMaglev { .. });
    let of_maglev = writes.iter().filter(is_maglev).count();
    assert!(writes.len() - of_maglev < 12, "{writes:?}");
    assert!(of_maglev < 128, "of 1,021: {of_maglev}");
    let snapshot = world.datapath().services().snapshot().expect("reading");
    let counts: BTreeSet<u32> = snapshot
        .services
        .iter()
        .filter(|(key, _)| !key.is_other_ports())
        .map(|(_, ServiceValue { count, .. })| *count)
        .collect();
    assert_eq!(counts, [99].into());
}
