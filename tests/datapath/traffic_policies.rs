//! Traffic policies and source ranges by real traffic, in both families, by TCP and by UDP: who is served by whom, who
//! is refused, and who gets no answer.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    agent::{Agent, BALANCED_V4, BALANCED_V6, NODE, NODE_PORT, OTHER, dual_spec, endpoint},
    echo::{Answer, Server, ask_connected_udp, ask_tcp, ask_udp, udp_socket},
    netns::NetNs,
    world::{NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, Pod, PodSockets, World, vip, vip_v6},
};

/// [`OTHER`] by IPv6.
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);

/// The ways in which a client may ask.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    Tcp,
    Udp,
}

impl By {
    pub(crate) const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    pub(crate) fn ask(self, from: &NetNs, target: SocketAddr) -> std::io::Result<Answer> {
        match self {
            Self::Tcp => ask_tcp(from, target),
            Self::Udp => ask_udp(from, target).map(|(answer, _)| answer),
        }
    }

    /// Whether nobody answers: neither a service nor a refusal.
    pub(crate) fn is_met_with_silence(self, from: &NetNs, target: SocketAddr) -> bool {
        const SOON: Duration = Duration::from_millis(300);
        from.run(|| match self {
            Self::Tcp => TcpStream::connect_timeout(&target, SOON)
                .is_err_and(|error| error.kind() == ErrorKind::TimedOut),
            Self::Udp => {
                let socket = udp_socket(target).expect("a socket");
                socket.set_read_timeout(Some(SOON)).expect("a timeout");
                socket.connect(target).expect("connecting");
                socket.send(b"hello").expect("sending");
                let heard = socket.recv(&mut [0; 512]);
                heard.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
            }
        })
    }

    pub(crate) fn servers(self, from: &NetNs, target: SocketAddr) -> BTreeSet<String> {
        let ask = |_| self.ask(from, target).expect("the service answers").server;
        (0..30).map(ask).collect()
    }

    pub(crate) fn error(self, from: &NetNs, target: SocketAddr) -> ErrorKind {
        let error = match self {
            Self::Tcp => ask_tcp(from, target).map(drop),
            // Who is not connected hears of no refusal.
            Self::Udp => ask_connected_udp(from, target).map(drop),
        };
        error.expect_err("nobody serves").kind()
    }
}

/// What clients dial and who they are, by family: the cluster's address, the node port's, the balancer's, and the
/// address of the client outside.
pub(crate) fn families() -> [[SocketAddr; 4]; 2] {
    [
        [
            vip(80),
            (NODE_V4, NODE_PORT).into(),
            (BALANCED_V4, 80).into(),
            (OUTSIDE_V4, 0).into(),
        ],
        [
            vip_v6(80),
            (NODE_V6, NODE_PORT).into(),
            (BALANCED_V6, 80).into(),
            (OUTSIDE_V6, 0).into(),
        ],
    ]
}

pub(crate) fn route_balanced(world: &World) {
    for (network, via) in [
        ("203.0.113.0/24", IpAddr::from(NODE_V4)),
        ("2001:db8:1::/64", NODE_V6.into()),
    ] {
        world.outside.ip(&format!("route add {network} via {via}"));
    }
}

/// The outside takes the node for the way to the Services' addresses, and the node the outside for the way to everything.
pub(crate) fn route_to_and_fro(world: &World) {
    route_balanced(world);
    for (network, via) in [
        ("10.96.0.0/16", IpAddr::from(NODE_V4)),
        ("fd00:96::/64", NODE_V6.into()),
    ] {
        world.outside.ip(&format!("route add {network} via {via}"));
    }
    for via in [IpAddr::from(OUTSIDE_V4), OUTSIDE_V6.into()] {
        world.node.ip(&format!("route add default via {via}"));
    }
}

/// A pod's endpoints, of both families.
pub(crate) fn here(pod: &Pod) -> [Value; 2] {
    [endpoint(pod.v4, NODE), endpoint(pod.v6, NODE)]
}

fn there() -> [Value; 2] {
    [OTHER.into(), OTHER_V6.into()].map(|address: IpAddr| endpoint(address, "other-node"))
}

#[test]
fn with_a_local_policy_the_outside_gets_local_endpoints_and_pods_get_all() {
    let world = World::new(2, PodSockets::ByTc);
    world.outside.ip("addr add 192.0.2.3/24 dev eth0");
    world.outside.ip(&format!(
        "addr add {OTHER_V6}/64 dev eth0 nodad preferred_lft 0"
    ));
    route_balanced(&world);
    let _local = Server::start(&world.pods[0].ns, 8080);
    let _remote = [OTHER.into(), OTHER_V6.into()]
        .map(|address: IpAddr| Server::start_at(&world.outside, (address, 8080).into()));
    let mut agent = Agent::new(&world);
    let (here, there) = (here(&world.pods[0]), there());
    let all = [here.clone(), there.clone()].concat();
    let both = BTreeSet::from(["a", "outside"].map(String::from));
    let (outside, pod) = (&world.outside, &world.pods[1].ns);
    let each = |check: &dyn Fn(By, [SocketAddr; 4])| {
        for by in By::ALL {
            families().into_iter().for_each(|family| check(by, family));
        }
    };

    agent.apply(dual_spec("Local"), &all);
    each(&|by, [_, node_port, balanced, client]| {
        for target in [node_port, balanced] {
            assert_eq!(by.servers(outside, target), ["a".to_owned()].into());
            let seen = by.ask(outside, target).expect("from outside").seen_client;
            assert_eq!(
                seen.ip(),
                client.ip(),
                "the client's own address is preserved"
            );
            assert_eq!(by.servers(pod, target), both);
            assert_eq!(by.servers(&world.node, target), both);
        }
    });
    // The last local endpoint goes: clients outside are to try another node.
    agent.apply(dual_spec("Local"), &there);
    each(&|by, [_, node_port, balanced, _]| {
        for target in [node_port, balanced] {
            assert!(by.is_met_with_silence(outside, target), "{by:?} {target}");
            by.ask(pod, target)
                .expect("pods are served by the other node");
        }
    });
    assert!(world.count("dropped-no-local-endpoint", "from-uplink") > 0);
    // The last endpoint of all goes: everyone is told at once.
    agent.apply(dual_spec("Local"), &[]);
    each(&|by, [cluster_ip, node_port, ..]| {
        for (from, target) in [(outside, node_port), (pod, cluster_ip)] {
            assert_eq!(by.error(from, target), ErrorKind::ConnectionRefused);
        }
    });
    agent.apply(dual_spec("Cluster"), &all);
    each(&|by, [_, node_port, ..]| assert_eq!(by.servers(outside, node_port), both));
}

#[test]
fn an_internal_local_policy_without_local_endpoints_is_silent() {
    for sockets in [PodSockets::ByTc, PodSockets::ByHook] {
        let world = World::new(2, sockets);
        let _local = Server::start(&world.pods[0].ns, 8080);
        let mut agent = Agent::new(&world);
        let mut spec = dual_spec("Cluster");
        spec["internalTrafficPolicy"] = "Local".into();
        let client = &world.pods[1].ns;
        agent.apply(spec.clone(), &there());
        for (by, [target, ..]) in By::ALL.into_iter().zip(families()) {
            let silent = by.is_met_with_silence(client, target);
            assert!(silent, "{sockets:?} {by:?} {target}");
        }
        for [target, ..] in families() {
            for by in By::ALL {
                let error = by.error(&world.node, target);
                assert_eq!(error, ErrorKind::HostUnreachable, "the node need not wait");
            }
        }
        agent.apply(spec, &here(&world.pods[0]));
        for [target, ..] in families() {
            for by in By::ALL {
                assert_eq!(by.servers(client, target), ["a".to_owned()].into());
            }
        }
    }
}

#[test]
fn a_port_that_no_service_has_is_refused_at_once() {
    for sockets in [PodSockets::ByTc, PodSockets::ByHook] {
        let world = World::new(2, sockets);
        let _server = Server::start(&world.pods[0].ns, 8080);
        let mut agent = Agent::new(&world);
        agent.apply(dual_spec("Cluster"), &here(&world.pods[0]));
        // Without a refusal, the two would send such packets to and fro.
        route_to_and_fro(&world);
        for [target, _, balanced, _] in families() {
            for address in [target, balanced] {
                let other = SocketAddr::new(address.ip(), 9);
                for by in By::ALL {
                    let error = by.error(&world.outside, other);
                    assert_eq!(error, ErrorKind::ConnectionRefused, "{other} by {by:?}");
                }
            }
            let other = SocketAddr::new(target.ip(), 9);
            for (from, by) in [(&world.node, By::Tcp), (&world.pods[1].ns, By::Udp)] {
                by.ask(from, target).expect("the service answers");
            }
            let (node, pod) = (&world.node, &world.pods[1].ns);
            for (from, by) in [(node, By::Tcp), (pod, By::Tcp), (pod, By::Udp)] {
                let error = by.error(from, other);
                assert_eq!(error, ErrorKind::ConnectionRefused, "{sockets:?} {by:?}");
            }
        }
        assert!(world.count("rejected-no-endpoint", "from-pod") > 0);
        // Where the node has the address itself, it is the host that says what is there.
        world.node.ip(&format!("addr add {BALANCED_V4}/32 dev lo"));
        let _host = Server::start_at(&world.node, (BALANCED_V4, 9).into());
        By::Tcp
            .ask(&world.outside, (BALANCED_V4, 9).into())
            .expect("the host serves");
    }
}

#[test]
fn source_ranges_are_for_the_balancers_address_and_for_everyone() {
    for sockets in [PodSockets::ByTc, PodSockets::ByHook] {
        let world = World::new(2, sockets);
        route_balanced(&world);
        let _server = Server::start(&world.pods[0].ns, 8080);
        let mut agent = Agent::new(&world);
        let here = here(&world.pods[0]);
        let with_ranges = |ranges: &[String]| {
            let mut spec = dual_spec("Cluster");
            spec["loadBalancerSourceRanges"] = json!(ranges);
            spec
        };
        let pod = &world.pods[1];
        let own: [IpAddr; 2] = [pod.v4.into(), pod.v6.into()];
        for (by, (family, own)) in By::ALL.into_iter().zip(families().into_iter().zip(own)) {
            let [cluster_ip, node_port, balanced, client] = family;
            let only = |address: IpAddr| ipnet::IpNet::from(address).to_string();
            agent.apply(with_ranges(&[only(client.ip())]), &here);
            by.ask(&world.outside, balanced).expect("in range");
            assert!(
                by.is_met_with_silence(&pod.ns, balanced),
                "not in range, {sockets:?}"
            );
            by.ask(&pod.ns, cluster_ip)
                .expect("the cluster IP has no ranges");
            // Those of the other family say nothing of this one's clients.
            let of_other = match client.is_ipv4() {
                true => "2001:db8:f::/48",
                false => "198.51.100.0/24",
            };
            agent.apply(with_ranges(&[of_other.to_owned()]), &here);
            by.ask(&world.outside, balanced)
                .expect("no range of this family");
            agent.apply(with_ranges(&[of_other.to_owned(), only(own)]), &here);
            assert!(
                by.is_met_with_silence(&world.outside, balanced),
                "not in range any more"
            );
            by.ask(&world.outside, node_port)
                .expect("nor have NodePorts");
            by.ask(&pod.ns, balanced)
                .expect("the pod's own address is in range");
        }
        agent.apply(with_ranges(&[]), &here);
        for [_, _, balanced, _] in families() {
            ask_tcp(&world.outside, balanced).expect("without ranges everyone is");
        }
        let snapshot = world.datapath().services().snapshot().expect("reading");
        assert!(snapshot.source_ranges.is_empty());
    }
}

/// Users of other proxies cannot reach such an address from where its backend is.
#[test]
fn external_addresses_are_dialled_by_everyone_and_by_the_backend_itself() {
    for sockets in [PodSockets::ByTc, PodSockets::ByHook] {
        let world = World::new(2, sockets);
        route_balanced(&world);
        let _server = Server::start(&world.pods[0].ns, 8080);
        let addresses = ["203.0.113.9", "2001:db8:1::9"];
        let mut spec = dual_spec("Cluster");
        spec["externalIPs"] = json!(addresses);
        Agent::new(&world).apply(spec, &here(&world.pods[0]));
        let [itself, beside] = [0, 1].map(|pod| &world.pods[pod].ns);
        for address in addresses {
            let target: SocketAddr = (address.parse::<IpAddr>().expect("an address"), 80).into();
            for from in [itself, beside, &world.node, &world.outside] {
                for by in By::ALL {
                    let answer = by.ask(from, target);
                    let answer = answer.unwrap_or_else(|error| {
                        panic!(
                            "{target} by {by:?} from {}, {sockets:?}: {error}",
                            from.name
                        )
                    });
                    assert_eq!(answer.server, world.pods[0].ns.name);
                }
            }
        }
    }
}
