//! A table of connections that is small, and nobody who collects: what is over makes room by itself.

use std::net::{SocketAddr, UdpSocket};

use aya::maps::{HashMap, Map, MapData};
use windlass_datapath::{
    Capacities,
    types::{ServiceKey, connection},
};

use crate::{
    agent::NODE_PORT,
    echo::{Conversation, Server, ask_tcp, ask_udp_on, udp_socket},
    stream::{ShortServer, Stream, ask_shortly},
    world::{NODE_V4, TCP, UDP, World, cluster_ip, cluster_ip_v6, small, vip, vip_v6},
};

/// Entries, two a connection.
const ROOM: u32 = 2_048;

/// Two pods that serve: conversations on port 80, short connections on 81, nobody on 82; by TCP of both
/// families and by UDP, for pods and the outside.
fn world() -> (World, Vec<Server>, Vec<ShortServer>) {
    let world = World::with_capacities(
        3,
        Capacities {
            conntrack: ROOM,
            ..small()
        },
    );
    let servers = Server::start_in(&world.pods[..2], 8080);
    let short = world.pods[..2].iter();
    let short = short.map(|pod| ShortServer::start(&pod.ns, 8081)).collect();
    let node_port = ServiceKey::node_port(true, NODE_PORT, TCP);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0, 1], true);
    world.serve(2, &[cluster_ip(81, TCP), node_port], 8081, &[0, 1], true);
    world.serve(3, &[cluster_ip_v6(81, TCP)], 8081, &[0, 1], false);
    world.serve(4, &[cluster_ip(82, TCP)], 9_999, &[0, 1], true);
    world.serve(5, &[cluster_ip(80, UDP)], 8080, &[0, 1], true);
    (world, servers, short)
}

fn refused_for_want_of_room(world: &World) -> u64 {
    ["from-pod", "from-uplink"]
        .iter()
        .map(|hook| world.count("dropped-conntrack-full", hook))
        .sum()
}

#[test]
fn more_connections_than_the_table_holds_pass_while_the_agent_is_away() {
    let (mut world, _servers, _short) = world();
    let client = &world.pods[2].ns;
    let mut open: Vec<Conversation> = (0..100)
        .map(|_| {
            client
                .run(|| Conversation::open(vip(80)))
                .expect("connecting")
        })
        .collect();
    for conversation in &mut open {
        conversation.ask("before").expect("an answer");
    }
    world.stop();
    // A pod may wait for 64 answers: refusals are answers.
    let client = &world.pods[2].ns;
    for _ in 0..200 {
        let error = ask_tcp(client, vip(82)).expect_err("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    let outside: SocketAddr = (NODE_V4, NODE_PORT).into();
    let dialling = [
        (client, vip(81)),
        (client, vip_v6(81)),
        (&world.outside, outside),
    ];
    let stream = Stream::start(&dialling, 3_000);
    stream.wait_for(3 * ROOM as usize);
    let (made, rate) = stream.stop();
    println!(
        "{made} connections, {rate:.0} a second, in a table for {}",
        ROOM / 2
    );
    for conversation in &mut open {
        conversation.ask("after").expect("it was never over");
    }
    world.restart();
    assert_eq!(refused_for_want_of_room(&world), 0);
    for conversation in &mut open {
        conversation
            .ask("with an agent")
            .expect("it was never over");
    }
}

/// Puts the last packet of every datagrams' connection so many seconds back.
fn age_datagrams(world: &World, seconds: u32) -> usize {
    // Of both ways between two ends.
    const CREATED_AND_LAST_SEEN: [usize; 4] = [60, 44, 128, 112];
    let pin = MapData::from_pin(world.pinned("CONNTRACK")).expect("the pinned map");
    let mut map: HashMap<_, [u8; 40], [u8; 136]> =
        Map::HashMap(pin).try_into().expect("a hash map");
    let held: Vec<_> = map.iter().collect::<Result<_, _>>().expect("reading");
    let datagrams = held.into_iter().filter(|(key, _)| key[36] == UDP);
    let mut aged = 0;
    for (key, mut value) in datagrams {
        for at in CREATED_AND_LAST_SEEN {
            let octets = value[at..at + 4].try_into().expect("four octets");
            let then = u32::from_ne_bytes(octets);
            let then = then.saturating_sub(seconds).max(then.min(1));
            value[at..at + 4].copy_from_slice(&then.to_ne_bytes());
        }
        map.insert(key, value, 0).expect("writing");
        aged += 1;
    }
    aged
}

#[test]
fn datagrams_make_room_when_their_time_is_over_and_not_before() {
    let (world, _servers, _short) = world();
    let client = &world.pods[2].ns;
    let talks: Vec<UdpSocket> = client.run(|| {
        let talk = |_| {
            let socket = udp_socket(vip(80)).expect("a socket");
            socket.connect(vip(80)).expect("connecting");
            ask_udp_on(&socket, vip(80)).expect("there is room");
            socket
        };
        // Hardly any room is left.
        (0..ROOM / 2 - 8).map(talk).collect()
    });
    // Nothing of it is over, whatever room is wanted.
    let held: Vec<Conversation> = client.run(|| {
        let open = |_| Conversation::open(vip(80)).expect("eight places were left");
        (0..4).map(open).collect()
    });
    assert_eq!(held.len(), 4);
    let streams = |world: &World| {
        let entries = world.datapath().connections().expect("listing");
        let of_udp = entries.iter().filter(|(key, _)| key.protocol == UDP);
        of_udp
            .filter(|(_, it)| it.flags & connection::ORIGINAL != 0)
            .count()
    };
    assert_eq!(streams(&world), talks.len(), "none was pushed out");
    assert_eq!(age_datagrams(&world, 31), talks.len() * 2);
    for _ in 0..ROOM {
        client
            .run(|| ask_shortly(vip(81)))
            .expect("what is over makes room");
    }
    assert_eq!(refused_for_want_of_room(&world), 0);
    assert!(streams(&world) < talks.len() / 2, "{}", streams(&world));
}
