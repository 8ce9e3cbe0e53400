//! The time to live of what a node sends on past its stack: one less, and whoever sends the last is told.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv4Ttl, Ipv6RecvErr, Ipv6Ttl},
};
use windlass_datapath::types::ServiceKey;

use crate::{
    cluster::Cluster,
    echo::{PATIENCE, Server, udp_socket},
    netns::NetNs,
    way::Way,
    wire::{ACK, REDIRECT, SYN, assert_checksums, run, tcp_v4, tcp_v6},
    world::{NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, PodSockets, TCP, UDP, World},
};

const PORT: u16 = 30_080;
/// Where the time to live is in a frame, by family.
const AT: [usize; 2] = [14 + 8, 14 + 7];

#[test]
fn what_passes_a_node_grows_one_hop_older_both_ways() {
    let world = World::new(1, PodSockets::ByTc);
    for (id, v4) in [(1, true), (2, false)] {
        world.serve(id, &[ServiceKey::node_port(v4, PORT, TCP)], 8080, &[0], v4);
    }
    let pod = &world.pods[0];
    let ports = (1_000, PORT);
    let requests = [
        tcp_v4(OUTSIDE_V4, NODE_V4, ports, SYN, 0),
        tcp_v6(OUTSIDE_V6, NODE_V6, ports, SYN),
    ];
    let answers = [
        tcp_v4(pod.v4, OUTSIDE_V4, (8080, 1_000), SYN | ACK, 0),
        tcp_v6(pod.v6, OUTSIDE_V6, (8080, 1_000), SYN | ACK),
    ];
    for (family, (request, answer)) in requests.iter().zip(&answers).enumerate() {
        for (program, interface, frame) in [
            ("from_uplink", "wlout0", request),
            ("from_pod", "wlpod0", answer),
        ] {
            let (verdict, out) = run(&world, program, frame, interface);
            assert_eq!(verdict, REDIRECT, "{program}");
            assert_eq!(out[AT[family]], frame[AT[family]] - 1, "{program}");
            assert_checksums(&out);
        }
    }
}

/// What a datagram with so many hops to go meets.
fn probe(from: &NetNs, target: SocketAddr, hops: u8) -> std::io::Result<usize> {
    from.run(|| {
        let socket: UdpSocket = udp_socket(target)?;
        if target.is_ipv4() {
            setsockopt(&socket, Ipv4Ttl, &hops.into())?;
            setsockopt(&socket, Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, Ipv6Ttl, &hops.into())?;
            setsockopt(&socket, Ipv6RecvErr, &true)?;
        }
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.connect(target)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            socket.send(b"hello")?;
            match socket.recv(&mut [0; 512]) {
                // It may have been lost while neighbours were looked for.
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {}
                told => return told,
            }
        }
    })
}

/// As `traceroute` has it with kube-proxy: the node that is dialled is the first hop, the endpoint the next.
#[test]
fn a_client_that_asks_for_the_way_to_a_node_port_is_told_of_the_node() {
    let world = World::new(1, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    for (id, v4) in [(1, true), (2, false)] {
        world.serve(id, &[ServiceKey::node_port(v4, PORT, UDP)], 8080, &[0], v4);
    }
    for target in [(NODE_V4, PORT).into(), (NODE_V6, PORT).into()] {
        let told = probe(&world.outside, target, 1).expect_err("too far");
        assert_eq!(told.kind(), ErrorKind::HostUnreachable, "{target}: {told}");
        probe(&world.outside, target, 2).expect("the endpoint is one hop behind the node");
    }
    assert!(world.count("rejected-hop-limit", "from-uplink") >= 2);
}

#[test]
fn an_endpoint_on_another_node_is_one_hop_further() {
    let cluster = Cluster::new(2, 1, Way::Direct);
    let _server = Server::start(&cluster.nodes[1].pods[0].ns, 8080);
    for v4 in [true, false] {
        let backend = cluster.nodes[1].pods[0].address(v4);
        let key = ServiceKey::node_port(v4, PORT, UDP);
        cluster.nodes[0].serve(key, (backend, 8080));
        let target = SocketAddr::new(cluster.nodes[0].address(v4), PORT);
        let told = probe(&cluster.outside, target, 1).expect_err("too far");
        assert_eq!(told.kind(), ErrorKind::HostUnreachable, "{target}: {told}");
        probe(&cluster.outside, target, 4).expect("the endpoint is not far");
    }
}
