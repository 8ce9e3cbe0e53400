//! XDP that sends on: exact frames, real conversations through it, and what it leaves to tc.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use windlass_datapath::{
    XdpMode,
    types::{Addr, Connection, ServiceKey, Tuple, connection},
};
use windlass_network::Routing;

use crate::{
    cluster::Cluster,
    echo::{Conversation, PATIENCE, Server, ask_tcp, ask_udp},
    ethtool, require_kernel,
    wire::{
        ACK, SYN, fragment_v4, ipv4, ipv6, older, run, tcp_v4, tcp_v6, too_big_v4, udp, with_hops,
    },
    world::{NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, TCP, UDP, World},
};

const FIN: u8 = 0x01;
const PASS: i32 = 2;
/// A veth takes frames back only by way of a redirect.
const SENT: i32 = 4;

const NODE_PORT: u16 = 30_080;

/// A frame as it comes to, or leaves, the node's uplink.
fn between(mut frame: Vec<u8>, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame
}

/// Octets of what the table holds of one direction.
const ENTRY: usize = size_of::<Connection>();

/// A NodePort whose backend is on another machine, of both families and protocols, and its neighbours known.
struct Sending {
    world: World,
    /// Ethernet addresses of the node's uplink and of everybody else.
    node: [u8; 6],
    others: [u8; 6],
}

const BACKEND_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const BACKEND_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);

/// Nobody in particular.
const ELSEWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const ELSEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

/// Before it, tc forwards at virtual devices, of which nobody says whether they send.
fn require_kernel_that_tells() {
    require_kernel((6, 3), "sending by XDP out of a virtual device");
}

impl Sending {
    fn new(direct_answers: bool) -> Self {
        require_kernel_that_tells();
        let world = World::sending_by_xdp(XdpMode::Native, direct_answers);
        let (node, others) = (world.node.mac("wlout0"), world.outside.mac("eth0"));
        let shown = others.map(|octet| format!("{octet:02x}")).join(":");
        for address in [OUTSIDE_V4.into(), BACKEND_V4.into()]
            .into_iter()
            .chain::<[IpAddr; 2]>([OUTSIDE_V6.into(), BACKEND_V6.into()])
        {
            world.node.ip(&format!(
                "neigh replace {address} lladdr {shown} dev wlout0 nud permanent"
            ));
        }
        for (id, protocol) in [(1, TCP), (2, UDP)] {
            let v4 = [ServiceKey::node_port(true, NODE_PORT, protocol)];
            world.serve_at(id, &v4, (BACKEND_V4, 8080).into());
            let v6 = [ServiceKey::node_port(false, NODE_PORT, protocol)];
            world.serve_at(10 + id, &v6, (BACKEND_V6, 8080).into());
        }
        Self {
            world,
            node,
            others,
        }
    }

    /// What becomes of a frame that comes in.
    fn by_xdp(&self, frame: &[u8]) -> (i32, Vec<u8>) {
        let frame = between(frame.to_vec(), self.node, self.others);
        run(&self.world, "xdp_uplink", &frame, "wlout0")
    }

    /// Two entries like one that is there, each of which makes of a packet what the other is about: a program
    /// that is run on one frame again and again finds a connection each time. Neither is about the node itself.
    fn turn_back(&self, like: &Tuple, one: &Tuple) {
        let octets = |tuple: &Tuple| {
            let mut octets = [0; 40];
            octets[..16].copy_from_slice(&tuple.src.octets());
            octets[16..32].copy_from_slice(&tuple.dst.octets());
            octets[32..34].copy_from_slice(&tuple.sport.to_ne_bytes());
            octets[34..36].copy_from_slice(&tuple.dport.to_ne_bytes());
            octets[36] = tuple.protocol;
            octets
        };
        let pin = MapData::from_pin(self.world.pinned("CONNTRACK")).expect("the pinned map");
        let mut table: HashMap<_, [u8; 40], [u8; 2 * ENTRY]> =
            Map::HashMap(pin).try_into().expect("a hash map");
        let held = self.world.datapath().connections().expect("listing");
        let held = held.into_iter().find(|(tuple, _)| tuple == like);
        let other = held.expect("the connection").1.to;
        let ways = table.get(&octets(&like.ends()), 0).expect("its element");
        let entry = &ways[like.way() * ENTRY..][..ENTRY];
        for (tuple, to) in [(one, &other), (&other, one)] {
            let mut ways = [0; 2 * ENTRY];
            let way = &mut ways[tuple.way() * ENTRY..][..ENTRY];
            way.copy_from_slice(entry);
            way[..40].copy_from_slice(&octets(to));
            table
                .insert(octets(&tuple.ends()), ways, 0)
                .expect("writing");
        }
    }

    fn by_tc(&self, frame: &[u8]) -> (i32, Vec<u8>) {
        let frame = between(frame.to_vec(), self.node, self.others);
        run(&self.world, "from_uplink", &frame, "wlout0")
    }

    /// It goes on by XDP, as this.
    fn becomes(&self, frame: &[u8], expected: &[u8], case: &str) {
        let (verdict, out) = self.by_xdp(frame);
        assert_eq!(verdict, SENT, "{case}");
        assert_eq!(
            out,
            between(expected.to_vec(), self.others, self.node),
            "{case}"
        );
    }

    /// It goes up as it came.
    fn passes(&self, frame: &[u8], case: &str) {
        let (verdict, out) = self.by_xdp(frame);
        assert_eq!(verdict, PASS, "{case}");
        assert_eq!(
            out,
            between(frame.to_vec(), self.node, self.others),
            "{case}"
        );
    }
}

/// A datagram in a packet of its own.
fn udp_v4(src: Ipv4Addr, dst: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    let datagram = udp(&src.octets(), &dst.octets(), ports, b"four");
    ipv4(src, dst, UDP, 0, &datagram)
}

fn udp_v6(src: Ipv6Addr, dst: Ipv6Addr, ports: (u16, u16)) -> Vec<u8> {
    let datagram = udp(&src.octets(), &dst.octets(), ports, b"four");
    ipv6(src, dst, UDP, &datagram)
}

/// The source port that a connection got, from its first packet behind the node.
fn source_port(frame: &[u8]) -> u16 {
    let at = if frame[12..14] == [8, 0] { 34 } else { 54 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[test]
fn what_passes_through_is_sent_on_as_tc_would() {
    let sending = Sending::new(false);
    // TCP: what opens a connection is tc's.
    let asks = |flags| tcp_v4(OUTSIDE_V4, NODE_V4, (1_000, NODE_PORT), flags, 0);
    sending.passes(&asks(SYN), "before anything is known of it");
    let port = source_port(&sending.by_tc(&asks(SYN)).1);
    sending.passes(&asks(SYN), "the first packet again");
    let expected = older(tcp_v4(NODE_V4, BACKEND_V4, (port, 8080), ACK, 0));
    sending.becomes(&asks(ACK), &expected, "asked by TCP");
    assert_eq!(sending.by_tc(&asks(ACK)).1[12..], expected[12..]);
    let answer = tcp_v4(BACKEND_V4, NODE_V4, (8080, port), ACK, 0);
    let expected = older(tcp_v4(NODE_V4, OUTSIDE_V4, (NODE_PORT, 1_000), ACK, 0));
    sending.becomes(&answer, &expected, "answered by TCP");
    assert_eq!(sending.by_tc(&answer).1[12..], expected[12..]);

    let asks = |flags| tcp_v6(OUTSIDE_V6, NODE_V6, (1_000, NODE_PORT), flags);
    let port = source_port(&sending.by_tc(&asks(SYN)).1);
    let expected = older(tcp_v6(NODE_V6, BACKEND_V6, (port, 8080), ACK));
    sending.becomes(&asks(ACK), &expected, "asked by TCP over IPv6");
    let answer = tcp_v6(BACKEND_V6, NODE_V6, (8080, port), ACK);
    let expected = older(tcp_v6(NODE_V6, OUTSIDE_V6, (NODE_PORT, 1_000), ACK));
    sending.becomes(&answer, &expected, "answered by TCP over IPv6");

    // UDP, with a checksum and without.
    let question = udp_v4(OUTSIDE_V4, NODE_V4, (1_000, NODE_PORT));
    let port = source_port(&sending.by_tc(&question).1);
    let mut expected = older(udp_v4(NODE_V4, BACKEND_V4, (port, 8080)));
    sending.becomes(&question, &expected, "asked by UDP");
    let mut bare = question;
    bare[40..42].fill(0);
    expected[40..42].fill(0);
    sending.becomes(&bare, &expected, "without a checksum");
    let answer = udp_v4(BACKEND_V4, NODE_V4, (8080, port));
    let expected = older(udp_v4(NODE_V4, OUTSIDE_V4, (NODE_PORT, 1_000)));
    sending.becomes(&answer, &expected, "answered by UDP");
    let question = udp_v6(OUTSIDE_V6, NODE_V6, (1_000, NODE_PORT));
    let port = source_port(&sending.by_tc(&question).1);
    let expected = older(udp_v6(NODE_V6, BACKEND_V6, (port, 8080)));
    sending.becomes(&question, &expected, "asked by UDP over IPv6");

    // The end of a connection is seen here too: its ports open another.
    let asks = |flags| tcp_v4(OUTSIDE_V4, NODE_V4, (1_000, NODE_PORT), flags, 0);
    assert_eq!(sending.by_xdp(&asks(FIN | ACK)).0, SENT);
    let connections = sending.world.datapath().connections();
    let closing = connections.expect("the connections").into_iter();
    let closing = closing.filter(|(_, entry)| entry.flags & connection::FIN_ORIGINAL != 0);
    assert_eq!(closing.count(), 2, "both directions know");
}

#[test]
fn what_is_not_plain_is_left_to_tc() {
    let sending = Sending::new(false);
    let ports = (1_000, NODE_PORT);
    let syn = tcp_v4(OUTSIDE_V4, NODE_V4, ports, SYN, 0);
    let port = source_port(&sending.by_tc(&syn).1);
    let plain = tcp_v4(OUTSIDE_V4, NODE_V4, ports, ACK, 0);
    let expected = older(tcp_v4(NODE_V4, BACKEND_V4, (port, 8080), ACK, 0));
    sending.becomes(&plain, &expected, "nothing but plain");
    let options = tcp_v4(OUTSIDE_V4, NODE_V4, ports, ACK, 8);
    sending.passes(&options, "options");
    sending.passes(&fragment_v4(plain.clone(), 7, 0, true), "a first fragment");
    sending.passes(&fragment_v4(plain.clone(), 7, 24, false), "a later one");
    let quoted = tcp_v4(NODE_V4, BACKEND_V4, (port, 8080), ACK, 0);
    sending.passes(&too_big_v4(BACKEND_V4, NODE_V4, &quoted), "an error");
    let others = tcp_v4(OUTSIDE_V4, NODE_V4, (1_001, NODE_PORT), ACK, 0);
    sending.passes(&others, "nothing is known of it");
    for length in 34..plain.len() {
        let (verdict, out) = sending.by_xdp(&plain[..length]);
        let expected = if length < 54 { PASS } else { SENT };
        assert_eq!((verdict, out.len()), (expected, length));
    }
    let mut tagged = plain.clone();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    sending.passes(&tagged, "a tag");
    // A frame for another machine.
    let stray = between(plain.clone(), [2, 0, 0, 0, 0, 9], sending.others);
    assert_eq!(
        run(&sending.world, "xdp_uplink", &stray, "wlout0"),
        (PASS, stray)
    );
    let large = [&plain[..], &[0; 1_500]].concat();
    sending.passes(&large, "more than the way takes");
    // The kernel no longer knows the backend's neighbour; what it said is remembered for a moment.
    let node = &sending.world.node;
    node.ip(&format!("neigh del {BACKEND_V4} dev wlout0"));
    let deadline = Instant::now() + PATIENCE;
    while sending.by_xdp(&plain).0 != PASS {
        assert!(Instant::now() < deadline, "it still goes where nobody is");
    }
}

/// In the way of answers by the backend's own node, every datagram says what was dialled.
#[test]
fn direct_answers_are_asked_for_as_tc_does() {
    let sending = Sending::new(true);
    let question = udp_v4(OUTSIDE_V4, NODE_V4, (1_000, NODE_PORT));
    let first = sending.by_tc(&question).1;
    assert_eq!(first.len(), question.len() + 8, "an option of eight octets");
    sending.becomes(&question, &first, "a datagram");
    let question = udp_v6(OUTSIDE_V6, NODE_V6, (1_000, NODE_PORT));
    let first = sending.by_tc(&question).1;
    assert_eq!(first.len(), question.len() + 24, "destination options");
    sending.becomes(&question, &first, "a datagram over IPv6");
    let asks = |flags| tcp_v4(OUTSIDE_V4, NODE_V4, (1_000, NODE_PORT), flags, 0);
    let opening = sending.by_tc(&asks(SYN)).1;
    assert_eq!(opening.len(), asks(SYN).len() + 8);
    let expected = older(tcp_v4(OUTSIDE_V4, BACKEND_V4, (1_000, 8080), ACK, 0));
    sending.becomes(&asks(ACK), &expected, "only the first of a connection");
}

/// What a device does not take would be lost without a word.
#[test]
fn where_nothing_can_be_sent_by_xdp_tc_forwards() {
    let sending = Sending::new(false);
    let world = &sending.world;
    let syn = tcp_v4(OUTSIDE_V4, NODE_V4, (1_000, NODE_PORT), SYN, 0);
    let ack = tcp_v4(OUTSIDE_V4, NODE_V4, (1_000, NODE_PORT), ACK, 0);
    let port = source_port(&sending.by_tc(&syn).1);
    let is_attached = || {
        let shown = world.node.tool("ip", "link show wlout0");
        shown.contains("xdp")
    };
    assert!(is_attached());
    for ready in [false, true] {
        ethtool::set_merging(&world.outside, "eth0", ready);
        let attached = world.node.run(|| world.datapath().attach_uplink("wlout0"));
        attached.expect("attaching again");
        assert_eq!(is_attached(), ready);
        if ready {
            let expected = older(tcp_v4(NODE_V4, BACKEND_V4, (port, 8080), ACK, 0));
            sending.becomes(&ack, &expected, "the other end is ready");
        } else {
            sending.passes(&ack, "the other end is not ready");
        }
    }
}

#[test]
fn conversations_between_clients_outside_and_pods_of_other_nodes_go_by_xdp() {
    require_kernel_that_tells();
    for (mode, direct_answers) in [
        (XdpMode::Native, false),
        (XdpMode::Native, true),
        (XdpMode::Generic, false),
    ] {
        let mut cluster = Cluster::sending_by_xdp(mode, Routing::Direct, direct_answers);
        let [asked, behind] = [0, 1].map(|index| &cluster.nodes[index]);
        let pod = &behind.pods[0];
        let _server = Server::start(&pod.ns, 8080);
        let mut open = Vec::new();
        for v4 in [true, false] {
            let case = format!("{mode:?}, direct answers {direct_answers}, IPv4 {v4}");
            for node in &cluster.nodes {
                node.node_port(NODE_PORT, TCP, (pod.address(v4), 8080));
                node.node_port(NODE_PORT, UDP, (pod.address(v4), 8080));
            }
            let target = SocketAddr::new(asked.address(v4), NODE_PORT);
            let conversation = cluster.outside.run(|| Conversation::open(target));
            let mut conversation = conversation.unwrap_or_else(|e| panic!("{case}: {e}"));
            let before = asked.count("translated", "xdp");
            for _ in 0..10 {
                let answer = conversation.ask("hello");
                let answer = answer.unwrap_or_else(|e| panic!("{case}: {e}"));
                assert_eq!(answer.server, pod.ns.name, "{case}");
            }
            let sent = asked.count("translated", "xdp") - before;
            assert!(sent >= 5, "{case}: {sent} packets by XDP");
            open.push(conversation);
            let (answer, by) =
                ask_udp(&cluster.outside, target).unwrap_or_else(|e| panic!("{case}, UDP: {e}"));
            assert_eq!((answer.server, by), (pod.ns.name.clone(), target), "{case}");
            // A backend of this node is reached as ever.
            let own = &asked.pods[0];
            let server = Server::start(&own.ns, 8080);
            asked.node_port(NODE_PORT + 1, TCP, (own.address(v4), 8080));
            let target = SocketAddr::new(asked.address(v4), NODE_PORT + 1);
            let answer = ask_tcp(&cluster.outside, target);
            let answer = answer.unwrap_or_else(|e| panic!("{case}, a local backend: {e}"));
            assert_eq!(answer.server, own.ns.name, "{case}");
            drop(server);
        }
        cluster.restart(0);
        for conversation in &mut open {
            conversation.ask("after a restart").expect("an answer");
        }
    }
}

/// What XDP takes for a packet, by BPF_PROG_TEST_RUN.
#[test]
#[ignore = "a measurement: meaningful on a quiet machine only"]
fn rate_of_packets_by_xdp() {
    // A packet grows older each time.
    const REPEAT: u32 = 200;
    const CALLS: u32 = 5_000;
    const ROUNDS: usize = 9;
    for direct_answers in [false, true] {
        let sending = Sending::new(direct_answers);
        let world = &sending.world;
        // Everyone is at the node's own Ethernet address, or the frame would be another machine's the second
        // time.
        let own = sending.node.map(|octet| format!("{octet:02x}")).join(":");
        let v4 = [OUTSIDE_V4, BACKEND_V4, ELSEWHERE_V4].map(IpAddr::V4);
        let v6 = [OUTSIDE_V6, BACKEND_V6, ELSEWHERE_V6].map(IpAddr::V6);
        for address in v4.into_iter().chain(v6) {
            world.node.ip(&format!(
                "neigh replace {address} lladdr {own} dev wlout0 nud permanent"
            ));
        }
        let syn = tcp_v4(OUTSIDE_V4, NODE_V4, (1_000, NODE_PORT), SYN, 0);
        let syn_v6 = tcp_v6(OUTSIDE_V6, NODE_V6, (1_000, NODE_PORT), SYN);
        let port = source_port(&sending.by_tc(&syn).1);
        let port_v6 = source_port(&sending.by_tc(&syn_v6).1);
        let v4 = |from, ports| tcp_v4(from, ELSEWHERE_V4, ports, ACK, 0);
        let v6 = |from, ports| tcp_v6(from, ELSEWHERE_V6, ports, ACK);
        let (asked, answered) = ((1_000, NODE_PORT), [(8080, port), (8080, port_v6)]);
        let mut cases = vec![
            ("nothing known", v4(OUTSIDE_V4, (1_009, NODE_PORT)), None),
            (
                "asked",
                v4(OUTSIDE_V4, asked),
                Some((OUTSIDE_V4.into(), asked)),
            ),
            (
                "asked, IPv6",
                v6(OUTSIDE_V6, asked),
                Some((OUTSIDE_V6.into(), asked)),
            ),
        ];
        if !direct_answers {
            let [v4_ports, v6_ports] = answered;
            let from: IpAddr = BACKEND_V4.into();
            cases.push(("answered", v4(BACKEND_V4, v4_ports), Some((from, v4_ports))));
            let from: IpAddr = BACKEND_V6.into();
            cases.push((
                "answered, IPv6",
                v6(BACKEND_V6, v6_ports),
                Some((from, v6_ports)),
            ));
        }
        for (what, frame, key) in cases {
            let frame = with_hops(between(frame, sending.node, sending.node), 255);
            if let Some((from, (sport, dport))) = key {
                let (node, elsewhere): (IpAddr, IpAddr) = match from {
                    IpAddr::V4(_) => (NODE_V4.into(), ELSEWHERE_V4.into()),
                    IpAddr::V6(_) => (NODE_V6.into(), ELSEWHERE_V6.into()),
                };
                let to = |dst: IpAddr| Tuple {
                    src: Addr::from(from),
                    dst: Addr::from(dst),
                    sport: u16::to_be(sport),
                    dport: u16::to_be(dport),
                    protocol: TCP,
                    pad: [0; 3],
                };
                sending.turn_back(&to(node), &to(elsewhere));
            }
            let ifindex = world.node.ifindex("wlout0");
            let before = world.count("translated", "xdp");
            let mut times: Vec<u128> = (0..ROUNDS)
                .map(|_| {
                    let run = || {
                        let one = |_| {
                            let datapath = world.datapath();
                            datapath.time_run("xdp_uplink", &frame, ifindex, REPEAT)
                        };
                        (0..CALLS).map(one).sum::<Result<Duration, _>>()
                    };
                    let all = world.node.run(run).expect("running the program");
                    all.as_nanos() / u128::from(CALLS)
                })
                .collect();
            times.sort_unstable();
            let sent = world.count("translated", "xdp") - before;
            println!(
                "direct answers {direct_answers}, {what}: {} ns a packet, best {}, worst {}; {sent} sent",
                times[ROUNDS / 2],
                times[0],
                times[ROUNDS - 1]
            );
            let expected = if key.is_some() {
                ROUNDS as u64 * u64::from(REPEAT * CALLS)
            } else {
                0
            };
            assert_eq!(sent, expected, "{what}");
        }
    }
}
