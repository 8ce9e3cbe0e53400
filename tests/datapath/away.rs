//! An agent that is away while the cluster changes.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use windlass_datapath::Capacities;

use crate::{
    agent::{Agent, NODE, NODE_PORT, dual_spec, endpoint},
    clients::Clients,
    echo::{Conversation, Server, ask_tcp, ask_udp, ask_udp_on, udp_socket},
    netns::NetNs,
    world::{NODE_V4, NODE_V6, Pod, PodSockets, World, small, vip, vip_v6},
};

const WAYS: [PodSockets; 2] = [PodSockets::ByHook, PodSockets::ByTc];

#[test]
fn what_changed_while_the_agent_was_away_is_right_when_it_is_back() {
    for sockets in WAYS {
        println!("{}", is_away(sockets, Duration::from_millis(500)));
    }
}

/// As long as issues are written about it.
#[test]
#[ignore = "takes two minutes"]
fn what_changed_while_the_agent_was_away_for_long_is_right_when_it_is_back() {
    for sockets in WAYS {
        println!("{}", is_away(sockets, Duration::from_secs(61)));
    }
}

/// Who dials what: by cluster address, node port, in both families.
fn clients(world: &World) -> [(&NetNs, SocketAddr); 6] {
    let (pod, node, outside) = (&world.pods[3].ns, &world.node, &world.outside);
    [
        (pod, vip(80)),
        (pod, vip_v6(80)),
        (node, vip(80)),
        (node, vip_v6(80)),
        (outside, (NODE_V4, NODE_PORT).into()),
        (outside, (NODE_V6, NODE_PORT).into()),
    ]
}

struct Open {
    tcp: Conversation,
    udp: UdpSocket,
    target: SocketAddr,
    /// Who answers by TCP, and by UDP.
    servers: [String; 2],
}

impl Open {
    fn new(from: &NetNs, target: SocketAddr) -> Self {
        from.run(|| {
            let mut tcp = Conversation::open(target).expect("connecting");
            let udp = udp_socket(target).expect("a socket");
            udp.connect(target).expect("connecting");
            let servers = [
                tcp.ask("before").expect("an answer").server,
                ask_again(&udp).expect("an answer"),
            ];
            Self {
                tcp,
                udp,
                target,
                servers,
            }
        })
    }
}

/// A datagram of a connected socket.
fn ask_again(udp: &UdpSocket) -> std::io::Result<String> {
    ask_udp_on(udp, udp.peer_addr()?).map(|(answer, _)| answer.server)
}

/// Says how it went.
fn is_away(sockets: PodSockets, how_long: Duration) -> String {
    // Nobody collects what is closed.
    let roomy = Capacities {
        conntrack: 1_048_576,
        ..small()
    };
    let mut world = World::with(4, sockets, roomy);
    let _servers = Server::start_in(&world.pods[..3], 8080);
    let of = |pods: &[Pod], wanted: &[usize]| {
        let pods = wanted.iter().map(|index| &pods[*index]);
        let both = pods.map(|pod| [endpoint(pod.v4, NODE), endpoint(pod.v6, NODE)]);
        both.flatten().collect::<Vec<_>>()
    };
    Agent::new(&world).apply(dual_spec("Cluster"), &of(&world.pods, &[0, 1]));
    let dialling = clients(&world).into_iter().cycle().take(48);
    let mut open: Vec<Open> = dialling
        .map(|(from, target)| Open::new(from, target))
        .collect();
    for server in ["a", "b"] {
        let has = |open: &Open| open.servers.iter().all(|it| it == server);
        assert!(open.iter().any(has), "48 random choices of two");
    }

    let stream = Clients::start(&clients(&world));
    world.stop();
    let until = Instant::now() + how_long;
    loop {
        for it in &mut open {
            let tcp = it.tcp.ask("away").expect("the kernel goes on alone").server;
            let udp = ask_again(&it.udp).expect("the kernel goes on alone");
            assert_eq!([tcp, udp], it.servers, "{}", it.target);
        }
        if Instant::now() >= until {
            break;
        }
        thread::park_timeout(Duration::from_millis(200));
    }
    let returned = Instant::now();
    world.restart();
    let made = stream.stop();
    // What the API says by now: the second one went, a third came.
    let started = Instant::now();
    Agent::new(&world).apply(dual_spec("Cluster"), &of(&world.pods, &[0, 2]));
    let right = started.elapsed();
    for it in &mut open {
        let target = it.target;
        let [by_tcp, by_udp] = &it.servers;
        let tcp = it.tcp.ask("after").map(|answer| answer.server);
        match by_tcp.as_str() {
            "a" => assert_eq!(tcp.expect("its backend is still there"), "a", "{target}"),
            _ => drop(tcp.expect_err("its backend is gone")),
        }
        match (by_udp.as_str(), ask_again(&it.udp)) {
            ("a", udp) => assert_eq!(udp.expect("its backend is still there"), "a", "{target}"),
            // By tc another one answers; by hook the socket was closed.
            (_, udp) => assert_ne!(udp.ok().as_deref(), Some("b"), "{target}"),
        }
    }
    for (from, target) in clients(&world) {
        for _ in 0..12 {
            let tcp = ask_tcp(from, target).expect("an answer").server;
            let udp = ask_udp(from, target).expect("an answer").0.server;
            assert!(tcp != "b" && udp != "b", "{target}: {tcp}, {udp}");
        }
    }
    format!(
        "{sockets:?}: {made} connections meanwhile, none failed; back after {:?}, right {right:?} later",
        started - returned
    )
}
