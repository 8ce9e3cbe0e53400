//! A link on the way that is narrower than those at its ends: whoever sends too much is told, and understands it, by
//! whatever address it knows the other end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use windlass_datapath::types::ServiceKey;
use windlass_network::Routing;

use crate::{
    agent::{Agent, NODE_PORT, dual_spec},
    cluster::Cluster,
    echo::{Conversation, Server},
    netns::NetNs,
    traffic_policies::here,
    world::{
        NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, PodSockets, TCP, World, cluster_ip,
        cluster_ip_v6, vip, vip_v6,
    },
};

const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 2)),
];
const NARROW: u16 = 1_300;
/// Many segments.
const LONG: usize = 20_000;

/// The host that has the addresses [`FAR`], behind a narrow link of the outside. It lets everybody send it more than passes
/// there.
fn far_behind(outside: &NetNs, nodes: &[&NetNs]) -> NetNs {
    host_behind(outside, nodes, 100, NARROW)
}

/// A host behind the outside, which is a router then.
fn host_behind(outside: &NetNs, nodes: &[&NetNs], network: u8, mtu: u16) -> NetNs {
    let host = NetNs::new(&format!("host{network}"));
    let inner = format!("to{network}");
    outside.ip(&format!(
        "link add {inner} type veth peer name eth0 netns {}",
        host.path().display()
    ));
    let (v4, v6) = (format!("198.51.{network}"), format!("2001:db8:{network}:"));
    for (namespace, interface, last) in [(outside, inner.as_str(), 1), (&host, "eth0", 2)] {
        namespace.ip(&format!("link set {interface} up mtu {mtu}"));
        namespace.ip(&format!("addr add {v4}.{last}/24 dev {interface}"));
        namespace.ip(&format!("addr add {v6}:{last}/64 dev {interface} nodad"));
    }
    outside.sysctl("ipv4/ip_forward", "1");
    outside.sysctl("ipv6/conf/all/forwarding", "1");
    // What it says comes back by the node, when that is what stands for the host that it is said to.
    outside.sysctl("ipv4/conf/all/accept_local", "1");
    // Everybody is told, however many there were in this second.
    outside.sysctl("ipv4/icmp_ratelimit", "0");
    outside.sysctl("ipv6/icmp/ratelimit", "0");
    host.ip(&format!("route add default via {v4}.1 advmss 1460"));
    host.ip(&format!("route add default via {v6}:1 advmss 1440"));
    for node in nodes {
        node.ip(&format!("route replace {v4}.0/24 via {OUTSIDE_V4}"));
        node.ip(&format!("route replace {v6}:/64 via {OUTSIDE_V6}"));
    }
    host
}

/// Whether a namespace has learned what passes on the way to an address; it forgets it again.
fn learned(namespace: &NetNs, to: IpAddr) -> bool {
    let way = namespace.tool("ip", &format!("route get {to}"));
    for family in ["-4", "-6"] {
        namespace.ip(&format!("{family} route flush cache"));
    }
    way.contains(&format!("mtu {NARROW}"))
}

#[test]
fn a_backend_learns_what_passes_to_a_client_whatever_becomes_of_its_service() {
    let world = World::new(1, PodSockets::ByTc);
    let far = far_behind(&world.outside, &[&world.node]);
    let server = &world.pods[0];
    let _servers = [8080, 9090].map(|port| Server::start(&server.ns, port));
    let mut agent = Agent::new(&world);
    for (node, from) in [IpAddr::from(NODE_V4), NODE_V6.into()].into_iter().zip(FAR) {
        for change in ["nothing", "a new target", "a family less", "its end"] {
            agent.target = 8080;
            agent.apply(dual_spec("Cluster"), &here(server));
            let target = SocketAddr::new(node, NODE_PORT);
            let conversation = far.run(|| Conversation::open(target));
            let mut conversation = conversation.expect("connecting");
            conversation.ask("hello").expect("an answer");
            let mut spec = dual_spec("Cluster");
            match change {
                "a new target" => agent.target = 9090,
                "a family less" => {
                    let own = spec["clusterIPs"][usize::from(node.is_ipv4())].clone();
                    spec["clusterIP"] = own.clone();
                    spec["clusterIPs"] = [own].into_iter().collect();
                }
                _ => {}
            }
            match change {
                "its end" => agent.remove(),
                _ => drop(agent.apply(spec, &here(server))),
            }
            let answer = conversation.ask(&"x".repeat(LONG));
            assert!(answer.is_ok(), "{target}, {change}: {answer:?}");
            assert!(learned(&server.ns, from), "{target}, {change}");
        }
    }
}

#[test]
fn a_client_learns_what_passes_to_a_backend_whatever_becomes_of_its_service() {
    let world = World::new(1, PodSockets::ByTc);
    let far = far_behind(&world.outside, &[&world.node]);
    let near = host_behind(&world.outside, &[&world.node], 101, 1_500);
    let _server = Server::start(&far, 8080);
    let node = [IpAddr::from(NODE_V4), NODE_V6.into()];
    let vips = [vip(80), vip_v6(80)];
    let pod = &world.pods[0].ns;
    for (family, backend) in FAR.into_iter().enumerate() {
        let cluster_ip = [cluster_ip(80, TCP), cluster_ip_v6(80, TCP)][family];
        let node_port = ServiceKey::node_port(backend.is_ipv4(), NODE_PORT, TCP);
        for (from, target) in [
            (&near, SocketAddr::new(node[family], NODE_PORT)),
            (pod, vips[family]),
        ] {
            world.serve_at(1, &[cluster_ip, node_port], (backend, 8080).into());
            let conversation = from.run(|| Conversation::open(target));
            let mut conversation = conversation.expect("connecting");
            conversation.ask("hello").expect("an answer");
            Agent::new(&world).remove();
            let answer = conversation.ask(&"x".repeat(LONG));
            assert!(answer.is_ok(), "{} to {target}: {answer:?}", from.name);
            assert!(learned(from, target.ip()), "{} to {target}", from.name);
        }
    }
}

#[test]
fn a_backend_on_another_node_learns_what_passes_to_a_client() {
    for (routing, directly) in [
        (Routing::Direct, false),
        (Routing::Direct, true),
        (Routing::Vxlan, true),
    ] {
        let cluster = match directly {
            true => Cluster::answering_directly(2, 1, routing),
            false => Cluster::new(2, 1, routing),
        };
        let [asked, behind] = [0, 1].map(|index| &cluster.nodes[index]);
        let far = far_behind(&cluster.outside, &[&asked.ns, &behind.ns]);
        let pod = &behind.pods[0];
        let _server = Server::start(&pod.ns, 8080);
        for (v4, from) in [true, false].into_iter().zip(FAR) {
            for node in &cluster.nodes {
                node.node_port(NODE_PORT, TCP, (pod.address(v4), 8080));
            }
            let target = SocketAddr::new(asked.address(v4), NODE_PORT);
            let conversation = far.run(|| Conversation::open(target));
            let mut conversation = conversation.expect("connecting");
            let answer = conversation.ask(&"x".repeat(LONG));
            let case = format!("{target}, {routing:?}, directly: {directly}");
            let answer = answer.unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(answer.seen_client.ip() == from, directly, "{case}");
            assert!(learned(&pod.ns, answer.seen_client.ip()), "{case}");
        }
    }
}
