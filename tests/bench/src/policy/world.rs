//! Two pods, on one node or on two, routed by the kernel alone or with Windlass on the way.
//!
//! ```text
//!   client 10.244.0.10                      server 10.244.0.11, or 10.244.1.11
//!        |                                     |
//!      wlpod0 ------ node 192.0.2.10        wlpod1
//!                      eth0 ------------- eth0 192.0.2.11
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use windlass_network::routes::tunnel;
use windlass_tests::unnamed_netns::NetNs;

use super::agent::{self, Node, TUNNEL_PORT};
use super::results::Place;
use super::tables::{CLIENT, SERVER};
use crate::namespaces::{RunFolder, pod};
use crate::service::agent::Pod;
use crate::traffic::{client, server};
use crate::worker::{Worker, shared_nanoseconds};

const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 10);
const NODES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 10), Ipv4Addr::new(192, 0, 2, 11)];
const PODS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 0, 0), Ipv4Addr::new(10, 244, 1, 0)];
const UPLINK: &str = "eth0";
const PORT: u16 = 8080;
/// Of an Ethernet of 1,500, less what VXLAN takes.
const TUNNEL_MTU: usize = 1_450;
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

pub struct World {
    server_address: Ipv4Addr,
    // Dropped in this order: processes, then what they are in.
    /// The server's node's last.
    agents: Vec<Worker>,
    client: Worker,
    server: Worker,
    nodes: Vec<NetNs>,
    pods: [NetNs; 2],
    runs: Vec<RunFolder>,
}

impl World {
    /// Without Windlass where it is not told how many pods more the cluster has.
    pub fn new(place: Place, others: Option<usize>) -> Result<Self> {
        let count = if place == Place::OneNode { 1 } else { 2 };
        let last = count - 1;
        let nodes: Vec<NetNs> = (0..count)
            .map(|index| NetNs::new(&format!("node{index}")))
            .collect();
        for node in &nodes {
            node.sysctl("ipv4/ip_forward", "1");
        }
        let server_address = Ipv4Addr::from_bits(PODS[last].to_bits() + 11);
        let pods = [
            pod(&nodes[0], "wlpod0", CLIENT, &[CLIENT_ADDRESS]),
            pod(&nodes[last], "wlpod1", SERVER, &[server_address]),
        ];
        if let [one, other] = &nodes[..] {
            join(one, other);
            for (own, node) in nodes.iter().enumerate() {
                lead(place, others.is_some(), node, &nodes[1 - own], 1 - own);
            }
        }
        if place == Place::Vxlan {
            for pod in &pods {
                pod.ip(&format!("link set eth0 mtu {TUNNEL_MTU}"));
            }
        }
        let runs = (0..count)
            .map(|_| RunFolder::create())
            .collect::<Result<Vec<_>>>()?;
        let netns = |netns: &NetNs| ["--netns".to_owned(), netns.path().display().to_string()];
        let mut arguments = netns(&pods[1]).to_vec();
        arguments.extend(["--port".into(), PORT.to_string()]);
        let mut server = Worker::start("server", &arguments, &[])?;
        let _: u64 = server.ask(&server::Order::Ready)?;
        let cgroups: Vec<PathBuf> = runs[0].cgroup.iter().cloned().collect();
        let client = Worker::start("client", &netns(&pods[0]), &cgroups)?;
        let mut world = Self {
            server_address,
            agents: Vec::new(),
            client,
            server,
            nodes,
            pods,
            runs,
        };
        for own in 0..others.map_or(0, |_| count) {
            let node = world.node(place, own, others.unwrap_or_default());
            let mut arguments = netns(&world.nodes[own]).to_vec();
            arguments.extend(["--node".into(), serde_json::to_string(&node)?]);
            world
                .agents
                .push(Worker::start("policy-agent", &arguments, &[])?);
        }
        world.set_policies(0)?;
        Ok(world)
    }

    /// What the agent of a node is told.
    fn node(&self, place: Place, own: usize, others: usize) -> Node {
        let asked = [
            (CLIENT, CLIENT_ADDRESS, 0),
            (SERVER, self.server_address, self.nodes.len() - 1),
        ];
        let here = || {
            (0_usize..)
                .zip(&asked)
                .filter(|(_, (_, _, node))| *node == own)
        };
        let pods = here().map(|(number, (_, address, _))| Pod {
            interface: format!("wlpod{number}"),
            addresses: vec![*address],
            mac: self.pods[number].mac("eth0"),
            netns: Some(self.pods[number].path()),
        });
        let across = place != Place::OneNode;
        let other = NODES[1 - own];
        Node {
            bpffs: self.runs[own].bpffs.clone(),
            cgroup: self.runs[0].cgroup.clone().filter(|_| own == 0),
            address: NODES[own],
            uplinks: across.then(|| UPLINK.to_owned()).into_iter().collect(),
            tunnels: if place == Place::Vxlan {
                vec![(PODS[1 - own], 24, other), (other, 32, other)]
            } else {
                Vec::new()
            },
            pods: pods.collect(),
            local: here().map(|(_, (name, _, _))| (*name).to_owned()).collect(),
            asked: asked
                .map(|(name, address, _)| (name.to_owned(), address))
                .into(),
            others,
        }
    }

    pub fn target(&self) -> SocketAddr {
        (self.server_address, PORT).into()
    }

    /// So many policies on both pods, which let them talk.
    pub fn set_policies(&mut self, count: usize) -> Result<()> {
        for agent in &mut self.agents {
            let _: usize = agent.ask(&agent::Order::Policies(count))?;
        }
        Ok(())
    }

    /// One round of one kind of load; the second figure is the server's processor time in microseconds.
    pub fn measure(&mut self, order: &client::Order) -> Result<(client::Answer, u64)> {
        let before: u64 = self.server.ask(&server::Order::Cpu)?;
        let answer = self.client.ask(order)?;
        let after: u64 = self.server.ask(&server::Order::Cpu)?;
        Ok((answer, after - before))
    }

    /// Closes the server by so many policies, then lets the client in by one more: milliseconds from that order to the
    /// first connection.
    pub fn change(&mut self, count: usize) -> Result<f64> {
        let target = self.target();
        let until = |admitted| client::Order::UntilAdmitted {
            target,
            admitted,
            millis: CHANGE_LIMIT.as_millis() as u64,
        };
        self.set_policies(0)?;
        let agent = self.agents.last_mut().context("an agent")?;
        let _: usize = agent.ask(&agent::Order::Closed(count))?;
        let _: client::Answer = self.client.ask(&until(false))?;
        self.client.send(&until(true))?;
        let ordered = shared_nanoseconds();
        let _: usize = agent.ask(&agent::Order::Admit)?;
        let seen: client::Answer = self.client.receive()?;
        Ok(seen.at.saturating_sub(ordered) as f64 / 1e6)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.agents.clear();
        for (node, run) in self.nodes.iter().zip(&self.runs) {
            let bpffs = run.bpffs.clone();
            if let Err(error) = node.run(move || windlass_datapath::cleanup(&bpffs)) {
                eprintln!("cleaning up: {error}");
            }
        }
    }
}

/// A wire between two nodes.
fn join(one: &NetNs, other: &NetNs) {
    one.ip(&format!(
        "link add {UPLINK} type veth peer name {UPLINK} netns {}",
        other.path().display()
    ));
    for (node, address) in [one, other].into_iter().zip(NODES) {
        node.ip(&format!("link set {UPLINK} up"));
        node.ip(&format!("addr add {address}/24 dev {UPLINK}"));
    }
}

/// The way to another node's pods: by its address, or through a tunnel whose key the datapath sets, and where there is no
/// datapath the route.
fn lead(place: Place, has_datapath: bool, node: &NetNs, other: &NetNs, index: usize) {
    let (pods, by) = (format!("{}/24", PODS[index]), NODES[index]);
    if place == Place::Direct {
        node.ip(&format!("route add {pods} via {by}"));
        return;
    }
    let device = tunnel::DEVICE;
    for end in [node, other] {
        // Both nodes come by here: whoever comes first makes it.
        if !end.tool("ip", "-o link").contains(device) {
            end.ip(&format!(
                "link add {device} mtu {TUNNEL_MTU} type vxlan external dstport {TUNNEL_PORT} nolearning"
            ));
            end.sysctl(&format!("ipv4/conf/{device}/rp_filter"), "0");
            let arp = if has_datapath { "off" } else { "on" };
            end.ip(&format!("link set {device} arp {arp} up"));
        }
    }
    if has_datapath {
        node.ip(&format!("route add {pods} dev {device}"));
        return;
    }
    let octets = other.mac(device).map(|octet| format!("{octet:02x}"));
    let (mac, vni) = (octets.join(":"), tunnel::VNI);
    node.ip(&format!(
        "neigh add {by} lladdr {mac} nud permanent dev {device}"
    ));
    node.ip(&format!(
        "route add {pods} encap ip id {vni} dst {by} via {by} dev {device} onlink"
    ));
}
