//! Pods of different nodes: every way that packets can travel between them, both families.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use windlass_network::{Routing, interface::Bandwidth};

use crate::{
    bulk::there_and_back,
    cluster::{Cluster, Node, OUTSIDE_V4, OUTSIDE_V6, Pod},
    echo::{Conversation, PATIENCE, Server, ask_tcp, ask_udp},
    netns::NetNs,
    way::Way,
    world::{TCP, UDP},
};

#[test]
fn pods_and_nodes_see_each_others_own_addresses_over_three_nodes() {
    for way in Way::ALL {
        let cluster = Cluster::new(3, 1, way);
        // Everyone who can be asked, and everyone who asks: the pods and the nodes themselves.
        let places: Vec<(&NetNs, [IpAddr; 2])> = cluster
            .nodes
            .iter()
            .flat_map(|node| {
                let pod = &node.pods[0];
                [
                    (&pod.ns, [true, false].map(|v4| pod.address(v4))),
                    (&node.ns, [true, false].map(|v4| node.address(v4))),
                ]
            })
            .collect();
        let _servers: Vec<_> = places
            .iter()
            .map(|(namespace, _)| Server::start(namespace, 8080))
            .collect();
        for (from, own) in &places {
            for (to, addresses) in &places {
                for (own, address) in own.iter().zip(addresses) {
                    let case = format!("{way:?}: {} to {} {address}", from.name, to.name);
                    let target = SocketAddr::new(*address, 8080);
                    let answer = ask_tcp(from, target).unwrap_or_else(|e| panic!("{case}: {e}"));
                    assert_eq!(answer.server, to.name, "{case}");
                    assert_eq!(answer.seen_client.ip(), *own, "{case}: the source");
                    let (answer, by) =
                        ask_udp(from, target).unwrap_or_else(|e| panic!("{case}, UDP: {e}"));
                    assert_eq!(
                        (answer.server, by),
                        (to.name.clone(), target),
                        "{case}, UDP"
                    );
                    from.ping(*address)
                        .unwrap_or_else(|e| panic!("{case}, ICMP: {e}"));
                }
            }
        }
    }
}

#[test]
fn bulk_crosses_nodes_whole_and_without_fragments() {
    const SIZE: usize = 8 << 20;
    for way in Way::ALL {
        let cluster = Cluster::new(2, 1, way);
        let [a, b] = [0, 1].map(|node| &cluster.nodes[node].pods[0]);
        for v4 in [true, false] {
            let target = SocketAddr::new(b.address(v4), 9000);
            let what = format!("{way:?} v4={v4}");
            there_and_back(&a.ns, target, &b.ns, target, SIZE, &what);
        }
        for node in &cluster.nodes {
            let text = node.ns.tool("nstat", "-az IpFragCreates Ip6FragCreates");
            let made: u64 = text
                .lines()
                .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
                .sum();
            assert_eq!(made, 0, "{way:?}: fragments were made\n{text}");
        }
    }
}

/// The annotations kubernetes.io/ingress-bandwidth and egress-bandwidth, as the runtime passes them on.
#[test]
fn a_limited_pod_gets_and_sends_no_more_than_it_may() {
    const RATE: u64 = 20_000_000;
    const SIZE: usize = 3 << 20;
    // What it takes at that rate, less what may come as a burst before.
    let least = Duration::from_secs_f64((SIZE as f64 - 2e5) * 8.0 / RATE as f64);
    let mut cluster = Cluster::new(2, 2, Routing::Direct);
    let bandwidth = Bandwidth {
        ingress_rate: RATE,
        egress_rate: RATE,
        ingress_burst: u64::from(u32::MAX),
        egress_burst: u64::from(u32::MAX),
    };
    cluster.nodes[0].add_limited_pod(7, bandwidth);
    for (round, v4) in [
        ("as made, by IPv4", true),
        ("after a restart of the agent, by IPv6", false),
    ] {
        let [node, other] = [0, 1].map(|node| &cluster.nodes[node]);
        let limited = &node.pods[2];
        for neighbour in [&node.pods[0], &other.pods[0]] {
            for (from, to, way) in [(neighbour, limited, "to"), (limited, neighbour, "from")] {
                let took = transfer(&from.ns, &to.ns, (to.address(v4), 9000).into(), SIZE);
                assert!(
                    took > least,
                    "{round}, {way} it: {took:?}, at least {least:?}"
                );
                // A loaded machine may take longer; a limit that is far too low takes for ever.
                assert!(took < least * 30, "{round}, {way} it: {took:?}");
            }
        }
        let (one, two) = (&node.pods[0], &other.pods[0]);
        let target = (two.address(v4), 9000).into();
        // One that is fast shows that nothing limits it; a slow one, that the machine is busy.
        let fast = (0..10).any(|_| transfer(&one.ns, &two.ns, target, SIZE) < least);
        assert!(fast, "others are limited");
        // Services reach it as any other.
        let server = Server::start(&limited.ns, 8080);
        other.node_port(30_080, TCP, (limited.address(v4), 8080));
        let target = SocketAddr::new(other.address(v4), 30_080);
        let answer = ask_tcp(&cluster.outside, target).expect("by a NodePort");
        assert_eq!(answer.server, limited.ns.name);
        drop(server);
        cluster.restart(0);
    }
}

/// Sends so many bytes over one connection; returns how long that took until the last was received.
fn transfer(from: &NetNs, to: &NetNs, target: SocketAddr, size: usize) -> Duration {
    let listener = to.run(|| TcpListener::bind(target).expect("binding"));
    let sink = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        std::io::copy(&mut stream, &mut std::io::sink()).expect("reading")
    });
    let begun = Instant::now();
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE).expect("connecting");
        stream.write_all(&vec![7; size]).expect("writing");
    });
    assert_eq!(sink.join().expect("the sink"), size as u64);
    begun.elapsed()
}

#[test]
fn pods_get_the_mtu_of_the_way_to_other_nodes() {
    for way in Way::ALL {
        let mtu = way.mtu();
        let cluster = Cluster::new(2, 1, way);
        let [a, b] = [0, 1].map(|node| &cluster.nodes[node].pods[0]);
        let shown = a.ns.tool("ip", "link show eth0");
        assert!(shown.contains(&format!("mtu {mtu} ")), "{way:?}: {shown}");
        // A pod that believes in more is told by the path.
        a.ns.ip("link set eth0 mtu 2000");
        for (v4, headers) in [(true, 28), (false, 48)] {
            let target = SocketAddr::new(b.address(v4), 9000);
            let own = SocketAddr::new(a.address(v4), 0);
            a.ns.run(|| {
                let socket = UdpSocket::bind(own).expect("a socket");
                socket.connect(target).expect("connecting");
                let deadline = Instant::now() + PATIENCE;
                let learnt = || a.ns.tool("ip", &format!("route get {}", target.ip()));
                while !learnt().contains(&format!(" mtu {mtu} ")) {
                    assert!(Instant::now() < deadline, "{way:?}: {}", learnt());
                    // Refused by the pod's own stack once it knows.
                    let _ = socket.send(&vec![0; mtu - headers + 1]);
                }
            });
        }
    }
}

#[test]
fn a_node_port_reaches_a_backend_on_another_node() {
    for way in Way::ALL {
        let cluster = Cluster::new(2, 1, way);
        let backend = &cluster.nodes[1].pods[0];
        let _server = Server::start(&backend.ns, 8080);
        for (v4, outside) in [(true, IpAddr::V4(OUTSIDE_V4)), (false, OUTSIDE_V6.into())] {
            let node = &cluster.nodes[0];
            node.node_port(30_080, TCP, (backend.address(v4), 8080));
            let target = SocketAddr::new(node.address(v4), 30_080);
            let case = format!("{way:?} {target}");
            let answer =
                ask_tcp(&cluster.outside, target).unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(answer.server, backend.ns.name, "{case}");
            // The answers must come back the same way, so the node asks in its own name.
            assert_eq!(
                answer.seen_client.ip(),
                node.address(v4),
                "{case}, from {outside}"
            );
            // A backend on the other node's own network.
            let other = &cluster.nodes[1];
            let host = Server::start(&other.ns, 8081);
            node.node_port(30_080, TCP, (other.address(v4), 8081));
            let answer =
                ask_tcp(&cluster.outside, target).unwrap_or_else(|e| panic!("{case}, host: {e}"));
            assert_eq!(answer.server, other.ns.name, "{case}");
            drop(host);
            node.node_port(30_080, TCP, (backend.address(v4), 8080));
            // A pod and a node elsewhere, and the node itself.
            for from in [
                &cluster.nodes[1].ns,
                &backend.ns,
                &node.ns,
                &node.pods[0].ns,
            ] {
                let answer = ask_tcp(from, target)
                    .unwrap_or_else(|e| panic!("{case} by {}: {e}", from.name));
                assert_eq!(answer.server, backend.ns.name, "{case} by {}", from.name);
            }
            node.node_port(30_081, UDP, (backend.address(v4), 8080));
            let target = SocketAddr::new(node.address(v4), 30_081);
            let (answer, by) =
                ask_udp(&cluster.outside, target).unwrap_or_else(|e| panic!("{case}, UDP: {e}"));
            assert_eq!(
                (answer.server, by),
                (backend.ns.name.clone(), target),
                "{case}, UDP"
            );
        }
    }
}

#[test]
fn the_way_to_a_node_follows_its_pod_cidrs_and_ends_with_it() {
    for way in Way::ALL {
        let mut cluster = Cluster::new(2, 1, way);
        let mut peers = cluster.peers();
        let both = |pod: &Pod| [true, false].map(|v4| SocketAddr::new(pod.address(v4), 8080));
        let asked = both(&cluster.nodes[1].pods[0]);
        let server = Server::start(&cluster.nodes[1].pods[0].ns, 8080);
        let node = &cluster.nodes[0];
        let ask = |node: &Node, targets: [SocketAddr; 2], what: &str| {
            for target in targets {
                ask_tcp(&node.pods[0].ns, target)
                    .unwrap_or_else(|error| panic!("{way:?}, {target}, {what}: {error}"));
            }
        };
        ask(node, asked, "the way is there");

        // The Node is gone: its ranges lead nowhere in the cluster, and no route of ours stays.
        let own = vec![peers[0].clone()];
        node.follow(&own);
        for family in ["-4", "-6"] {
            let routes = node
                .ns
                .tool("ip", &format!("{family} route show proto 119"));
            let count = routes.lines().count();
            assert_eq!(count, 1, "{way:?}: only the own range\n{routes}");
        }
        node.follow(&peers);
        ask(node, asked, "the way is there again");
        drop(server);

        // It comes back with other ranges.
        peers[1].pod_cidrs = ["10.244.77.0/24", "fd00:244:0:77::/64"]
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .to_vec();
        for (node, peer) in cluster.nodes.iter_mut().zip(&peers) {
            node.peer = peer.clone();
        }
        cluster.restart(1);
        cluster.nodes[0].follow(&peers);
        let pod = cluster.nodes[1].add_pod(7);
        let moved = both(pod);
        let expected = ["10.244.77.2", "fd00:244:0:77::2"];
        assert_eq!(moved.map(|it| it.ip().to_string()), expected);
        let _server = Server::start(&pod.ns, 8080);
        ask(&cluster.nodes[0], moved, "the new range");
        for (family, gone) in [("-4", "10.244.1.0/24"), ("-6", "fd00:244:0:1::/64")] {
            let list = format!("{family} route show proto 119");
            let routes = cluster.nodes[0].ns.tool("ip", &list);
            assert!(!routes.contains(gone), "{way:?}: {routes}");
        }
    }
}

#[test]
fn another_plugins_routes_to_the_same_pods_are_in_use_when_ours_are_not() {
    let cluster = Cluster::new(2, 1, Routing::Direct);
    let peers = cluster.peers();
    let [node, other] = [0, 1].map(|node| &cluster.nodes[node]);
    let only_itself = &peers[..1];
    node.follow(only_itself);
    let theirs = [IpAddr::V4(OUTSIDE_V4), OUTSIDE_V6.into()];
    for (cidr, gateway) in peers[1].pod_cidrs.iter().zip(theirs) {
        node.ns.ip(&format!("route add {cidr} via {gateway}"));
    }
    for (round, followed) in [(0, only_itself), (1, &peers[..]), (2, only_itself)] {
        node.follow(followed);
        for (v4, theirs) in [true, false].into_iter().zip(theirs) {
            let expected = if round == 1 {
                other.address(v4)
            } else {
                theirs
            };
            let get = format!("route get {}", other.pods[0].address(v4));
            let way = node.ns.tool("ip", &get);
            assert!(way.contains(&format!(" via {expected} ")), "{round}: {way}");
        }
    }
}

/// A node that is cut off takes nothing with it: the others reach each other as before, and it is back when its cable is.
#[test]
fn a_node_that_is_cut_off_is_missed_by_nobody_else() {
    for way in Way::ALL {
        let mut cluster = Cluster::new(3, 1, way);
        let _servers: Vec<_> = (cluster.nodes.iter())
            .map(|node| Server::start(&node.pods[0].ns, 8080))
            .collect();
        let target = |cluster: &Cluster, node: usize, v4| {
            SocketAddr::new(cluster.nodes[node].pods[0].address(v4), 8080)
        };
        let mut open: Vec<Conversation> = [true, false]
            .map(|v4| {
                let target = target(&cluster, 1, v4);
                let from = &cluster.nodes[0].pods[0].ns;
                from.run(|| Conversation::open(target).expect("connecting"))
            })
            .into();
        let mut away: Vec<Conversation> = [true, false]
            .map(|v4| {
                let target = target(&cluster, 2, v4);
                let from = &cluster.nodes[0].pods[0].ns;
                from.run(|| Conversation::open(target).expect("connecting"))
            })
            .into();
        for conversation in &mut away {
            conversation.ask("hello").expect("an answer before");
        }
        cluster.nodes[2].set_cable(&cluster.outside, 2, false);
        // The agents that are left start again without having heard of it, and of its end.
        for round in ["cut off", "after a restart", "its Node is gone"] {
            for conversation in &mut open {
                conversation
                    .ask(round)
                    .unwrap_or_else(|error| panic!("{way:?}, {round}: {error}"));
            }
            for (v4, from, to) in [(true, 0, 1), (false, 0, 1), (true, 1, 0), (false, 1, 0)] {
                ask_tcp(&cluster.nodes[from].pods[0].ns, target(&cluster, to, v4))
                    .unwrap_or_else(|error| panic!("{way:?}, {round}, v4={v4}: {error}"));
            }
            match round {
                "cut off" => cluster.restart(0),
                _ => {
                    let left = &cluster.peers()[..2];
                    (0..2).for_each(|node| cluster.nodes[node].follow(left));
                }
            }
        }
        cluster.nodes[2].set_cable(&cluster.outside, 2, true);
        let peers = cluster.peers();
        cluster.nodes.iter().for_each(|node| node.follow(&peers));
        for conversation in &mut away {
            conversation
                .ask("are you back")
                .unwrap_or_else(|error| panic!("{way:?}: an old connection: {error}"));
        }
    }
}

#[test]
fn an_address_that_no_pod_has_is_refused_at_once() {
    let cluster = Cluster::new(2, 1, Routing::Direct);
    let nobody = SocketAddr::from(([10, 244, 1, 200], 8080));
    let from = &cluster.nodes[0].pods[0].ns;
    let error = ask_tcp(from, nobody).expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
}

#[test]
fn a_connection_between_nodes_outlives_both_agents() {
    for way in Way::ALL {
        let mut cluster = Cluster::new(2, 1, way);
        let _server = Server::start(&cluster.nodes[1].pods[0].ns, 8080);
        let target = SocketAddr::new(cluster.nodes[1].pods[0].address(true), 8080);
        let mut conversation = cluster.nodes[0].pods[0]
            .ns
            .run(|| Conversation::open(target).expect("connecting"));
        conversation.ask("hello").expect("an answer");
        for node in 0..2 {
            cluster.restart(node);
            conversation
                .ask("still there")
                .unwrap_or_else(|e| panic!("{way:?}: after the restart of {node}: {e}"));
        }
    }
}

#[test]
fn pods_that_run_go_on_in_the_other_routing_mode() {
    let mut cluster = Cluster::new(2, 1, Routing::Direct);
    for (routing, mtu) in [(Routing::Vxlan, 1_450), (Routing::Direct, 1_500)] {
        for node in 0..2 {
            cluster.nodes[node].routing = routing;
            cluster.restart(node);
        }
        let [a, b] = [0, 1].map(|node| &cluster.nodes[node].pods[0]);
        let _server = Server::start(&b.ns, 8080);
        ask_tcp(&a.ns, (b.address(true), 8080).into())
            .unwrap_or_else(|error| panic!("{routing:?}: {error}"));
        let shown = a.ns.tool("ip", "link show eth0");
        assert!(
            shown.contains(&format!("mtu {mtu} ")),
            "{routing:?}: {shown}"
        );
        let tunnels = cluster.nodes[0].ns.tool("ip", "link show type vxlan");
        assert_eq!(tunnels.is_empty(), routing == Routing::Direct, "{tunnels}");
    }
}

#[test]
fn what_leaves_the_cluster_is_masqueraded_and_nothing_else() {
    for way in Way::ALL {
        let cluster = Cluster::new(2, 1, way);
        let _server = Server::start(&cluster.outside, 8080);
        for (v4, outside) in [(true, IpAddr::V4(OUTSIDE_V4)), (false, OUTSIDE_V6.into())] {
            let node = &cluster.nodes[0];
            let answer = ask_tcp(&node.pods[0].ns, (outside, 8080).into())
                .unwrap_or_else(|error| panic!("{way:?} to {outside}: {error}"));
            assert_eq!(answer.seen_client.ip(), node.address(v4), "{way:?}");
        }
    }
}

/// Whoever reaches a node's tunnel port can write any inner packet: its source must be behind the node that
/// the outer packet comes from.
#[test]
fn a_forged_source_does_not_come_out_of_the_tunnel() {
    for way in [Way::Vxlan, Way::VxlanOverIpv6] {
        forge(way);
    }
}

fn forge(way: Way) {
    let cluster = Cluster::new(2, 1, way);
    // Outer packets.
    let (is_v4, any) = match way {
        Way::VxlanOverIpv6 => (false, "[::]:0"),
        _ => (true, "0.0.0.0:0"),
    };
    let node = &cluster.nodes[1];
    let pod = &node.pods[0];
    let receiver = pod.ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:7000").expect("binding");
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .expect("a timeout");
        socket
    });
    let dropped = || node.count("dropped-spoofed-source", "from-uplink");
    let IpAddr::V4(target) = pod.address(true) else {
        unreachable!("asked for IPv4")
    };
    // The outside is no node: it speaks for a pod of the other node, and for one of this node.
    for (number, forged) in [[10, 244, 0, 2], [10, 244, 1, 2]].into_iter().enumerate() {
        let packet = vxlan(forged, target.octets(), 7000);
        cluster.outside.run(|| {
            let socket = UdpSocket::bind(any).expect("a socket");
            let tunnel = SocketAddr::new(node.address(is_v4), 8472);
            socket.send_to(&packet, tunnel).expect("sending");
        });
        assert!(
            receiver.recv(&mut [0; 64]).is_err(),
            "{way:?}: {forged:?} came through"
        );
        assert_eq!(dropped(), number as u64 + 1, "{way:?}: {forged:?}");
    }
    // The same from the node where that pod is.
    let packet = vxlan([10, 244, 0, 2], target.octets(), 7000);
    cluster.nodes[0].ns.run(|| {
        let socket = UdpSocket::bind(any).expect("a socket");
        let tunnel = SocketAddr::new(node.address(is_v4), 8472);
        socket.send_to(&packet, tunnel).expect("sending");
    });
    receiver
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout");
    let mut buffer = [0; 64];
    let length = receiver
        .recv(&mut buffer)
        .expect("an honest one comes through");
    assert_eq!(&buffer[..length], b"hello");
}

/// A VXLAN header, and in it an Ethernet frame with an IPv4 UDP datagram that says hello.
fn vxlan(source: [u8; 4], target: [u8; 4], port: u16) -> Vec<u8> {
    let mut packet = vec![0x08, 0, 0, 0, 0, 0, 1, 0];
    packet.extend([0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00]);
    let payload = b"hello";
    let total = 20 + 8 + payload.len() as u16;
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(source);
    header.extend(target);
    let mut sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend(header);
    packet.extend(7001_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend((8 + payload.len() as u16).to_be_bytes());
    // No checksum.
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}
