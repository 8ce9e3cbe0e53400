//! The flow log: what the programs tell of connections, their ends and drops, and when they keep quiet.

use std::time::{Duration, Instant};

use windlass_datapath::FlowRing;
use windlass_datapath::types::{Addr, FlowConfig, FlowEvent, Reason, Tuple, connection, flow_kind};

use crate::{
    echo::{Server, ask_tcp},
    wire::tcp_v4,
    world::{PodSockets, TCP, World, cluster_ip, vip},
};

/// Events are in the ring before the packet that they are about has arrived; those of the end come after the client
/// has gone.
const WITHIN: Duration = Duration::from_secs(20);

fn listen(world: &World, sample: u32, per_second: u32) {
    let config = FlowConfig {
        enabled: 1,
        sample,
        per_second,
    };
    world
        .datapath()
        .set_flow_log(config)
        .expect("switching the flow log on");
}

fn wait_for(ring: &mut FlowRing, is_it: impl Fn(&FlowEvent) -> bool) -> FlowEvent {
    let end = Instant::now() + WITHIN;
    while Instant::now() < end {
        match ring.take() {
            Some(event) if is_it(&event) => return event,
            Some(_) => {}
            None => std::thread::yield_now(),
        }
    }
    panic!("no such event within {WITHIN:?}");
}

/// The tuple of the connection that a close is about, as its first packet had it.
fn original(closed: &FlowEvent) -> Tuple {
    if closed.flags & connection::ORIGINAL != 0 {
        closed.tuple
    } else {
        closed.to.reversed()
    }
}

#[test]
fn a_connection_is_told_when_it_begins_and_when_it_ends() {
    let world = World::new(2, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(7, &[cluster_ip(80, TCP)], 8080, &[0], true);
    let mut ring = world.datapath().flow_ring().expect("the ring");
    ask_tcp(&world.pods[1].ns, vip(80)).expect("the service answers");
    assert_eq!(ring.take(), None, "nobody listens");

    listen(&world, 1, 1_000);
    ask_tcp(&world.pods[1].ns, vip(80)).expect("the service answers");
    let opened = wait_for(&mut ring, |event| {
        event.kind == flow_kind::OPEN && event.service == 7
    });
    assert_eq!(
        opened.tuple.src,
        Addr::from(std::net::IpAddr::from(world.pods[1].v4))
    );
    assert_eq!(
        opened.to.dst,
        Addr::from(std::net::IpAddr::from(world.pods[0].v4))
    );
    assert_eq!(opened.to.dport, 8080_u16.to_be());
    // The connection from before the switch may still be closing: its end is told too.
    let closed = wait_for(&mut ring, |event| {
        event.kind == flow_kind::CLOSE && original(event) == opened.tuple
    });
    assert!(connection::is_closed(closed.flags), "{closed:?}");

    world
        .datapath()
        .set_flow_log(FlowConfig::default())
        .expect("switching it off");
    while ring.take().is_some() {}
    ask_tcp(&world.pods[1].ns, vip(80)).expect("the service answers");
    // A program that was at work during the switch may have told of an end since; nobody tells of what began later.
    while let Some(event) = ring.take() {
        assert_eq!(event.kind, flow_kind::CLOSE, "nobody listens any more");
    }
}

#[test]
fn a_refusal_is_told_with_its_reason_by_every_hook() {
    for sockets in [PodSockets::ByTc, PodSockets::ByHook] {
        let world = World::new(1, sockets);
        world.serve(7, &[cluster_ip(80, TCP)], 8080, &[], true);
        let mut ring = world.datapath().flow_ring().expect("the ring");
        // Drops are told whatever the sample.
        listen(&world, 1_000_000, 1_000);
        assert!(ask_tcp(&world.pods[0].ns, vip(80)).is_err());
        // A pod's kernel sends other things too, when it pleases.
        let told = wait_for(&mut ring, |event| {
            event.kind == flow_kind::DROP && event.tuple.dport == 80_u16.to_be()
        });
        assert_eq!(u32::from(told.reason), Reason::RejectedNoEndpoint as u32);
    }
}

#[test]
fn a_cpu_tells_no_more_than_it_may_and_says_how_much_it_kept() {
    let world = World::new(1, PodSockets::ByTc);
    world.serve(7, &[cluster_ip(80, TCP)], 8080, &[], true);
    let mut ring = world.datapath().flow_ring().expect("the ring");
    listen(&world, 1, 2);
    let (mut told, mut lost) = (0_u32, 0_u32);
    let begin = Instant::now();
    // More than what all CPUs together may tell before two of their seconds have begun.
    while lost == 0 && begin.elapsed() < Duration::from_secs(10) {
        assert!(ask_tcp(&world.pods[0].ns, vip(80)).is_err());
        while let Some(event) = ring.take() {
            told += 1;
            lost += event.lost;
        }
    }
    assert!(lost > 0, "{told} events, and none was kept back");
}

/// What a packet costs while nobody listens, while somebody is told everything, and past what a CPU may tell: one of a
/// known connection, of which nothing is ever told, and one that is dropped, of which each is.
#[test]
#[ignore = "a measurement: cargo xtask test datapath -- --ignored cost_of_telling --nocapture"]
fn cost_of_telling() {
    const REPEAT: u32 = 1_000;
    const RUNS: usize = 200;
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let world = World::new(2, PodSockets::ByTc);
    let [a, b] = [0, 1].map(|pod| world.pods[pod].v4);
    let ifindex = world.node.ifindex("wlpod0");
    let mut ring = world.datapath().flow_ring().expect("the ring");
    let open = tcp_v4(a, b, (40_000, 80), SYN, 0);
    world
        .datapath()
        .test_run("from_pod", &open, ifindex)
        .expect("a run");
    let known = tcp_v4(a, b, (40_000, 80), ACK, 0);
    let forged = tcp_v4([10, 244, 0, 99].into(), b, (40_000, 80), SYN, 0);
    for (listening, enabled, per_second) in [
        ("nobody", 0, 0),
        ("somebody, told everything", 1, 1_000_000_000),
        ("somebody, told no more", 1, 1),
    ] {
        let config = FlowConfig {
            enabled,
            sample: 1,
            per_second,
        };
        world
            .datapath()
            .set_flow_log(config)
            .expect("switching the flow log");
        let mut cost = |packet: &[u8]| {
            let runs = (0..RUNS).map(|_| {
                // Room for all that one run tells.
                while ring.take().is_some() {}
                let datapath = world.datapath();
                datapath
                    .time_run("from_pod", packet, ifindex, REPEAT)
                    .expect("a run")
            });
            runs.min().unwrap_or_default()
        };
        let (known, dropped) = (cost(&known), cost(&forged));
        println!(
            "{listening}: a packet of a known connection {known:?}, one that is dropped {dropped:?}"
        );
    }
}
