//! Windlass's role on a node: the datapath as the agent has it, and the policy tables, planned and written as by the agent.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use windlass_datapath::{Datapath, DatapathConfig, PodInterface};
use windlass_network::routes::tunnel;

use super::tables::PolicyTables;
use crate::service::agent::Pod;
use crate::worker;

/// VXLAN's, as far as the kernel is asked.
pub const TUNNEL_PORT: u16 = 8_472;

#[derive(clap::Args)]
pub struct Options {
    #[arg(long)]
    netns: PathBuf,
    /// A [`Node`], as JSON.
    #[arg(long)]
    node: String,
}

#[derive(Serialize, Deserialize)]
pub struct Node {
    pub bpffs: PathBuf,
    pub cgroup: Option<PathBuf>,
    pub address: Ipv4Addr,
    /// Interfaces to the other nodes.
    pub uplinks: Vec<String>,
    /// What is behind another node, by its address: the way through the tunnel.
    pub tunnels: Vec<(Ipv4Addr, u8, Ipv4Addr)>,
    pub pods: Vec<Pod>,
    /// The client and the server, by their names, and those of them that are here.
    pub asked: Vec<(String, Ipv4Addr)>,
    pub local: Vec<String>,
    /// How many others the cluster has.
    pub others: usize,
}

#[derive(Serialize, Deserialize)]
pub enum Order {
    /// So many policies, which let the client and the server talk.
    Policies(usize),
    /// So many policies, none of which lets the client in.
    Closed(usize),
    /// One policy more, which does.
    Admit,
}

pub fn run(options: &Options) -> Result<()> {
    worker::enter_netns(&options.netns)?;
    let node: Node = serde_json::from_str(&options.node).context("--node")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let _entered = runtime.enter();
    let datapath = open(&node)?;
    let mut tables = PolicyTables::new(&node.asked, &node.local, node.others)?;
    worker::serve(|order| {
        let writes = match order {
            Order::Policies(count) => tables.with_policies(count),
            Order::Closed(count) => tables.closed(count),
            Order::Admit => tables.admit(),
        }?;
        datapath.policy().apply(&writes)?;
        Ok(writes.len())
    })
}

fn open(node: &Node) -> Result<Datapath> {
    let datapath = Datapath::open(DatapathConfig::new(&node.bpffs))?;
    datapath.set_native_networks(&[
        (Ipv4Addr::new(10, 244, 0, 0).into(), 15),
        (Ipv4Addr::new(192, 0, 2, 0).into(), 24),
    ])?;
    datapath.set_node_addresses(&[(node.address.into(), true)])?;
    for uplink in &node.uplinks {
        datapath.attach_uplink(uplink)?;
    }
    if !node.tunnels.is_empty() {
        datapath.attach_tunnel(
            tunnel::DEVICE,
            &[node.address.into()],
            tunnel::VNI,
            TUNNEL_PORT,
        )?;
        let tunnels = node.tunnels.iter();
        let tunnels: Vec<_> = tunnels
            .map(|(network, length, node)| ((*network).into(), *length, (*node).into()))
            .collect();
        datapath.set_tunnels(&tunnels)?;
    }
    for pod in &node.pods {
        datapath.attach_pod(&PodInterface {
            name: pod.interface.clone(),
            addresses: pod.addresses.iter().map(|it| (*it).into()).collect(),
            mac: pod.mac,
            netns: pod.netns.clone(),
            limited: false,
        })?;
    }
    if let Some(cgroup) = &node.cgroup {
        datapath.attach_cgroup(cgroup)?;
    }
    Ok(datapath)
}
