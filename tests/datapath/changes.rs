//! Services that change while clients talk to them: by real traffic, in both families, by hook, by tc and from outside.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
};

use serde_json::{Value, json};
use windlass_datapath::types::{Connection, ServiceKey, Tuple, connection};

use crate::{
    agent::{Agent, BALANCED_V4, BALANCED_V6, NODE_PORT, dual_spec},
    echo::{Conversation, PATIENCE, Server, ask_tcp, ask_udp_on, udp_socket},
    netns::NetNs,
    stream::{ShortServer, Stream},
    traffic_policies::{By, families, here, route_balanced},
    world::{OUTSIDE_V4, Pod, PodSockets, TCP, UDP, VIP_V4, VIP_V6, World, vip},
};

/// Conversations by every way that there is to a Service: of a pod, of the node, and of a client outside.
fn everybody(world: &World, client: &Pod) -> Vec<(String, Conversation)> {
    let mut open = Vec::new();
    for [cluster_ip, node_port, balanced, _] in families() {
        let ways: [(&NetNs, &[SocketAddr]); 3] = [
            (&client.ns, &[cluster_ip, node_port, balanced]),
            (&world.node, &[cluster_ip, node_port, balanced]),
            (&world.outside, &[node_port, balanced]),
        ];
        for (from, targets) in ways {
            for target in targets {
                let way = format!("{} to {target}", from.name);
                let conversation = from.run(|| Conversation::open(*target));
                let conversation = conversation.unwrap_or_else(|error| panic!("{way}: {error}"));
                open.push((way, conversation));
            }
        }
    }
    go_on(&mut open, "at first");
    open
}

fn go_on(open: &mut [(String, Conversation)], when: &str) {
    for (way, conversation) in open {
        let answer = conversation.ask("hello");
        assert!(answer.is_ok(), "{way} {when}: {answer:?}");
    }
}

/// One world after the other, whose pods dial in each of both ways.
fn worlds(pods: usize) -> impl Iterator<Item = (PodSockets, World)> {
    let ways = [PodSockets::ByHook, PodSockets::ByTc].into_iter();
    ways.map(move |sockets| {
        let world = World::new(pods, sockets);
        route_balanced(&world);
        (sockets, world)
    })
}

/// The Service, whose endpoint is the first pod.
fn serving(world: &World) -> Agent<'_> {
    let mut agent = Agent::new(world);
    agent.apply(dual_spec("Cluster"), &here(&world.pods[0]));
    agent
}

fn addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.v4.into(), pod.v6.into()]
}

/// As with kube-proxy, which leaves netfilter's entries of TCP alone.
#[test]
fn connections_outlive_their_service_and_end_with_their_pod() {
    for (sockets, world) in worlds(2) {
        let (server, client) = (&world.pods[0], &world.pods[1]);
        let _server = Server::start(&server.ns, 8080);
        let mut agent = serving(&world);
        let mut open = everybody(&world, client);
        let datagrams: Vec<UdpSocket> = families()
            .map(|[target, ..]| {
                client.ns.run(|| {
                    let socket = udp_socket(target).expect("a socket");
                    socket.connect(target).expect("connecting");
                    socket.send(b"hello").expect("sending");
                    socket.recv(&mut [0; 512]).expect("an answer");
                    socket
                })
            })
            .into();

        agent.remove();
        go_on(&mut open, "after its Service");
        agent.told_of_pods(&addresses(server));
        // An agent that comes back finds them in the kernel.
        agent = Agent::new(&world);
        agent.told_of_pods(&addresses(server));
        go_on(&mut open, "after a restart");
        assert_eq!(agent.unlisted(), 2, "one of each family");
        // Datagrams are nobody's any more.
        if sockets == PodSockets::ByHook {
            for socket in &datagrams {
                let told = socket.recv(&mut [0; 512]);
                let kind = told.expect_err("it was closed").kind();
                assert_eq!(kind, ErrorKind::ConnectionAborted);
            }
        }
        let connections = world.datapath().connections().expect("listing");
        let left = |protocol| {
            let of_service = |entry: &&(Tuple, Connection)| entry.1.service != 0;
            let all = connections.iter().filter(of_service);
            all.filter(|(key, _)| key.protocol == protocol).count()
        };
        assert_eq!(left(UDP), 0);
        assert!(left(TCP) > 0);

        agent.told_of_pods(&[]);
        // All at once: some hear nothing, and wait for as long as a conversation may.
        thread::scope(|scope| {
            for (way, conversation) in &mut open {
                scope.spawn(move || {
                    let answer = conversation.ask("still there?");
                    assert!(answer.is_err(), "{way} after its pod: {answer:?}");
                });
            }
        });
        assert_eq!(agent.unlisted(), 0);
    }
}

/// TCP at one port, and UDP.
fn ports(name: &str, number: u16) -> Value {
    json!([
        {"name": name, "port": number, "nodePort": NODE_PORT},
        {"name": "udp", "port": 80, "nodePort": NODE_PORT, "protocol": "UDP"},
    ])
}

#[test]
fn ports_change_their_names_numbers_and_targets_under_connections() {
    for (_, world) in worlds(2) {
        let (server, client) = (&world.pods[0], &world.pods[1]);
        let _servers = [8080, 9090].map(|port| Server::start(&server.ns, port));
        let mut agent = serving(&world);
        let here = here(server);
        let mut open = everybody(&world, client);
        let mut spec = dual_spec("Cluster");

        spec["ports"] = ports("http", 80);
        agent.apply(spec.clone(), &here);
        go_on(&mut open, "after a new name");
        open.extend(everybody(&world, client));

        spec["ports"] = ports("http", 81);
        agent.apply(spec.clone(), &here);
        go_on(&mut open, "after a new number");
        for [old, node_port, ..] in families() {
            let new = SocketAddr::new(old.ip(), 81);
            for from in [&client.ns, &world.node] {
                ask_tcp(from, new).expect("the new number");
                assert_eq!(By::Tcp.error(from, old), ErrorKind::ConnectionRefused);
            }
            ask_tcp(&world.outside, node_port).expect("the node port stays");
        }

        spec["ports"] = ports("http", 80);
        agent.target = 9090;
        agent.apply(spec.clone(), &here);
        go_on(&mut open, "after a new target");
        let mut newer = everybody(&world, client);
        let entries = world.datapath().connections().expect("listing");
        let goes_to = |port: u16| {
            let mut opened = entries.iter().filter(|(key, entry)| {
                entry.flags & connection::ORIGINAL != 0 && key.protocol == TCP
            });
            opened.any(|(_, entry)| u16::from_be(entry.to.dport) == port)
        };
        assert!(goes_to(8080) && goes_to(9090));

        spec["ports"] = json!([{"name": "udp", "port": 80, "protocol": "UDP"}]);
        agent.apply(spec, &here);
        go_on(&mut open, "after the port");
        go_on(&mut newer, "after the port");
        for [target, ..] in families() {
            assert_eq!(
                By::Tcp.error(&client.ns, target),
                ErrorKind::ConnectionRefused
            );
            By::Udp
                .ask(&client.ns, target)
                .expect("the other port stays");
        }
    }
}

/// SingleStack to PreferDualStack and back. The family of a Service's first address stays, and an address that it gives
/// up is nobody's.
#[test]
fn a_service_that_changes_its_families_answers_by_those_it_has() {
    for (sockets, world) in worlds(2) {
        let (server, client) = (&world.pods[0], &world.pods[1]);
        let _server = Server::start(&server.ns, 8080);
        let here = here(server);
        let mut agent = Agent::new(&world);
        for first in [0, 1] {
            let families = families();
            let of = |wanted: &[usize]| {
                let mut spec = dual_spec("Cluster");
                let own = spec["clusterIPs"].take();
                let own: Vec<Value> = wanted.iter().map(|family| own[family].clone()).collect();
                spec["clusterIP"] = own[0].clone();
                spec["clusterIPs"] = own.into();
                spec
            };
            let serves = |family: usize, when: &str| {
                let [cluster_ip, node_port, ..] = families[family];
                for (from, target) in [
                    (&client.ns, cluster_ip),
                    (&world.node, cluster_ip),
                    (&world.outside, node_port),
                ] {
                    for by in By::ALL {
                        let answer = by.ask(from, target);
                        assert!(answer.is_ok(), "{target} {when}, {sockets:?}: {answer:?}");
                    }
                }
            };
            let other = 1 - first;
            agent.apply(of(&[first]), &here);
            serves(first, "at first");
            let [_, other_node_port, ..] = families[other];
            let refused = || {
                let error = By::Tcp.error(&world.outside, other_node_port);
                assert_eq!(error, ErrorKind::ConnectionRefused, "{other_node_port}");
            };
            refused();
            let target = families[first][0];
            let conversation = client.ns.run(|| Conversation::open(target));
            let mut open = vec![(target.to_string(), conversation.expect("connecting"))];
            agent.apply(of(&[first, other]), &here);
            serves(first, "beside another");
            serves(other, "as the second");
            let target = families[other][0];
            let conversation = client.ns.run(|| Conversation::open(target));
            open.push((target.to_string(), conversation.expect("connecting")));
            go_on(&mut open, "with both");
            agent.apply(of(&[first]), &here);
            serves(first, "alone again");
            refused();
            go_on(&mut open, "with one");
            let held = world.datapath().services().snapshot().expect("reading");
            let has = |key: &ServiceKey| held.services.iter().any(|(it, _)| it == key);
            let keys = [
                ServiceKey::new(VIP_V4.into(), 80, TCP),
                ServiceKey::new(VIP_V6.into(), 80, TCP),
            ];
            assert!(has(&keys[first]) && !has(&keys[other]));
            agent.remove();
        }
    }
}

#[test]
fn an_address_that_another_service_gets_is_that_ones_at_once() {
    for (_, world) in worlds(3) {
        let client = &world.pods[2];
        let _servers = Server::start_in(&world.pods[..2], 8080);
        let mut agent = serving(&world);
        let mut open = everybody(&world, client);
        let unconnected: Vec<_> = families()
            .map(|[target, ..]| {
                client.ns.run(|| {
                    let socket = udp_socket(target).expect("a socket");
                    let (answer, _) = ask_udp_on(&socket, target).expect("an answer");
                    assert_eq!(answer.server, "a");
                    (socket, target)
                })
            })
            .into();

        agent.remove();
        agent.apply_to("next", dual_spec("Cluster"), &here(&world.pods[1]));
        for [target, node_port, ..] in families() {
            for by in By::ALL {
                for (from, target) in [
                    (&client.ns, target),
                    (&world.node, target),
                    (&world.outside, node_port),
                ] {
                    assert_eq!(by.servers(from, target), ["b".to_owned()].into());
                }
            }
        }
        for (socket, target) in &unconnected {
            let (answer, peer) = ask_udp_on(socket, *target).expect("an answer");
            assert_eq!((answer.server.as_str(), peer), ("b", *target));
        }
        go_on(&mut open, "after another got its address");
    }
}

/// What kube-proxy's users know as a stale entry: the client's first datagrams left before there was a Service.
#[test]
fn datagrams_that_came_before_their_service_find_it() {
    let world = World::new(2, PodSockets::ByTc);
    world
        .node
        .ip(&format!("route add default via {OUTSIDE_V4}"));
    let (server, client) = (&world.pods[0], &world.pods[1]);
    let _server = Server::start(&server.ns, 8080);
    client.ns.run(|| {
        let socket = udp_socket(vip(80)).expect("a socket");
        socket.send_to(b"early", vip(80)).expect("sending");
        Agent::new(&world).apply(dual_spec("Cluster"), &here(server));
        world.datapath().collect_garbage().expect("collecting");
        let (answer, peer) = ask_udp_on(&socket, vip(80)).expect("an answer");
        assert_eq!((answer.server.as_str(), peer), ("a", vip(80)));
    });
}

/// Those of statsd's clients: nobody answers that would notice.
#[test]
fn datagrams_that_nobody_answers_follow_their_service_to_no_endpoint_and_back() {
    for (sockets, world) in worlds(3) {
        let receivers = [0, 1].map(|pod: usize| {
            let bind = || UdpSocket::bind(("::", 8080)).expect("binding");
            let socket = world.pods[pod].ns.run(bind);
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            socket
        });
        let mut agent = serving(&world);
        let client = &world.pods[2].ns;
        let senders: Vec<(UdpSocket, SocketAddr)> = families()
            .into_iter()
            .flat_map(|[cluster_ip, node_port, balanced, _]| {
                [
                    (client, cluster_ip),
                    (client, node_port),
                    (&world.node, cluster_ip),
                    (&world.outside, node_port),
                    (&world.outside, balanced),
                ]
            })
            .map(|(from, target)| (from.run(|| udp_socket(target)).expect("a socket"), target))
            .collect();
        let send = |number: usize| {
            let (socket, target) = &senders[number];
            // A refusal is told to who sends by a hook.
            drop(socket.send_to(&[number as u8], target));
        };
        let arrive = |receiver: &UdpSocket| {
            for (number, (_, target)) in senders.iter().enumerate() {
                send(number);
                let mut octet = [0];
                let got = receiver.recv(&mut octet);
                assert!(got.is_ok(), "{target}, {sockets:?}");
                assert_eq!(usize::from(octet[0]), number, "{sockets:?}");
            }
        };
        arrive(&receivers[0]);
        agent.apply(dual_spec("Cluster"), &[]);
        (0..senders.len()).for_each(send);
        agent.apply(dual_spec("Cluster"), &here(&world.pods[1]));
        arrive(&receivers[1]);
        receivers[0].set_nonblocking(true).expect("setting");
        let more = receivers[0]
            .recv(&mut [0])
            .expect_err("nothing came while there was none");
        assert_eq!(more.kind(), ErrorKind::WouldBlock, "{sockets:?}");
    }
}

/// What a Service of each type answers by.
#[test]
fn a_service_that_changes_its_type_answers_by_what_that_has() {
    for (_, world) in worlds(2) {
        let (server, client) = (&world.pods[0], &world.pods[1]);
        let _server = Server::start(&server.ns, 8080);
        let mut agent = serving(&world);
        let here = here(server);
        let mut open = everybody(&world, client);
        for (kind, answers) in [
            ("NodePort", 2),
            ("ClusterIP", 1),
            ("headless", 0),
            ("NodePort", 2),
            ("LoadBalancer", 3),
            ("ExternalName", 0),
            ("LoadBalancer", 3),
        ] {
            let spec = match kind {
                "ExternalName" => json!({"type": kind, "externalName": "example.org"}),
                "headless" => {
                    json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]})
                }
                _ => {
                    let mut spec = dual_spec("Cluster");
                    spec["type"] = kind.into();
                    if kind == "ClusterIP" {
                        let ports = spec["ports"].as_array_mut().expect("ports");
                        for port in ports {
                            port.as_object_mut().expect("a port").remove("nodePort");
                        }
                    }
                    spec
                }
            };
            agent.apply(spec, &here);
            go_on(&mut open, kind);
            let held = world.datapath().services().snapshot().expect("reading");
            let frontends = [
                [
                    ServiceKey::new(VIP_V4.into(), 80, TCP),
                    ServiceKey::new(VIP_V6.into(), 80, TCP),
                ],
                [true, false].map(|v4| ServiceKey::node_port(v4, NODE_PORT, TCP)),
                [
                    ServiceKey::new(BALANCED_V4.into(), 80, TCP),
                    ServiceKey::new(BALANCED_V6.into(), 80, TCP),
                ],
            ];
            for (number, keys) in frontends.iter().enumerate() {
                for key in keys {
                    let is_held = held.services.iter().any(|(it, _)| it == key);
                    assert_eq!(is_held, number < answers, "{kind}: {key:?}");
                }
            }
            for by in By::ALL {
                for [cluster_ip, node_port, balanced, _] in families() {
                    let dialled = [cluster_ip, node_port, balanced];
                    for target in &dialled[..answers] {
                        by.ask(&client.ns, *target).expect(kind);
                        by.ask(&world.node, *target).expect(kind);
                    }
                    for target in dialled[..answers].iter().skip(1) {
                        by.ask(&world.outside, *target).expect(kind);
                    }
                }
            }
            // The node has the port to itself again.
            if answers < 2 {
                for [_, node_port, ..] in families() {
                    assert_eq!(
                        By::Tcp.error(&world.outside, node_port),
                        ErrorKind::ConnectionRefused
                    );
                }
            }
        }
    }
}

#[test]
fn policies_and_affinity_that_flip_are_noticed_by_nobody_who_can_be_served() {
    for (_, world) in worlds(2) {
        let (server, client) = (&world.pods[0], &world.pods[1]);
        let _server = ShortServer::start(&server.ns, 8080);
        let mut agent = serving(&world);
        let here = here(server);
        let dialling: Vec<_> = families()
            .into_iter()
            .flat_map(|[cluster_ip, node_port, balanced, _]| {
                [
                    (&client.ns, cluster_ip),
                    (&world.node, cluster_ip),
                    (&world.outside, node_port),
                    (&world.outside, balanced),
                ]
            })
            .collect();
        let stream = Stream::start(&dialling, 2_000);
        for round in 0..64 {
            let choose = |bit: u32, one: &'static str, other: &'static str| {
                if round >> bit & 1 == 0 { one } else { other }
            };
            let mut spec = dual_spec(choose(0, "Local", "Cluster"));
            spec["internalTrafficPolicy"] = choose(1, "Cluster", "Local").into();
            spec["sessionAffinity"] = choose(2, "ClientIP", "None").into();
            agent.apply(spec, &here);
            stream.wait_for(dialling.len());
        }
        stream.stop();
    }
}
