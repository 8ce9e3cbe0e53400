//! Agents that restart, are replaced by another build, or go for good, while connections live.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    thread,
    time::Instant,
};

use windlass_datapath::{Capacities, TcAttach, types::ServiceKey};

use crate::{
    agent_process::AgentProcess,
    clients::Clients,
    echo::{Conversation, Server, ask_tcp, ask_udp_on, udp_socket},
    netns::NetNs,
    newer,
    stream::{ShortServer, Stream},
    world::{
        NODE_V4, NODE_V6, PodSockets, TCP, UDP, World, cluster_ip, cluster_ip_v6, small, vip,
        vip_v6,
    },
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

/// What 500 established connections, 60 conversations by datagrams and a stream of new connections notice of an
/// agent that is killed, at rest and at any moment of its start, comes back, is upgraded to another layout and
/// downgraded again: nothing. By cluster address and node port, in both families, by socket hook and tc.
#[test]
fn connections_notice_nothing_of_agents_that_are_killed_upgraded_and_downgraded() {
    println!("{}", survive(600, 300, 3));
}

/// At the rate of which issues are written.
#[test]
#[ignore = "the rate needs a machine with nothing else to do"]
fn two_thousand_connections_a_second_notice_nothing_either() {
    println!("{}", survive(2_000, 2_000, 8));
}

/// Conversations that are open all the time.
struct Open {
    tcp: Vec<(Conversation, String)>,
    udp: Vec<(UdpSocket, String)>,
}

impl Open {
    fn new(dialling: &[(&NetNs, SocketAddr)]) -> Self {
        let dial = || dialling.iter().cycle();
        let tcp = dial().take(500).map(|(from, target)| {
            let mut tcp = from
                .run(|| Conversation::open(*target))
                .expect("connecting");
            let server = tcp.ask("before").expect("an answer").server;
            (tcp, server)
        });
        let udp = dial().take(60).map(|(from, target)| {
            let socket = from.run(|| udp_socket(*target)).expect("a socket");
            socket.connect(*target).expect("connecting");
            let server = ask_udp_on(&socket, *target).expect("an answer").0.server;
            (socket, server)
        });
        Self {
            tcp: tcp.collect(),
            udp: udp.collect(),
        }
    }

    /// All of them go on with the server that they had.
    fn check(&mut self, when: &str) {
        for (tcp, _) in &mut self.tcp {
            tcp.say(when)
                .unwrap_or_else(|error| panic!("{when}: {error}"));
        }
        for (tcp, server) in &mut self.tcp {
            let answer = tcp.hear().unwrap_or_else(|error| panic!("{when}: {error}"));
            assert_eq!(answer.server, *server, "{when}");
        }
        for (udp, server) in &self.udp {
            let target = udp.peer_addr().expect("it is connected");
            // A datagram may be lost, as one that meets an entry which is being copied is; two are not.
            let answer = ask_udp_on(udp, target).or_else(|_| ask_udp_on(udp, target));
            let (answer, _) = answer.unwrap_or_else(|error| panic!("{when}: {error}"));
            assert_eq!(answer.server, *server, "{when}");
        }
    }
}

/// Port 80 by TCP and UDP, for conversations, and port 81, for short ones.
fn serve_both_families(world: &World) {
    for (id, v4) in [(1, true), (4, false)] {
        let cluster_ip = if v4 { cluster_ip } else { cluster_ip_v6 };
        let node_port = |port, protocol| ServiceKey::node_port(v4, port, protocol);
        let serve = |id, port, protocol, target| {
            let frontends = [
                cluster_ip(port, protocol),
                node_port(NODE_PORT + port, protocol),
            ];
            world.serve(id, &frontends, target, &[0, 1], v4);
        };
        serve(id, 80, TCP, 8080);
        serve(id + 1, 80, UDP, 8080);
        serve(id + 2, 81, TCP, 8081);
    }
}

/// Those who dial: the node by socket hook, a pod by tc, and somebody outside.
struct Dialling {
    node: NetNs,
    pod: NetNs,
    outside: NetNs,
}

impl Dialling {
    fn of(world: &World) -> Self {
        Self {
            node: world.node.another(),
            pod: world.pods[2].ns.another(),
            outside: world.outside.another(),
        }
    }

    fn to(&self, port: u16) -> [(&NetNs, SocketAddr); 6] {
        [
            (&self.node, vip(port)),
            (&self.node, vip_v6(port)),
            (&self.pod, vip(port)),
            (&self.pod, vip_v6(port)),
            (&self.outside, (NODE_V4, NODE_PORT + port).into()),
            (&self.outside, (NODE_V6, NODE_PORT + port).into()),
        ]
    }
}

/// Two pods that serve and one that dials, with room for all their connections.
fn busy() -> World {
    let capacities = Capacities {
        conntrack: 32_768,
        ..small()
    };
    World::with_capacities(3, capacities)
}

/// Says how many connections there were. `at_least` so many pass between one event and the next; so many times an
/// agent is killed while it starts.
fn survive(per_second: u32, at_least: usize, kills: u32) -> String {
    raise_limit_of_files();
    let mut world = busy();
    let _servers = Server::start_in(&world.pods[..2], 8080);
    let short = world.pods[..2].iter();
    let _short: Vec<_> = short.map(|pod| ShortServer::start(&pod.ns, 8081)).collect();
    serve_both_families(&world);
    let dialling = Dialling::of(&world);
    let mut open = Open::new(&dialling.to(80));
    // From here on the agent is a process.
    world.stop();
    let begun = Instant::now();
    let mut agent = AgentProcess::start(&world).ready();
    let takes = begun.elapsed();
    let stream = Stream::start(&dialling.to(81), per_second);
    let mut check = |when: &str| {
        stream.wait_for(at_least);
        open.check(when);
    };
    for (what, layout) in [
        ("restart", 0),
        ("upgrade", 1),
        ("downgrade", -1),
        ("upgrade again", 1),
    ] {
        agent.kill();
        check(&format!("away before the {what}"));
        world.change_layout(layout);
        for part in 1..=kills {
            let starting = AgentProcess::start(&world);
            thread::park_timeout(takes * part / (kills + 1));
            starting.kill();
            if part == kills / 2 + 1 && layout != 0 {
                // What was broken off is taken back for good, before it is tried again.
                world.change_layout(-layout);
                AgentProcess::start(&world).ready().kill();
                check(&format!("the {what} was taken back"));
                world.change_layout(layout);
            }
        }
        check(&format!("killed during the {what}"));
        agent = AgentProcess::start(&world).ready();
        check(&format!("after the {what}"));
        assert_eq!(world.layouts().len(), 1, "{:?}", world.layouts());
    }
    let (made, rate) = stream.stop();
    agent.kill();
    world.restart();
    let snapshot = world.datapath().services().snapshot().expect("reading");
    assert_eq!((snapshot.services.len(), snapshot.backends.len()), (12, 12));
    format!("{made} new connections, {rate:.0} a second, none failed; a start takes {takes:?}")
}

/// Back from a build that this one cannot know: nobody has told the older one anything yet.
#[test]
fn what_a_newer_build_leaves_is_taken_over() {
    raise_limit_of_files();
    let mut world = busy();
    let _servers = Server::start_in(&world.pods[..2], 8080);
    serve_both_families(&world);
    let dialling = Dialling::of(&world);
    let mut open = Open::new(&dialling.to(80));
    for _ in 0..2 {
        world.stop();
        newer::leave(&mut world);
        world.restart();
        open.check("back from a newer build");
        for (from, target) in dialling.to(80) {
            ask_tcp(from, target).unwrap_or_else(|error| panic!("{target}: {error}"));
        }
        assert_eq!(world.layouts().len(), 1, "{:?}", world.layouts());
        let link = world.pinned("links").join("of-tomorrow");
        assert!(!link.exists(), "its program would go on");
    }
}

#[test]
fn another_layout_is_taken_over_where_pods_are_another_plugins() {
    let mut world = World::new(0, PodSockets::ByTc);
    world.change_layout(1);
    world.restart();
    assert_eq!(world.layouts().len(), 1, "{:?}", world.layouts());
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
