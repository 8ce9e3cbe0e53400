//! Pods whose interfaces another CNI plugin has made at a bridge, as flannel and the reference plugins do, with the
//! datapath's programs on them: a node that was taken over has such pods beside our own.
//!
//! ```text
//!   pod a   pod b        pod c   pod d
//!     |       |            |       |
//!   wlpod0  wlpod1       veth2   veth3
//!     |       |            +--cni0-+ (10.244.0.1/24, fd00:244::1/64)
//!     +------ node ------------+
//! ```

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use windlass_datapath::{PodInterface, types::ServiceKey};

use crate::{
    echo::{Server, ask_tcp, ask_udp},
    netns::NetNs,
    world::{NODE_V4, OUTSIDE_V4, Pod, PodSockets, TCP, UDP, World, cluster_ip, vip},
};

const OURS: usize = 2;
pub const BRIDGE_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
pub const BRIDGE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1);

/// Two pods of ours and two at a bridge.
pub fn world(sockets: PodSockets) -> World {
    let mut world = World::new(OURS, sockets);
    for command in [
        "link add cni0 type bridge".to_owned(),
        format!("addr add {BRIDGE_V4}/24 dev cni0"),
        format!("addr add {BRIDGE_V6}/64 dev cni0 nodad"),
        "link set cni0 up".to_owned(),
    ] {
        world.node.ip(&command);
    }
    for (index, name) in [(2, "c"), (3, "d")] {
        let pod = plug(&world.node, index, name, sockets);
        world
            .node
            .run(|| world.datapath().attach_pod(&pod.interface))
            .expect("attaching a pod of another plugin");
        world.pods.push(pod);
    }
    world
}

fn plug(node: &NetNs, index: usize, name: &str, sockets: PodSockets) -> Pod {
    let ns = NetNs::new(name);
    let host_side = format!("veth{index}");
    let v4 = Ipv4Addr::new(10, 244, 0, 10 + index as u8);
    let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 10 + index as u16);
    node.ip(&format!(
        "link add {host_side} type veth peer name eth0 netns {}",
        ns.path().display()
    ));
    node.ip(&format!("link set {host_side} master cni0 up"));
    ns.ip("link set eth0 up");
    ns.ip(&format!("addr add {v4}/24 dev eth0"));
    ns.ip(&format!("addr add {v6}/64 dev eth0 nodad"));
    ns.ip(&format!("route add default via {BRIDGE_V4}"));
    ns.ip(&format!("route add default via {BRIDGE_V6}"));
    let interface = PodInterface {
        name: host_side,
        addresses: vec![v4.into(), v6.into()],
        mac: ns.mac("eth0"),
        netns: (sockets == PodSockets::ByHook).then(|| ns.path()),
        limited: false,
    };
    Pod {
        ns,
        v4,
        v6,
        interface,
    }
}

#[test]
fn pods_at_a_bridge_reach_everybody_and_every_service() {
    for sockets in [PodSockets::ByHook, PodSockets::ByTc] {
        let world = world(sockets);
        let _servers: Vec<Server> = (world.pods.iter().map(|pod| &pod.ns))
            .chain([&world.node])
            .map(|ns| Server::start(ns, 8080))
            .collect();
        world.serve(
            1,
            &[
                cluster_ip(80, TCP),
                ServiceKey::node_port(true, 30_080, TCP),
            ],
            8080,
            &[0, 3],
            true,
        );
        world.serve(2, &[cluster_ip(80, UDP)], 8080, &[0, 3], true);
        let check = |from: &NetNs, target: SocketAddr, names: &[&str]| {
            let place = &from.name;
            let answer = ask_tcp(from, target)
                .unwrap_or_else(|error| panic!("{sockets:?}: {place} -> {target} by TCP: {error}"));
            assert!(
                names.contains(&answer.server.as_str()),
                "{place} -> {target}: {answer:?}"
            );
        };
        for from in world.pods.iter().map(|pod| &pod.ns).chain([&world.node]) {
            for to in &world.pods {
                for target in [(to.v4, 8080).into(), SocketAddr::from((to.v6, 8080))] {
                    check(from, target, &[&to.ns.name]);
                }
            }
            check(from, (NODE_V4, 8080).into(), &["node"]);
            for _ in 0..10 {
                check(from, vip(80), &["a", "d"]);
            }
            let (answer, said_by) = ask_udp(from, vip(80)).expect("an answer by UDP");
            assert!(["a", "d"].contains(&answer.server.as_str()), "{answer:?}");
            assert_eq!(said_by, vip(80));
        }
        for _ in 0..10 {
            check(&world.outside, (NODE_V4, 30_080).into(), &["a", "d"]);
        }
        world.pods[2].ns.ping(OUTSIDE_V4.into()).expect("an echo");
        world.pods[2]
            .ns
            .ping(world.pods[0].v6.into())
            .expect("an echo by IPv6");
    }
}
