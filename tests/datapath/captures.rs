//! What stands on the wire, by capture: every checksum of every frame, and how large the frames are.
//!
//! On virtual interfaces wrong checksums go unnoticed, since nobody looks at what was said to be left to a device. Here
//! everything is looked at twice. With the interfaces as they come, senders leave checksums and the cutting of large packets to
//! a device: then the header must hold what a device needs (the sum of the pseudo header), and large packets must come through
//! whole. Then as hardware has it: then every checksum must be complete, and no frame larger than the MTU.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    bulk::there_and_back,
    cluster::{Cluster, OUTSIDE_V4, OUTSIDE_V6},
    echo::{Conversation, PATIENCE, Server},
    ethtool,
    netns::NetNs,
    way::Way,
    wire::{checksum, transport_checksum},
    world::{TCP, UDP},
};

const ETH_P_ALL: u16 = 3;
const ETHERNET: usize = 14;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const VXLAN_PORT: u16 = 8472;
/// As much as the other end takes in one go and a bit.
const BULK: usize = 512 << 10;
const NODE_PORT: u16 = 30_080;
/// Of datagrams' content: an odd one and an even one, hardly any, and as much as fits everywhere.
const DATAGRAMS: [usize; 5] = [1, 2, 63, 1_000, 1_232];

/// Hears every frame of every interface of a namespace until it ends.
struct Capture {
    stop: Arc<AtomicBool>,
    heard: thread::JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    fn start(namespace: &NetNs) -> Self {
        let socket = namespace.run(|| {
            let all = Protocol::from(i32::from(ETH_P_ALL.to_be()));
            Socket::new(Domain::PACKET, Type::RAW, Some(all)).expect("a packet socket")
        });
        setsockopt(&socket.as_fd(), RcvBufForce, &(64 << 20)).expect("room for frames");
        let tick = Some(Duration::from_millis(20));
        socket.set_read_timeout(tick).expect("a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let heard = thread::spawn({
            let stop = stop.clone();
            move || listen(socket, &stop)
        });
        Self { stop, heard }
    }

    fn end(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.heard.join().expect("the capture")
    }
}

/// What was sent before the stop is in the socket's queue by then: virtual wires deliver at once.
fn listen(mut socket: Socket, stop: &AtomicBool) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        let stopped = stop.load(Ordering::Relaxed);
        match socket.read(&mut buffer) {
            Ok(length) => frames.push(buffer[..length].to_vec()),
            Err(_) if stopped => return frames,
            Err(_) => {}
        }
    }
}

/// What a frame was found to be.
#[derive(Default, Debug)]
struct Seen {
    /// Packets of TCP and UDP, inner ones of tunnels included.
    packets: usize,
    tunnelled: usize,
    /// Frames that are larger than any wire takes.
    large: usize,
    /// Checksums that are left to a device.
    left: usize,
}

impl Seen {
    /// Looks at each frame; `complete`: nothing may be left to a device.
    fn of(frames: &[Vec<u8>], complete: bool, mtu: usize) -> Result<Self, String> {
        let mut seen = Self::default();
        for frame in frames {
            seen.look(frame, complete).map_err(|fault| {
                let start = &frame[..frame.len().min(120)];
                format!("{fault} in a frame of {}: {start:02x?}", frame.len())
            })?;
            if frame.len() > mtu + ETHERNET {
                seen.large += 1;
            }
        }
        if complete && seen.large > 0 {
            return Err(format!("{} frames are larger than {mtu}", seen.large));
        }
        Ok(seen)
    }

    /// Returns the frame as a device would finish it: the checksum of a tunnel's outer packet is made for that one
    /// (the kernel's "local checksum offload").
    fn look(&mut self, frame: &[u8], complete: bool) -> Result<Vec<u8>, String> {
        let mut finished = frame.to_vec();
        let (kind, packet) = (frame.get(12..14), frame.get(ETHERNET..));
        let (Some(kind), Some(packet)) = (kind, packet) else {
            return Err("no Ethernet header".into());
        };
        let (addresses, protocol, segment) = match kind {
            [0x08, 0x00] => ipv4(packet)?,
            [0x86, 0xdd] => ipv6(packet)?,
            // ARP, heartbeats.
            _ => return Ok(finished),
        };
        let (source, target) = addresses.split_at(addresses.len() / 2);
        let at = match protocol {
            TCP => 16,
            UDP => 6,
            ICMP if checksum(&[segment]) == 0 => return Ok(finished),
            ICMPV6 if transport_checksum(source, target, ICMPV6, segment) == 0 => {
                return Ok(finished);
            }
            ICMP | ICMPV6 => return Err("a wrong ICMP checksum".into()),
            _ => return Ok(finished),
        };
        let said = segment.get(at..at + 2).ok_or("a short segment")?;
        let said = u16::from_be_bytes([said[0], said[1]]);
        self.packets += 1;
        let is_tunnel = protocol == UDP && segment[2..4] == VXLAN_PORT.to_be_bytes();
        if is_tunnel {
            self.tunnelled += 1;
            let inner = self.look(segment.get(16..).ok_or("a short tunnel")?, complete)?;
            let begin = finished.len() - inner.len();
            finished[begin..].copy_from_slice(&inner);
            if said == 0 {
                // RFC 7348, and 6935 for IPv6: a tunnel may do without.
                return Ok(finished);
            }
        }
        let begin = finished.len() - segment.len();
        if transport_checksum(source, target, protocol, &finished[begin..]) != 0 {
            let length = (segment.len() as u32).to_be_bytes();
            let pseudo = !checksum(&[source, target, &length, &[0, 0, 0, protocol]]);
            if complete || said != pseudo {
                return Err(format!(
                    "checksum {said:#06x} of protocol {protocol} is wrong, and {pseudo:#06x} would be left to a device"
                ));
            }
            self.left += 1;
            // The sum of the pseudo header is in its place already.
            let sum = checksum(&[&finished[begin..]]).to_be_bytes();
            finished[begin + at..][..2].copy_from_slice(&sum);
        }
        Ok(finished)
    }
}

type Parsed<'a> = (&'a [u8], u8, &'a [u8]);

fn ipv4(packet: &[u8]) -> Result<Parsed<'_>, String> {
    let header = packet
        .first()
        .map_or(0, |first| usize::from(first & 15) * 4);
    if header < 20 || packet.len() < header || checksum(&[&packet[..header]]) != 0 {
        return Err("a wrong IP header".into());
    }
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if total != packet.len() {
        return Err(format!("{} octets say that they are {total}", packet.len()));
    }
    if packet[6] & 0x3f != 0 || packet[7] != 0 {
        return Err("a fragment".into());
    }
    Ok((&packet[12..20], packet[9], &packet[header..]))
}

fn ipv6(packet: &[u8]) -> Result<Parsed<'_>, String> {
    let mut rest = packet.get(40..).ok_or("a short IPv6 header")?;
    let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    if length != rest.len() {
        return Err(format!("{} octets say that they are {length}", rest.len()));
    }
    let mut next = packet[6];
    // Hop-by-hop options, as those of multicast reports.
    while next == 0 {
        let skipped = rest.get(1).map_or(0, |it| 8 * (usize::from(*it) + 1));
        next = *rest.first().ok_or("short options")?;
        rest = rest.get(skipped..).ok_or("short options")?;
    }
    Ok((&packet[8..40], next, rest))
}

fn exchange_datagrams(from: &NetNs, to: &NetNs, target: SocketAddr, what: &str) {
    let server = to.run(|| UdpSocket::bind(target).expect("binding"));
    server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut buffer = [0; 2_048];
    let any: IpAddr = match target {
        SocketAddr::V4(_) => [0; 4].into(),
        SocketAddr::V6(_) => [0u16; 8].into(),
    };
    let client = from.run(|| UdpSocket::bind((any, 0)).expect("binding"));
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    for size in DATAGRAMS {
        let sent = vec![0xa5; size];
        client.send_to(&sent, target).expect("sending");
        let (length, peer) = server
            .recv_from(&mut buffer)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        server.send_to(&buffer[..length], peer).expect("answering");
        let length = client
            .recv(&mut buffer)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(&buffer[..length], sent, "{what}");
    }
}

/// Everything that is said on these ways: between pods of a node, between nodes, and from outside by a node's port.
fn say_everything(cluster: &Cluster, way: Way) {
    let [near, far] = [0, 1].map(|node| &cluster.nodes[node]);
    let (a, b, c) = (&near.pods[0], &near.pods[1], &far.pods[0]);
    for v4 in [true, false] {
        for (other, where_) in [(b, "on the node"), (c, "on another node")] {
            let what = format!("{way:?} v4={v4} {where_}");
            let target = SocketAddr::new(other.address(v4), 9_000);
            there_and_back(&a.ns, target, &other.ns, target, BULK, &what);
            exchange_datagrams(&a.ns, &other.ns, target, &what);
        }
        near.node_port(NODE_PORT, TCP, (c.address(v4), 9_000));
        let dialled = SocketAddr::new(near.address(v4), NODE_PORT);
        let target = SocketAddr::new(c.address(v4), 9_000);
        there_and_back(
            &cluster.outside,
            dialled,
            &c.ns,
            target,
            BULK,
            "by a node's port",
        );
        // Masquerade.
        let outside: IpAddr = if v4 {
            OUTSIDE_V4.into()
        } else {
            OUTSIDE_V6.into()
        };
        let target = SocketAddr::new(outside, 9_000);
        there_and_back(
            &a.ns,
            target,
            &cluster.outside,
            target,
            BULK,
            "to the outside",
        );
    }
}

#[test]
fn every_checksum_on_every_way_is_right_and_packets_are_as_large_as_they_may() {
    for way in Way::ALL {
        let cluster = Cluster::new(2, 2, way);
        let pod = &cluster.nodes[1].pods[0].ns;
        let neighbour = &cluster.nodes[0].pods[1].ns;
        // Neighbours know each other before anything is counted.
        warm_up(&cluster);
        let mut captures = [pod, neighbour].map(Capture::start).into_iter();
        let between = Capture::start(&cluster.outside);
        say_everything(&cluster, way);
        for name in ["a pod of another node", "a pod of the same node"] {
            let frames = captures.next().expect("two captures").end();
            let seen = Seen::of(&frames, false, way.mtu());
            let seen = seen.unwrap_or_else(|fault| panic!("{way:?}, {name}: {fault}"));
            assert!(
                seen.large > 0,
                "{way:?}, {name}: everything was cut: {seen:?}"
            );
            assert!(
                seen.left > 0,
                "{way:?}, {name}: nothing was left to a device: {seen:?}"
            );
        }
        let seen = Seen::of(&between.end(), false, 1_500);
        let seen = seen.unwrap_or_else(|fault| panic!("{way:?}, between nodes: {fault}"));
        assert_eq!(seen.tunnelled > 0, way != Way::Direct, "{way:?}: {seen:?}");

        // As hardware has it.
        for (index, node) in cluster.nodes.iter().enumerate() {
            ethtool::like_hardware(&node.ns, "eth0");
            let port = format!("port{index}");
            ethtool::like_hardware(&cluster.outside, &port);
            // Who listens in the middle wants to see each frame.
            ethtool::set_merging(&cluster.outside, &port, false);
            for pod in &node.pods {
                ethtool::like_hardware(&pod.ns, "eth0");
            }
        }
        ethtool::like_hardware(&cluster.outside, "br0");
        let captures = [
            (Capture::start(&cluster.outside), "between nodes", true),
            (Capture::start(pod), "a pod", false),
        ];
        say_everything(&cluster, way);
        for (capture, name, complete) in captures {
            let frames = capture.end();
            let seen = Seen::of(&frames, complete, 1_500);
            let seen =
                seen.unwrap_or_else(|fault| panic!("{way:?}, like hardware, {name}: {fault}"));
            assert!(seen.packets > BULK / 65_536, "{way:?}, {name}: {seen:?}");
        }
    }
}

fn warm_up(cluster: &Cluster) {
    let [a, b] = [0, 1].map(|node| &cluster.nodes[node].pods[0]);
    let _server = Server::start(&b.ns, 8_080);
    let deadline = Instant::now() + PATIENCE;
    for v4 in [true, false] {
        let target = SocketAddr::new(b.address(v4), 8_080);
        let asked = || a.ns.run(|| Conversation::open(target)?.ask("hello"));
        while asked().is_err() {
            assert!(Instant::now() < deadline, "{target} does not answer");
        }
    }
}
