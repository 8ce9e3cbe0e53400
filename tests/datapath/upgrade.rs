//! Agents that restart, are replaced by another build, or go for good, while connections live.

use std::{
    net::{SocketAddr, TcpListener},
    time::Instant,
};

use windlass_datapath::{Capacities, TcAttach, types::ServiceKey};

use crate::{
    clients::Clients,
    echo::{Conversation, Server, ask_tcp},
    netns::NetNs,
    world::{NODE_V4, PodSockets, TCP, World, cluster_ip, small, vip},
};

const NODE_PORT: u16 = 30_080;

/// Hundreds of conversations have both ends in this process.
fn raise_limit_of_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raising the limit");
}

#[test]
fn a_restart_of_the_agent_breaks_nothing() {
    let mut world = World::new(3, PodSockets::ByTc);
    let _servers = Server::start_in(&world.pods[..2], 8080);
    world.serve(
        1,
        &[
            cluster_ip(80, TCP),
            ServiceKey::node_port(true, NODE_PORT, TCP),
        ],
        8080,
        &[0, 1],
        true,
    );
    let node_port: SocketAddr = (NODE_V4, NODE_PORT).into();
    let mut open = vec![
        world
            .node
            .run(|| Conversation::open(vip(80)))
            .expect("by socket hook"),
        world.pods[2]
            .ns
            .run(|| Conversation::open(vip(80)))
            .expect("by tc"),
        world
            .outside
            .run(|| Conversation::open(node_port))
            .expect("from outside"),
    ];
    let mut before = Vec::new();
    for conversation in &mut open {
        before.push(conversation.ask("before").expect("an answer").server);
    }
    world.stop();
    for conversation in &mut open {
        conversation
            .ask("without an agent")
            .expect("the kernel goes on alone");
    }
    ask_tcp(&world.node, vip(80)).expect("new connections too, by socket hook");
    ask_tcp(&world.outside, node_port).expect("new connections too, from outside");
    world.restart();
    for (conversation, server) in open.iter_mut().zip(before) {
        assert_eq!(conversation.ask("after").expect("an answer").server, server);
    }
    assert_eq!(
        world
            .datapath()
            .services()
            .snapshot()
            .expect("reading")
            .backends
            .len(),
        2
    );
    ask_tcp(&world.pods[2].ns, vip(80)).expect("new connections after the restart");
    ask_tcp(&world.outside, node_port).expect("new connections after the restart");
}

/// Kernels before 6.6 have no TCX: filters outlive the agent by themselves.
#[test]
fn with_clsact_a_restart_replaces_the_filters_and_cleanup_removes_them() {
    let mut world = World::with_tc(2, PodSockets::ByTc, TcAttach::Clsact);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(
        1,
        &[
            cluster_ip(80, TCP),
            ServiceKey::node_port(true, NODE_PORT, TCP),
        ],
        8080,
        &[0],
        true,
    );
    let filters = |node: &NetNs| -> Vec<usize> {
        [
            "wlpod0 ingress",
            "wlpod0 egress",
            "wlout0 ingress",
            "wlout0 egress",
        ]
        .map(|hook| {
            node.tool("tc", &format!("filter show dev {hook}"))
                .matches(" handle 0x77 ")
                .count()
        })
        .to_vec()
    };
    assert_eq!(filters(&world.node), [1; 4]);
    let mut open = world.pods[1]
        .ns
        .run(|| Conversation::open(vip(80)))
        .expect("connecting");
    open.ask("before").expect("an answer");
    world.stop();
    open.ask("without an agent")
        .expect("the filters go on alone");
    world.restart();
    assert_eq!(filters(&world.node), [1; 4], "replaced, not added to");
    open.ask("after").expect("an answer");
    ask_tcp(&world.outside, (NODE_V4, NODE_PORT).into()).expect("from outside");
    let index = world.node.ifindex("wlpod1");
    let detached = world.node.run(|| world.datapath().detach_pod(index, &[]));
    detached.expect("detaching");
    assert_eq!(world.node.tool("tc", "filter show dev wlpod1 ingress"), "");
    world.clean_up();
    assert_eq!(filters(&world.node), [0; 4]);
}

#[test]
fn programs_are_replaced_under_traffic_without_a_failed_connection() {
    let mut world = World::new(2, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0], true);
    let clients = Clients::start(&[(&world.node, vip(80)), (&world.pods[1].ns, vip(80))]);
    for _ in 0..3 {
        world.restart();
    }
    let made = clients.stop();
    assert!(made > 100, "only {made} connections were made");
}

/// What 500 established connections and a stream of new ones, as many as the machine makes, notice of an
/// agent that dies, comes back, is upgraded to another layout and downgraded again: nothing.
#[test]
fn an_upgrade_to_another_layout_takes_every_connection_over() {
    raise_limit_of_files();
    // What is closed is collected only between the changes.
    let roomy = Capacities {
        conntrack: 524_288,
        ..small()
    };
    let mut world = World::with_capacities(3, roomy);
    let _servers = Server::start_in(&world.pods[..2], 8080);
    let frontends = [
        cluster_ip(80, TCP),
        ServiceKey::node_port(true, NODE_PORT, TCP),
    ];
    world.serve(1, &frontends, 8080, &[0, 1], true);
    let node_port: SocketAddr = (NODE_V4, NODE_PORT).into();
    let mut open: Vec<Conversation> = (0..500)
        .map(|index| {
            let (from, target) = match index % 3 {
                0 => (&world.node, vip(80)),
                1 => (&world.pods[2].ns, vip(80)),
                _ => (&world.outside, node_port),
            };
            from.run(|| Conversation::open(target)).expect("connecting")
        })
        .collect();
    let before: Vec<String> = open
        .iter_mut()
        .map(|conversation| conversation.ask("before").expect("an answer").server)
        .collect();
    let clients = Clients::start(&[
        (&world.node, vip(80)),
        (&world.pods[2].ns, vip(80)),
        (&world.outside, node_port),
    ]);
    let started = Instant::now();
    assert_eq!(world.layouts().len(), 1);
    for change in [
        World::restart,
        World::upgrade,
        World::upgrade,
        World::downgrade,
    ] {
        let begun = Instant::now();
        change(&mut world);
        let changed = begun.elapsed();
        let collected = world.datapath().collect_garbage();
        let collected = collected.expect("collecting what is closed");
        println!(
            "changed in {changed:?}, collected {collected:?} in {:?}",
            begun.elapsed() - changed
        );
        for conversation in &mut open {
            conversation.say("after").expect("asking");
        }
        for (conversation, server) in open.iter_mut().zip(&before) {
            let after = conversation.hear().expect("an answer").server;
            assert_eq!(after, *server);
        }
    }
    assert_eq!(
        world.layouts().len(),
        1,
        "the old state is gone: {:?}",
        world.layouts()
    );
    let made = clients.stop();
    assert!(made > 300, "only {made} connections were made");
    let rate = made as f64 / started.elapsed().as_secs_f64();
    println!("{made} new connections, {rate:.0} a second, none failed");
    let snapshot = world.datapath().services().snapshot().expect("reading");
    assert_eq!((snapshot.services.len(), snapshot.backends.len()), (2, 2));
}

#[test]
fn tables_that_are_there_keep_their_size_whatever_is_asked_for() {
    let mut world = World::new(0, PodSockets::ByTc);
    let seats = |world: &World| {
        let snapshot = world.datapath().services().snapshot();
        snapshot.expect("reading the tables").maglev.len()
    };
    let before = seats(&world);
    assert_eq!(before, small().maglev as usize);
    for maglev in [small().maglev * 2, small().maglev / 2] {
        world.restart_with(Capacities { maglev, ..small() });
        assert_eq!(seats(&world), before, "asked for {maglev}");
    }
}

#[test]
fn an_uplink_that_is_no_longer_one_is_detached() {
    let world = World::new(1, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve_node_port(NODE_PORT);
    let node_port: SocketAddr = (NODE_V4, NODE_PORT).into();
    let retain = |live: &[&str]| {
        world
            .node
            .run(|| world.datapath().retain_uplinks(live))
            .expect("detaching");
    };
    retain(&["wlout0"]);
    ask_tcp(&world.outside, node_port).expect("it still is one");
    retain(&[]);
    let error = ask_tcp(&world.outside, node_port).expect_err("the node itself does not listen");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn cleanup_leaves_no_program_behind() {
    let mut world = World::new(1, PodSockets::ByHook);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0], true);
    ask_tcp(&world.node, vip(80)).expect("the service answers");
    world.clean_up();
    // No route to the service network, and no hook that would know better.
    world.node.run(|| {
        let _listener = TcpListener::bind(("127.0.0.1", 0)).expect("the namespace still works");
        let error = Conversation::open(vip(80))
            .err()
            .expect("nothing translates any more");
        assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable);
    });
}
