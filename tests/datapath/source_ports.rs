//! A node whose source ports towards a destination are all taken.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
};

use windlass_datapath::types::ServiceKey;

use crate::{
    agent::{NODE_PORT, OTHER},
    echo::{Conversation, Server},
    world::{NODE_V4, NODE_V6, OUTSIDE_V6, TCP, World},
};

/// As with netfilter, whose packets without a port to spare are dropped: the client's next try may find one.
#[test]
fn without_a_source_port_new_connections_wait_and_old_ones_live_on() {
    const ONLY: u16 = 61_000;
    let world = World::with_source_ports(1, (ONLY, ONLY));
    world.outside.ip("addr add 192.0.2.3/24 dev eth0");
    let _server = Server::start(&world.outside, 7000);
    let node_port = ServiceKey::node_port(true, NODE_PORT, TCP);
    world.serve_at(1, &[node_port], (IpAddr::from(OTHER), 7000).into());
    // By way of the node to a backend elsewhere, and from a pod to the outside.
    let by_node_port = (&world.outside, (NODE_V4, NODE_PORT).into());
    let by_masquerade = (&world.pods[0].ns, (OUTSIDE_V6, 7000).into());
    let dropped = |hook| world.count("dropped-ports-exhausted", hook);
    for ((from, target), hook, node) in [
        (
            by_node_port,
            "from-uplink",
            SocketAddr::from((NODE_V4, ONLY)),
        ),
        (by_masquerade, "to-uplink", (NODE_V6, ONLY).into()),
    ] {
        let open = || from.run(|| Conversation::open(target));
        let mut first = open().expect("the first has the port");
        let answer = first.ask("hello").expect("an answer");
        assert_eq!(answer.seen_client, node);
        thread::scope(|scope| {
            // Its packets are repeated ever more seldom: on a machine that is busy, not often enough for one try.
            let next = scope.spawn(|| (0..6).find_map(|_| open().ok()));
            while dropped(hook) == 0 {
                thread::yield_now();
            }
            assert_eq!(first.ask("and on").expect("it lives on"), answer);
            // The port is the next one's when both sides have ended this.
            drop(first);
            let next = next.join().expect("a client");
            let mut next = next.unwrap_or_else(|| panic!("{target} stays silent"));
            assert_eq!(next.ask("hello").expect("an answer"), answer);
        });
    }
}
