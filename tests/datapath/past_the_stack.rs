//! What a pod sends to another node goes past the host's stack, and nobody at either end can tell.

use std::{
    fs,
    io::IoSliceMut,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use windlass_datapath::types;
use windlass_network::Routing;

use crate::{
    cluster::Cluster,
    echo::{Conversation, PATIENCE, Server, ask_udp},
    netns::NetNs,
};

const DATAGRAMS: u64 = 2_000;
/// Of those, as many as may be sent before the neighbour is known.
const LOOKUPS: u64 = 100;
/// The way is looked up several times.
const WHILE: Duration = Duration::from_millis(600);
/// Linux's default time to live, less the one node that forwards: the other hands over by `bpf_redirect_peer`.
const ARRIVES_WITH: i32 = 64 - 1;

#[test]
fn datagrams_to_another_node_pass_the_hosts_stack_and_are_one_hop_older() {
    let cluster = Cluster::new(2, 1, Routing::Direct);
    let [node, other] = [0, 1].map(|node| &cluster.nodes[node]);
    for v4 in [true, false] {
        let target = SocketAddr::new(other.pods[0].address(v4), 9000);
        let receiver = other.pods[0].ns.run(|| receiver(target));
        let sender = node.pods[0].ns.run(|| {
            let any = SocketAddr::new(node.pods[0].address(v4), 0);
            let socket = UdpSocket::bind(any).expect("binding");
            socket.connect(target).expect("connecting");
            socket
        });
        let before = forwarded(&node.ns, v4);
        for number in 0..DATAGRAMS {
            sender.send(&number.to_be_bytes()).expect("sending");
            let (received, hops) = receive(&receiver);
            assert_eq!(received, number, "in order, each once");
            assert_eq!(hops, ARRIVES_WITH, "datagram {number} to {target}");
        }
        let by_the_stack = forwarded(&node.ns, v4) - before;
        assert!(
            by_the_stack <= LOOKUPS,
            "{by_the_stack} of {DATAGRAMS} to {target} went by the stack"
        );
    }
}

#[test]
fn a_node_whose_ethernet_address_changes_is_followed() {
    let cluster = Cluster::new(2, 1, Routing::Direct);
    let [node, other] = [0, 1].map(|node| &cluster.nodes[node]);
    let _server = Server::start(&other.pods[0].ns, 8080);
    for v4 in [true, false] {
        let target = SocketAddr::new(other.pods[0].address(v4), 8080);
        let from = &node.pods[0].ns;
        let mut conversation = from.run(|| Conversation::open(target)).expect("connecting");
        conversation.ask("before").expect("an answer");
        other.ns.ip("link set eth0 address 02:00:00:00:77:01");
        node.ns.ip("neigh flush dev eth0");
        // Its packets are repeated until one arrives; a datagram is not.
        conversation.ask("after").expect("an answer");
        let deadline = Instant::now() + 4 * PATIENCE;
        while let Err(error) = ask_udp(from, target) {
            assert!(Instant::now() < deadline, "{target}: {error}");
        }
        other.ns.ip("link set eth0 address 02:00:00:00:77:02");
        node.ns.ip("neigh flush dev eth0");
    }
}

/// As other network plugins and administrators do: a pod's source is replaced, or a port of the node leads to it.
#[test]
fn what_somebodys_rules_translate_goes_by_the_stack() {
    let cluster = Cluster::new(2, 1, Routing::Direct);
    let [node, other] = [0, 1].map(|node| &cluster.nodes[node]);
    let (pod, far) = (&node.pods[0], &other.pods[0]);
    let _servers = [Server::start(&pod.ns, 8080), Server::start(&far.ns, 8080)];
    for (v4, tool) in [(true, "iptables"), (false, "ip6tables")] {
        let out = SocketAddr::new(far.address(v4), 8080);
        let by_port = SocketAddr::new(node.address(v4), 8088);
        // From here on the way is known.
        ask_udp(&pod.ns, out).expect("an answer");
        let inside = SocketAddr::new(pod.address(v4), 8080);
        for rule in [
            format!("POSTROUTING -s {} -j MASQUERADE", inside.ip()),
            format!(
                "PREROUTING -d {} -p tcp --dport 8088 -j DNAT --to-destination {inside}",
                by_port.ip()
            ),
        ] {
            node.ns.tool(tool, &format!("-w -t nat -A {rule}"));
        }
        for (from, target, client) in [
            (pod, out, node.address(v4)),
            (far, by_port, far.address(v4)),
            // No rule speaks of who comes, and its packets come past the stack: nor do the answers meet a rule.
            (far, inside, far.address(v4)),
        ] {
            let mut conversation = from
                .ns
                .run(|| Conversation::open(target))
                .expect("connecting");
            let end = Instant::now() + WHILE;
            while Instant::now() < end {
                let answer = conversation.ask("who is it");
                let answer = answer.unwrap_or_else(|error| panic!("{target}: {error}"));
                assert_eq!(answer.seen_client.ip(), client, "{target}");
            }
        }
    }
}

/// As with a kube-proxy whose place is taken: a NodePort that its rules have served.
#[test]
fn what_rules_have_translated_goes_on_when_a_service_takes_their_place() {
    const PORT: u16 = 30_088;
    let cluster = Cluster::new(2, 1, Routing::Direct);
    let [node, client] = [0, 1].map(|node| &cluster.nodes[node]);
    let pod = &node.pods[0];
    let _servers = [8080, 8081].map(|port| Server::start(&pod.ns, port));
    for (v4, tool) in [(true, "iptables"), (false, "ip6tables")] {
        let dialled = SocketAddr::new(node.address(v4), PORT);
        let (ip, id) = (pod.address(v4), if v4 { 1 } else { 2 });
        let (from, to) = (dialled.ip(), SocketAddr::new(ip, 8080));
        let rule = format!("PREROUTING -d {from} -p tcp --dport {PORT} -j DNAT --to {to}");
        node.ns.tool(tool, &format!("-w -t nat -A {rule}"));
        // The kernel forgets all that netfilter translates when the last rule that asks for it goes; a kubelet's stays.
        let stays = "-w -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT";
        node.ns.tool(tool, stays);
        let connect = || {
            let opened = client.ns.run(|| Conversation::open(dialled));
            opened.expect("connecting")
        };
        let mut early = connect();
        early.ask("by the rules").expect("an answer");
        node.begin_handover();
        let mut late = connect();
        late.ask("while the tables are written").expect("an answer");
        node.node_port(PORT, types::protocol::TCP, (ip, 8081));
        node.end_handover();
        node.ns.tool(tool, "-w -t nat -F PREROUTING");
        let before = node.answered(id);
        for conversation in [&mut early, &mut late] {
            conversation.ask("without the rules").expect("an answer");
        }
        assert_eq!(node.answered(id), before, "{dialled}: not by the table");
        connect().ask("by the table").expect("an answer");
        assert!(node.answered(id) > before, "{dialled}");
    }
}

fn receiver(at: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(at).expect("binding");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    match at {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvTtl, &true),
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true),
    }
    .expect("asking for the hops that are left");
    socket
}

/// The number in a datagram, and how many hops it had left.
fn receive(socket: &UdpSocket) -> (u64, i32) {
    let mut number = [0; 8];
    let mut buffers = [IoSliceMut::new(&mut number)];
    let mut room = nix::cmsg_space!(i32);
    let flags = MsgFlags::empty();
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut room), flags)
        .expect("a datagram arrives");
    let hops = message
        .cmsgs()
        .expect("control messages")
        .find_map(|said| match said {
            ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops) => {
                Some(hops)
            }
            _ => None,
        });
    (
        u64::from_be_bytes(number),
        hops.expect("the hops that are left"),
    )
}

/// How many packets a node's stack has sent on.
fn forwarded(node: &NetNs, v4: bool) -> u64 {
    let (file, name) = match v4 {
        true => ("/proc/thread-self/net/snmp", "ForwDatagrams"),
        false => ("/proc/thread-self/net/snmp6", "Ip6OutForwDatagrams"),
    };
    let text = node.run(|| fs::read_to_string(file).expect("the stack's counters"));
    let number = if v4 {
        // A line of names, and one of numbers.
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
        let names = lines.next().expect("names").split(' ');
        let numbers = lines.next().expect("numbers").split(' ');
        names
            .zip(numbers)
            .find(|(at, _)| *at == name)
            .map(|(_, number)| number)
    } else {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    number
        .and_then(|number| number.parse().ok())
        .expect("a counter")
}
