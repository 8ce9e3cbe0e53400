//! Windlass's role: the datapath and the service controller as the agent has them, in a node's namespace,
//! over an API that is in memory.
//!
//! So what is timed goes from the API's answer to the map: decoding, compiling, comparing, writing. The other
//! proxies are timed from their finished text on.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use windlass_datapath::{
    Datapath, DatapathConfig, PodInterface, XdpMode,
    types::{Direction, Reason},
};
use windlass_network::services::{ServiceController, ServiceControllerConfig};

use super::memory_api::MemoryApi;
use super::table::Table;
use crate::worker;

/// The node's own address, where it has one: in its name it speaks to backends elsewhere.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);

#[derive(clap::Args)]
pub struct Options {
    #[arg(long)]
    netns: PathBuf,
    #[arg(long)]
    bpffs: PathBuf,
    /// Pods, as JSON.
    #[arg(long)]
    pods: String,
    /// Interfaces to the outside, on which XDP sends on what passes.
    #[arg(long, value_delimiter = ',')]
    uplinks: Vec<String>,
    /// Where the socket hooks go; without it tc translates.
    #[arg(long)]
    cgroup: Option<PathBuf>,
    #[arg(long)]
    services: usize,
    #[arg(long)]
    endpoints: usize,
}

#[derive(Serialize, Deserialize)]
pub struct Pod {
    pub interface: String,
    pub addresses: Vec<Ipv4Addr>,
    pub mac: [u8; 6],
    pub netns: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
pub enum Order {
    /// Starts the controller and waits until everything is in the maps; answers in seconds.
    Load,
    /// Gives the asked Service so many endpoints; answers at once, as the API does.
    Change { backends: usize },
    /// How many packets XDP has sent on.
    SentByXdp,
}

pub fn run(options: &Options) -> Result<()> {
    worker::enter_netns(&options.netns)?;
    let datapath = Arc::new(open(options)?);
    let (api, asked) = {
        let table = Table::new(options.services, options.endpoints);
        (MemoryApi::new(&table)?, table.asked().clone())
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let _entered = runtime.enter();
    let config = ServiceControllerConfig {
        node_name: "node".into(),
        ..ServiceControllerConfig::default()
    };
    let controller = Arc::new(ServiceController::new(datapath.clone(), config));
    worker::serve(|order| {
        match order {
            Order::Load => {
                let started = Instant::now();
                let running = controller.clone();
                let client = kube::Client::new(api.service(), "default");
                runtime.spawn(async move { running.run(client).await });
                runtime.block_on(controller.ready());
                return Ok(started.elapsed().as_secs_f64());
            }
            Order::Change { backends } => api.change(&asked.with_backends(backends)),
            Order::SentByXdp => {
                let counted = datapath.metrics()?.into_iter();
                let sent = counted
                    .filter(|it| (it.direction, it.reason) == (Direction::Xdp, Reason::Translated));
                return Ok(sent.map(|it| it.packets).sum::<u64>() as f64);
            }
        }
        Ok(0.0)
    })
}

fn open(options: &Options) -> Result<Datapath> {
    let mut config = DatapathConfig::new(&options.bpffs);
    if !options.uplinks.is_empty() {
        config.xdp = XdpMode::Native;
    }
    let datapath = Datapath::open(config)?;
    datapath.set_native_networks(&[(Ipv4Addr::new(10, 244, 0, 0).into(), 16)])?;
    let pods: Vec<Pod> = serde_json::from_str(&options.pods).context("--pods")?;
    for pod in pods {
        datapath.attach_pod(&PodInterface {
            name: pod.interface,
            addresses: pod.addresses.into_iter().map(Into::into).collect(),
            mac: pod.mac,
            netns: pod.netns,
            limited: false,
        })?;
    }
    if !options.uplinks.is_empty() {
        datapath.set_node_addresses(&[(NODE.into(), true)])?;
    }
    for uplink in &options.uplinks {
        datapath.attach_uplink(uplink)?;
    }
    if let Some(cgroup) = &options.cgroup {
        datapath.attach_cgroup(cgroup)?;
    }
    Ok(datapath)
}
