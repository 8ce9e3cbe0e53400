//! Connections over time: closing, reuse of ports, backends that go, tables that fill.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use windlass_datapath::{
    Capacities, ServiceWrite,
    types::{Addr, BackendValue, MemberKey, ServiceKey, ServiceValue, SlotKey, connection, member},
};

use crate::{
    echo::{Conversation, PATIENCE, Server, ask_tcp, ask_udp},
    world::{NODE_V4, PodSockets, TCP, UDP, World, cluster_ip, cluster_ip_v6, vip, vip_v6},
};

/// Connects from a fixed source port, as a client does that reuses one quickly. A process that another test has
/// just started holds a closed socket, and with it the port, until it runs its own program.
fn connect_from(port: u16, target: SocketAddr) -> std::io::Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match try_connect_from(port, target) {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrNotAvailable
                    && Instant::now() < deadline =>
            {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            connected => return connected,
        }
    }
}

fn try_connect_from(port: u16, target: SocketAddr) -> std::io::Result<TcpStream> {
    let SocketAddr::V4(target) = target else {
        panic!("an IPv4 target")
    };
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // No TIME_WAIT: the port is free again at once, and the connection ends with a reset.
    setsockopt(
        &socket,
        sockopt::Linger,
        &nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )?;
    use std::os::fd::AsRawFd as _;
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    connect(stream.as_raw_fd(), &SockaddrIn::from(target))?;
    Ok(stream)
}

/// Segments that this namespace has sent again. What hangs is repeated, however slow the machine is; how
/// long it all takes says more about the machine.
fn retransmissions() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").expect("the counters");
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let mut next = || lines.next().expect("TCP's counters").split_whitespace();
    let (names, values) = (next(), next());
    let mut counters = names.zip(values);
    let found = counters.find_map(|(name, value)| (name == "RetransSegs").then_some(value));
    found.expect("the counter").parse().expect("a number")
}

fn speak(stream: &mut TcpStream) -> std::io::Result<String> {
    use std::io::{BufRead as _, BufReader, Write as _};
    stream.write_all(b"hello\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

#[test]
fn a_reused_source_port_never_hangs_on_an_old_connection() {
    let world = World::new(3, PodSockets::ByTc);
    let _servers = Server::start_in(&world.pods[..2], 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0, 1], true);
    world.serve(2, &[cluster_ip(81, TCP)], 8080, &[0, 1], true);
    world.pods[2].ns.run(|| {
        let before = retransmissions();
        for round in 0..60 {
            let target = vip(80 + round % 2);
            let mut stream = connect_from(40_000, target).expect("the port can be used again");
            assert!(speak(&mut stream).expect("an answer").contains("hello"));
        }
        let repeated = retransmissions() - before;
        assert!(repeated < 10, "{repeated} segments of 60 connections");
    });
}

#[test]
fn direct_connections_and_those_of_a_service_share_ports_without_mixing() {
    let world = World::new(2, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0], true);
    let direct: SocketAddr = (world.pods[0].v4, 8080).into();
    world.pods[1].ns.run(|| {
        let before = retransmissions();
        // One after the other: the answers of the one must not be taken for the other's.
        for round in 0..40 {
            let target = if round % 2 == 0 { vip(80) } else { direct };
            let mut stream = connect_from(40_000, target).expect("the port can be used again");
            assert!(speak(&mut stream).expect("an answer").contains("hello"));
        }
        // Both at once, whichever comes first.
        for (port, first, second) in [(40_001, vip(80), direct), (40_002, direct, vip(80))] {
            let mut one = connect_from(port, first).expect("the first");
            assert!(
                speak(&mut one)
                    .expect("an answer")
                    .contains(&port.to_string())
            );
            let mut other = connect_from(port, second).expect("the second with the same port");
            for _ in 0..3 {
                speak(&mut other).expect("the second works");
                speak(&mut one).expect("and the first still does");
            }
        }
        let repeated = retransmissions() - before;
        assert!(repeated < 10, "{repeated} segments of 44 connections");
    });
}

#[test]
fn a_connection_is_closed_by_its_flags_and_then_collected() {
    let world = World::new(2, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[0], true);
    let flags = || -> Vec<u32> {
        let entries = world.datapath().connections().expect("listing");
        entries.into_iter().map(|(_, entry)| entry.flags).collect()
    };
    world.pods[1].ns.run(|| {
        let mut conversation = Conversation::open(vip(80)).expect("connecting");
        conversation.ask("hello").expect("an answer");
        assert_eq!(flags().len(), 2);
        assert!(flags().iter().all(|flags| flags & connection::REPLIED != 0));
        assert!(!flags().iter().any(|flags| connection::is_closed(*flags)));
        assert_eq!(
            world.datapath().collect_garbage().expect("collecting").live,
            2
        );
    });
    let deadline = Instant::now() + PATIENCE;
    while !flags().iter().all(|flags| connection::is_closed(*flags)) {
        assert!(
            Instant::now() < deadline,
            "both FINs were seen: {:x?}",
            flags()
        );
        std::thread::yield_now();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let report = world.datapath().collect_garbage().expect("collecting");
        if report.live == 0 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "a closed connection goes after ten seconds"
        );
        std::thread::park_timeout(Duration::from_millis(200));
    }
    assert_eq!(flags(), [0u32; 0]);
}

#[test]
fn connections_of_a_backend_that_is_gone_are_reset_and_new_ones_go_elsewhere() {
    let world = World::new(3, PodSockets::ByTc);
    let _servers = Server::start_in(&world.pods[..2], 8080);
    let frontends = [cluster_ip(80, TCP)];
    world.serve(1, &frontends, 8080, &[0, 1], true);
    let client = &world.pods[2].ns;
    let mut open: Vec<_> = (0..20)
        .map(|_| {
            let mut conversation = client
                .run(|| Conversation::open(vip(80)))
                .expect("connecting");
            let server = conversation.ask("hello").expect("an answer").server;
            (server, conversation)
        })
        .collect();
    world.remove_last_backend(1, &frontends, 2);
    for _ in 0..20 {
        assert_eq!(ask_tcp(client, vip(80)).expect("the other one").server, "a");
    }
    let report = world.datapath().collect_garbage().expect("collecting");
    assert!(report.backend_gone > 0, "{report:?}");
    for (server, conversation) in &mut open {
        let answer = conversation.ask("still there?");
        assert_eq!(answer.is_ok(), server == "a", "{server}: {answer:?}");
    }
}

/// Puts every affinity's last use so many seconds back.
fn age_affinities(world: &World, seconds: u32) {
    let pin = MapData::from_pin(world.pinned("AFFINITY")).expect("the pinned map");
    let mut map: HashMap<_, [u8; 20], [u8; 8]> =
        Map::LruHashMap(pin).try_into().expect("a hash map");
    let held: Vec<_> = map.iter().collect::<Result<_, _>>().expect("reading");
    assert!(!held.is_empty());
    for (key, mut value) in held {
        let used = u32::from_ne_bytes(value[4..].try_into().expect("four octets"));
        value[4..].copy_from_slice(&used.saturating_sub(seconds).to_ne_bytes());
        map.insert(key, value, 0).expect("writing");
    }
}

#[test]
fn affinity_keeps_a_client_with_its_backend_until_its_time_is_over() {
    const SECONDS: u32 = 30;
    for sockets in [PodSockets::ByHook, PodSockets::ByTc] {
        let world = World::new(4, sockets);
        let _servers = Server::start_in(&world.pods[..3], 8080);
        let (tcp, udp) = ([cluster_ip(80, TCP)], [cluster_ip_v6(80, UDP)]);
        world.serve_with(1, &tcp, 8080, &[0, 1, 2], true, SECONDS);
        world.serve_with(2, &udp, 8080, &[0, 1, 2], false, SECONDS);
        let client = &world.pods[3].ns;
        let by_tcp = || ask_tcp(client, vip(80)).expect("an answer").server;
        let by_udp = || ask_udp(client, vip_v6(80)).expect("an answer").0.server;
        for ask in [&by_tcp as &dyn Fn() -> String, &by_udp] {
            let first = ask();
            for _ in 0..20 {
                assert_eq!(ask(), first, "{sockets:?}");
                // Each use begins the time anew.
                age_affinities(&world, SECONDS / 2);
            }
            let elsewhere = |_: &usize| {
                age_affinities(&world, SECONDS + 2);
                ask() != first
            };
            assert!((0..64).any(|n| elsewhere(&n)), "64 choices of three");
        }
    }
}

/// A table says which backend a client outside has. It does not say so for ever.
#[test]
fn affinity_of_a_client_outside_ends_as_well() {
    const SECONDS: u32 = 30;
    const PORT: u16 = 30_080;
    let world = World::new(3, PodSockets::ByTc);
    let _servers = Server::start_in(&world.pods, 8080);
    let frontend = ServiceKey::node_port(true, PORT, TCP);
    world.serve_by_table(1, frontend, 8080, &[0, 1, 2], SECONDS);
    let target = SocketAddr::from((NODE_V4, PORT));
    let ask = || ask_tcp(&world.outside, target).expect("an answer").server;
    let first = ask();
    for _ in 0..20 {
        assert_eq!(ask(), first);
    }
    let elsewhere = |_: &usize| {
        age_affinities(&world, SECONDS + 2);
        ask() != first
    };
    assert!((0..64).any(|n| elsewhere(&n)), "64 choices of three");
}

#[test]
fn ten_thousand_services_are_written_and_read_back_whole() {
    let world = World::with_capacities(
        0,
        Capacities {
            services: 20_000,
            slots: 20_000,
            backends: 20_000,
            ..Capacities::default()
        },
    );
    let mut writes = Vec::new();
    for id in 1..=10_000u32 {
        let [_, _, high, low] = id.to_be_bytes();
        let backend = BackendValue::new(Addr::v4([10, 1, high, low]), 8080, TCP);
        writes.push(ServiceWrite::PutBackend { id, backend });
        let key = MemberKey {
            service: id,
            backend: id,
        };
        writes.push(ServiceWrite::PutMember {
            key,
            state: member::ACTIVE,
        });
        writes.push(ServiceWrite::PutSlot {
            key: SlotKey {
                service: id,
                slot: 0,
            },
            backend: id,
        });
        let key = ServiceKey::new(Addr::v4([10, 96, high, low]), 80, TCP);
        let value = ServiceValue {
            id,
            count: 1,
            ..Default::default()
        };
        writes.push(ServiceWrite::PutService { key, value });
    }
    let apply = |writes: &[ServiceWrite]| {
        let started = Instant::now();
        world.datapath().services().apply(writes).expect("writing");
        started.elapsed()
    };
    // Those of one kind beside each other go to the kernel together.
    let mut sorted = writes.clone();
    sorted.sort_by_key(|write| match write {
        ServiceWrite::PutBackend { .. } => 0,
        ServiceWrite::PutMember { .. } => 1,
        ServiceWrite::PutSlot { .. } => 2,
        _ => 3,
    });
    let (together, one_by_one) = (apply(&sorted), apply(&writes));
    let started = Instant::now();
    let snapshot = world.datapath().services().snapshot().expect("reading");
    println!(
        "10,000 services: written together in {together:?}, one by one in {one_by_one:?}, read in {:?}",
        started.elapsed()
    );
    let ids: std::collections::BTreeSet<_> = snapshot
        .services
        .iter()
        .map(|(_, value)| value.id)
        .collect();
    assert_eq!((snapshot.services.len(), ids.len()), (10_000, 10_000));
    assert_eq!(
        (snapshot.slots.len(), snapshot.members.len()),
        (10_000, 10_000)
    );
    assert_eq!(snapshot.backends.len(), 10_000);
}

#[test]
fn a_full_map_is_an_error_that_names_it() {
    let world = World::with_capacities(
        0,
        Capacities {
            backends: 10,
            ..Capacities::default()
        },
    );
    let backend = BackendValue::new(Addr::v4([10, 1, 0, 1]), 8080, TCP);
    // A hash map may take a few more than its capacity, one for each CPU.
    let writes: Vec<_> = (1..200)
        .map(|id| ServiceWrite::PutBackend { id, backend })
        .collect();
    let error = world
        .datapath()
        .services()
        .apply(&writes)
        .expect_err("no room");
    assert!(error.to_string().contains("BACKENDS is full"), "{error}");
}
