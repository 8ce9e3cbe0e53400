//! The socket hooks: translated at connect, nothing in the packets' way.

use std::collections::BTreeSet;

use windlass_datapath::types::ServiceKey;

use crate::{
    echo::{Conversation, Server, ask_tcp, ask_udp},
    world::{NODE_V4, PodSockets, TCP, UDP, VIP_V4, World, cluster_ip, cluster_ip_v6, vip, vip_v6},
};

#[test]
fn the_node_reaches_every_backend_of_a_cluster_ip() {
    let world = World::new(3, PodSockets::ByHook);
    let _servers: Vec<_> = world
        .pods
        .iter()
        .map(|pod| Server::start(&pod.ns, 8080))
        .collect();
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

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let world = World::new(1, PodSockets::ByHook);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[], true);
    let error = ask_tcp(&world.node, vip(80)).expect_err("nobody serves");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn datagrams_of_an_unconnected_socket_are_translated_both_ways() {
    let world = World::new(2, PodSockets::ByHook);
    let _servers: Vec<_> = world
        .pods
        .iter()
        .map(|pod| Server::start(&pod.ns, 5353))
        .collect();
    world.serve(1, &[cluster_ip(53, UDP)], 5353, &[0, 1], true);
    for client in [&world.node, &world.pods[0].ns] {
        let (_, from) = ask_udp(client, vip(53)).expect("the service answers");
        assert_eq!(
            from,
            vip(53),
            "the answer comes from the address that was asked"
        );
    }
}

#[test]
fn a_node_port_answers_on_node_addresses_and_the_nodes_loopback() {
    let world = World::new(1, PodSockets::ByHook);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(
        1,
        &[ServiceKey::node_port(true, 30_080, TCP)],
        8080,
        &[0],
        true,
    );
    let pod = &world.pods[0].ns;
    let on_node = (NODE_V4, 30_080).into();
    let on_loopback = ([127, 0, 0, 1], 30_080).into();
    assert_eq!(
        ask_tcp(&world.node, on_node)
            .expect("by node address")
            .server,
        "a"
    );
    assert_eq!(
        ask_tcp(&world.node, on_loopback)
            .expect("by loopback")
            .server,
        "a"
    );
    assert_eq!(ask_tcp(pod, on_node).expect("from a pod").server, "a");
    let error = ask_tcp(pod, on_loopback).expect_err("a pod's loopback is its own");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
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
    assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable);
}
