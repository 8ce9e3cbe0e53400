//! How clients inside the cluster are spread over the backends, and what is counted of it.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use windlass_datapath::types::{connection, service_flags};

use crate::{
    echo::{Conversation, PATIENCE, Server, ask_tcp, ask_udp},
    netns::NetNs,
    world::{PodSockets, TCP, UDP, World, cluster_ip, vip},
};

const WAYS: [PodSockets; 2] = [PodSockets::ByHook, PodSockets::ByTc];

fn world(sockets: PodSockets) -> (World, Vec<Server>) {
    let world = World::new(4, sockets);
    let servers = world.pods.iter();
    let servers = servers.map(|pod| Server::start(&pod.ns, 8080)).collect();
    (world, servers)
}

/// Who answered so many connections.
fn shares(client: &NetNs, connections: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..connections {
        let answer = ask_tcp(client, vip(80)).expect("an answer");
        *shares.entry(answer.server).or_default() += 1;
    }
    shares
}

#[test]
fn round_robin_gives_each_backend_the_same() {
    for sockets in WAYS {
        let (world, _servers) = world(sockets);
        let backends = [0, 1, 2];
        world.serve_by(
            service_flags::ROUND_ROBIN,
            1,
            cluster_ip(80, TCP),
            8080,
            &backends,
        );
        world.serve_by(
            service_flags::ROUND_ROBIN,
            2,
            cluster_ip(53, UDP),
            8080,
            &backends,
        );
        let client = &world.pods[3].ns;
        let shares = shares(client, 30);
        assert!(
            shares.len() == 3 && shares.values().all(|share| *share == 10),
            "{shares:?}"
        );
        let mut answers: Vec<_> = (0..6)
            .map(|_| ask_udp(client, vip(53)).expect("an answer").0.server)
            .collect();
        assert_ne!(answers[0], answers[1], "{sockets:?}");
        answers.sort();
        answers.dedup();
        assert_eq!(answers.len(), 3, "{sockets:?}: UDP");
    }
}

#[test]
fn least_connections_prefers_who_has_fewer_and_sees_them_end() {
    for sockets in WAYS {
        let (world, _servers) = world(sockets);
        let serve = |pods: &[usize]| {
            let by = service_flags::LEAST_CONNECTIONS;
            world.serve_by(by, 1, cluster_ip(80, TCP), 8080, pods);
        };
        let client = &world.pods[3].ns;
        let open = |count: usize| -> Vec<(String, Conversation)> {
            let mut opened = Vec::new();
            for _ in 0..count {
                let mut conversation = client.run(|| Conversation::open(vip(80))).expect("open");
                let answer = conversation.ask("hello").expect("an answer");
                opened.push((answer.server, conversation));
            }
            opened
        };
        serve(&[0]);
        let first = open(8);
        // All of the next go to the other one, until it has as many.
        serve(&[0, 1]);
        let second = open(8);
        assert!(
            second.iter().all(|(server, _)| server == "b"),
            "{sockets:?}"
        );
        // Both sides end the first ones; then there is room at theirs.
        drop(first);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let entries = world.datapath().connections().expect("the table");
            let open = entries
                .iter()
                .filter(|(_, entry)| entry.flags & connection::ORIGINAL != 0)
                .filter(|(_, entry)| !connection::is_closed(entry.flags))
                .count();
            if open == 8 {
                break;
            }
            assert!(Instant::now() < deadline, "{sockets:?}: {open} are open");
            thread::park_timeout(Duration::from_millis(10));
        }
        world.datapath().collect_garbage().expect("collecting");
        let third = open(8);
        assert!(third.iter().all(|(server, _)| server == "a"), "{sockets:?}");
        // Even, and it stays so.
        let fourth = open(8);
        let to_a = fourth.iter().filter(|(server, _)| server == "a").count();
        assert_eq!(to_a, 4, "{sockets:?}");
    }
}

#[test]
fn by_client_each_client_has_one_backend_whatever_way_it_goes() {
    let chosen = WAYS.map(|sockets| {
        let (world, _servers) = world(sockets);
        world.serve_by(
            service_flags::BY_CLIENT,
            1,
            cluster_ip(80, TCP),
            8080,
            &[0, 1],
        );
        [2, 3].map(|client| {
            let shares = shares(&world.pods[client].ns, 12);
            assert_eq!(shares.len(), 1, "{sockets:?}: {shares:?}");
            shares.into_keys().next()
        })
    });
    assert_eq!(chosen[0], chosen[1], "hook and tc agree");
}

#[test]
fn what_goes_through_a_service_is_counted() {
    for sockets in WAYS {
        let (world, _servers) = world(sockets);
        world.serve(7, &[cluster_ip(80, TCP)], 8080, &[0, 1], true);
        shares(&world.pods[3].ns, 5);
        // Packets as they pass; what the hook has connected when it ends, and only what it said.
        let asked = 5 * "hello\n".len() as u64;
        let least = match sockets {
            PodSockets::ByTc => 5 * 200,
            PodSockets::ByHook => asked,
        };
        let deadline = Instant::now() + PATIENCE;
        let counted = loop {
            let traffic = world.datapath().traffic().expect("the counters");
            let [(7, counted)] = traffic[..] else {
                panic!("{sockets:?}: {traffic:?}");
            };
            if counted.request_bytes >= least && counted.reply_bytes >= least {
                break counted;
            }
            assert!(Instant::now() < deadline, "{sockets:?}: {counted:?}");
            thread::park_timeout(Duration::from_millis(5));
        };
        assert_eq!(counted.connections, 5, "{sockets:?}");
        if sockets == PodSockets::ByHook {
            // TCP counts its SYN and FIN as well.
            let most = asked + 2 * 5;
            assert!(counted.request_bytes <= most, "{counted:?}");
        }
        world.datapath().forget_traffic(&[7]).expect("forgetting");
        assert_eq!(world.datapath().traffic().expect("the counters"), []);
    }
}

#[test]
fn connections_are_counted_while_they_are_open() {
    for sockets in WAYS {
        let (world, _servers) = world(sockets);
        world.serve(7, &[cluster_ip(80, TCP)], 8080, &[0, 1], true);
        let client = &world.pods[3].ns;
        let open = || {
            let datapath = world.datapath();
            datapath.collect_garbage().expect("collecting");
            datapath.open_connections()
        };
        assert_eq!(open(), []);
        let dial = |_| {
            client
                .run(|| Conversation::open(vip(80)))
                .expect("connecting")
        };
        let mut conversations: Vec<Conversation> = (0..5).map(dial).collect();
        assert_eq!(open(), [(7, 5)], "{sockets:?}");
        conversations.truncate(2);
        let deadline = Instant::now() + PATIENCE;
        while open() != [(7, 2)] {
            assert!(Instant::now() < deadline, "{sockets:?}: {:?}", open());
            thread::park_timeout(Duration::from_millis(5));
        }
    }
}
