//! Addresses of LoadBalancers without a cloud: which node answers its neighbours for them.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use windlass_datapath::types::{Addr, ServiceKey};
use windlass_network::{Announcer, Routing};

use crate::{
    cluster::Cluster,
    echo::{PATIENCE, Server, ask_tcp},
    world::TCP,
};

const PORT: u16 = 80;
/// Several, so that each node gets its share, whatever its Ethernet address is.
const ADDRESSES: u8 = 12;

fn addresses() -> Vec<IpAddr> {
    let v4 = (0..ADDRESSES).map(|number| IpAddr::from([192, 0, 2, 100 + number]));
    let v6 = |number| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x100, number));
    v4.chain((0..u16::from(ADDRESSES)).map(v6)).collect()
}

struct Balanced {
    cluster: Cluster,
    announcers: Vec<Option<Announcer>>,
    _servers: Vec<Server>,
}

impl Balanced {
    /// Each node serves each address with a pod of its own, whose name tells where an answer came from.
    fn new() -> Self {
        let cluster = Cluster::new(3, 1, Routing::Direct);
        let mut servers = Vec::new();
        for node in &cluster.nodes {
            let pod = &node.pods[0];
            servers.push(Server::start(&pod.ns, 8080));
            for address in addresses() {
                let key = ServiceKey::new(Addr::from(address), PORT, TCP);
                node.serve(key, (pod.address(address.is_ipv4()), 8080));
            }
        }
        let nodes = cluster.nodes.iter();
        let announcers = nodes
            .map(|node| Some(node.announce(&addresses())))
            .collect();
        Self {
            cluster,
            announcers,
            _servers: servers,
        }
    }

    fn holders(&self, address: IpAddr) -> Vec<usize> {
        let holds = |index: &usize| self.cluster.nodes[*index].announced().contains(&address);
        (0..self.cluster.nodes.len()).filter(holds).collect()
    }

    /// Waits until exactly one of the nodes answers for each address.
    fn settled(&self, why: &str) -> Vec<usize> {
        let deadline = Instant::now() + PATIENCE * 2;
        loop {
            let found: Vec<_> = addresses().iter().map(|it| self.holders(*it)).collect();
            if found.iter().all(|holders| holders.len() == 1) {
                return found.concat();
            }
            assert!(Instant::now() < deadline, "{why}: {found:?}");
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Dials until the pod of one of these nodes answers.
    fn answered_by(&self, address: IpAddr, nodes: &[usize], why: &str) -> usize {
        let target = SocketAddr::new(address, PORT);
        let pods = nodes
            .iter()
            .map(|index| &self.cluster.nodes[*index].pods[0].ns.name);
        let pods: Vec<&String> = pods.collect();
        let deadline = Instant::now() + PATIENCE * 2;
        loop {
            let answer = ask_tcp(&self.cluster.outside, target);
            if let Ok(answer) = &answer
                && let Some(at) = pods.iter().position(|pod| **pod == answer.server)
            {
                return nodes[at];
            }
            assert!(Instant::now() < deadline, "{why}, {target}: {answer:?}");
        }
    }
}

#[test]
fn one_node_answers_for_each_address_and_another_when_it_dies() {
    let mut balanced = Balanced::new();
    let holders = balanced.settled("at the start");
    for (address, holder) in addresses().into_iter().zip(&holders) {
        balanced.answered_by(address, &[*holder], "at the start");
    }
    // Nobody is there: refused at once, not sent on.
    let closed = SocketAddr::new(addresses()[0], PORT + 1);
    let error = ask_tcp(&balanced.cluster.outside, closed).expect_err("no such port");
    assert_eq!(
        error.kind(),
        std::io::ErrorKind::ConnectionRefused,
        "{error}"
    );

    // A node is cut off. It goes on believing that it answers.
    let dead = holders[0];
    let cut = |there| {
        let (cluster, node) = (&balanced.cluster, &balanced.cluster.nodes[dead]);
        node.set_cable(&cluster.outside, dead, there);
    };
    let alive: Vec<usize> = (0..3).filter(|index| *index != dead).collect();
    cut(false);
    let begun = Instant::now();
    balanced.answered_by(addresses()[0], &alive, "after a death");
    println!(
        "an address was answered for by another node {:?} after its own died",
        begun.elapsed()
    );
    for (address, holder) in addresses().into_iter().zip(&holders) {
        let expected = if *holder == dead {
            &alive[..]
        } else {
            &[*holder][..]
        };
        balanced.answered_by(address, expected, "after a death");
    }
    // It hears the others again, and they agree.
    cut(true);
    let holders = balanced.settled("after the return");
    for (address, holder) in addresses().into_iter().zip(&holders) {
        balanced.answered_by(address, &[*holder], "after the return");
    }

    // An agent ends in order: it gives everything up.
    let ending = holders[0];
    balanced.announcers[ending] = None;
    assert!(balanced.cluster.nodes[ending].announced().is_empty());
    let holders = balanced.settled("after an end");
    assert!(!holders.contains(&ending), "{holders:?}");
    balanced.answered_by(addresses()[0], &[holders[0]], "after an end");
}

/// What the kernel answers for after a kill -9 of the agent.
#[test]
fn a_new_agent_goes_on_with_what_is_its_own_and_gives_up_the_rest() {
    let cluster = Cluster::new(1, 0, Routing::Direct);
    let node = &cluster.nodes[0];
    let [own, gone, new] = [7, 8, 9].map(|last| IpAddr::from([192, 0, 2, last]));
    node.left_announced("eth0", &[own, gone]);
    // An interface that is no uplink any more.
    node.left_announced("lo", &[gone]);
    let _announcer = node.announce(&[own, new]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut held = node.announced();
        held.sort();
        assert!(held.contains(&own), "never without: {held:?}");
        if held == [own, new] {
            return;
        }
        assert!(Instant::now() < deadline, "{held:?}");
        thread::park_timeout(Duration::from_millis(5));
    }
}
