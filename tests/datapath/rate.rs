//! New connections per second through a Service against direct ones, interleaved, so that
//! whatever else the machine does falls on both. Not part of the suite: it measures.
//!
//! `cargo xtask test datapath -- --ignored rate --nocapture`

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use windlass_datapath::{Capacities, types::FlowConfig};
use windlass_network::Routing;
use windlass_tests::processor;

use crate::{
    cluster::Cluster,
    netns::NetNs,
    world::{TCP, World, cluster_ip, vip},
};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(400);

#[test]
#[ignore = "a measurement: meaningful on a quiet machine only"]
fn rate_of_connections_through_a_service_against_direct() {
    processor::share().expect("choosing a processor");
    let world = one_service();
    let direct: SocketAddr = (world.pods[0].v4, 8080).into();
    for (name, client) in [("socket hook", &world.node), ("tc", &world.pods[1].ns)] {
        let [direct, service] =
            alternating(|which| rate(client, [direct, vip(80)][which])).map(median);
        println!(
            "{name}: direct {direct:.0}/s, service {service:.0}/s: {:.3}",
            service / direct
        );
        assert!(service > 0.0);
    }
}

/// From a client's namespace to a server's address.
type Measure = fn(&NetNs, IpAddr) -> f64;

/// What the datapath costs between nodes: the same namespaces, interfaces and routes with it and without.
#[test]
#[ignore = "a measurement: meaningful on a quiet machine only"]
fn rate_across_nodes_against_plain_routing() {
    processor::share().expect("choosing a processor");
    let with = |routing| Cluster::with_capacities(2, 1, routing, Capacities::default());
    let plain = with(Routing::Direct).without_datapath();
    serve(&plain);
    for routing in [Routing::Direct, Routing::Vxlan] {
        let cluster = with(routing);
        let worlds = [&plain, &cluster];
        let ends = worlds.map(|world| (&world.nodes[0].pods[0], &world.nodes[1].pods[0]));
        serve(&cluster);
        let measures: [(&str, Measure); 2] = [
            ("connections a second of processor time", |from, to| {
                rate(from, (to, 8080).into())
            }),
            ("MB a second of processor time", |from, to| {
                throughput(from, (to, 8081).into())
            }),
        ];
        for (what, measure) in measures {
            let rates = alternating(|which| {
                let (client, server) = ends[which];
                measure(&client.ns, server.address(true))
            });
            let [plain, ours] = rates.map(median);
            println!(
                "{routing:?}, {what}: plain {plain:.0}, with the datapath {ours:.0}: {:.3}",
                ours / plain
            );
            assert!(ours > 0.0);
        }
    }
}

/// What the flow log costs: each connection is told when it begins and when it ends, and somebody reads that.
#[test]
#[ignore = "a measurement: meaningful on a quiet machine only"]
fn rate_of_connections_with_the_flow_log_against_without() {
    processor::share().expect("choosing a processor");
    let world = one_service();
    let mut ring = world.datapath().flow_ring().expect("the ring");
    let (reads, told) = (AtomicBool::new(true), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while reads.load(Ordering::Relaxed) {
                match ring.take() {
                    Some(_) => drop(told.fetch_add(1, Ordering::Relaxed)),
                    None => thread::park_timeout(Duration::from_millis(1)),
                }
            }
        });
        for (name, client) in [("socket hook", &world.node), ("tc", &world.pods[1].ns)] {
            told.store(0, Ordering::Relaxed);
            let rates = alternating(|which| {
                let config = FlowConfig {
                    enabled: which as u32,
                    sample: 1,
                    per_second: 1_000_000,
                };
                let log = world.datapath().set_flow_log(config);
                log.expect("switching the flow log");
                rate(client, vip(80))
            });
            let ratios = (0..ROUNDS).map(|round| rates[1][round] / rates[0][round]);
            let mut ratios: Vec<f64> = ratios.collect();
            ratios.sort_by(f64::total_cmp);
            let (least, most) = (ratios[0], ratios[ROUNDS - 1]);
            let [off, on] = rates.map(median);
            println!(
                "{name}: off {off:.0}/s, on {on:.0}/s: {:.3} ({least:.3} to {most:.3}), {} events",
                median(ratios),
                told.load(Ordering::Relaxed)
            );
        }
        reads.store(false, Ordering::Relaxed);
    });
}

/// The first pod takes connections that end at once, by a Service too.
fn one_service() -> World {
    let world = World::with_capacities(2, Capacities::default());
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0], true);
    take_connections(world.pods[0].ns.run(|| listen(8080)));
    world
}

/// Both in every round, each time in the other order.
fn alternating(mut measure: impl FnMut(usize) -> f64) -> [Vec<f64>; 2] {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for which in order {
            rates[which].push(measure(which));
        }
    }
    rates
}

/// On the second node's pod: connections that end at once, and a sink. Both end with the process.
fn serve(cluster: &Cluster) {
    let server = &cluster.nodes[1].pods[0].ns;
    let (short, bulk) = server.run(|| (listen(8080), listen(8081)));
    take_connections(short);
    thread::spawn(move || {
        while let Ok((mut stream, _)) = bulk.accept() {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
}

fn listen(port: u16) -> TcpListener {
    TcpListener::bind(("0.0.0.0", port)).expect("binding a server's port")
}

/// Until the process ends: it blocks, so that nothing but the kernel is measured.
fn take_connections(listener: TcpListener) {
    thread::spawn(move || while listener.accept().is_ok() {});
}

/// Megabytes for each second of processor time.
fn throughput(client: &NetNs, target: SocketAddr) -> f64 {
    let block = vec![7; 1 << 20];
    client.run(|| {
        let mut stream = TcpStream::connect(target).expect("connecting");
        let (started, used) = (Instant::now(), processor::time());
        let mut megabytes = 0;
        while started.elapsed() < ROUND {
            stream.write_all(&block).expect("writing");
            megabytes += 1;
        }
        f64::from(megabytes) / (processor::time() - used).as_secs_f64()
    })
}

/// Connections for each second of processor time.
fn rate(client: &NetNs, target: SocketAddr) -> f64 {
    client.run(|| {
        let (started, used) = (Instant::now(), processor::time());
        let mut connections = 0;
        while started.elapsed() < ROUND {
            let mut stream = TcpStream::connect(target).expect("connecting");
            // Until the server has accepted and closed it: a client that ran ahead would fill
            // the queue of the listener, and then wait a second for each lost SYN.
            stream
                .read_to_end(&mut Vec::new())
                .expect("the server closes");
            // Ends with a reset: no TIME_WAIT uses up the ports.
            let linger = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&stream, sockopt::Linger, &linger).expect("setting the option");
            connections += 1;
        }
        f64::from(connections) / (processor::time() - used).as_secs_f64()
    })
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
