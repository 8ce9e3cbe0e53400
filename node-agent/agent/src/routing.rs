//! Routes to the pods of other nodes, kept at what the Nodes say.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::{self, MissedTickBehavior};
use windlass_datapath::Datapath;
use windlass_network::interface::Namespace;
use windlass_network::routes::tunnel::{self, TunnelConfig};
use windlass_network::{Peer, Router, RouterConfig, Routing};

use crate::cli::RunOptions;
use crate::nodes::Nodes;
use crate::tasks::Tasks;

/// What takes routes away without telling (an interface that goes down and up, a flush) is undone within this.
const COMPARE: Duration = Duration::from_secs(10);
/// Nodes that change together (a start of many) are one change.
const GATHER: Duration = Duration::from_millis(20);

/// Prepares the way that packets to other nodes take: the tunnel device and the datapath's programs on it, or
/// that there is none any more. Returns the device's index.
pub(crate) async fn prepare(
    options: &RunOptions,
    host: &Namespace,
    datapath: &Datapath,
) -> anyhow::Result<Option<u32>> {
    match options.routing {
        Routing::Direct => {
            datapath.forget_tunnel().context("forget the tunnel")?;
            tunnel::remove(host).await?;
            Ok(None)
        }
        Routing::Vxlan => {
            let config = TunnelConfig {
                port: options.vxlan_port,
                uplinks: options.devices.clone(),
                is_v4: outer_is_v4(options),
            };
            let index = tunnel::prepare(host, &config).await?;
            datapath
                .attach_tunnel(tunnel::DEVICE, &options.node_ip, tunnel::VNI, config.port)
                .context("attach to the tunnel")?;
            Ok(Some(index))
        }
    }
}

/// The interfaces whose smallest MTU pods get.
pub(crate) fn ways(options: &RunOptions) -> Vec<String> {
    let tunnel = (options.routing == Routing::Vxlan).then(|| tunnel::DEVICE.to_owned());
    options.devices.iter().cloned().chain(tunnel).collect()
}

/// Nodes are known to each other by their first address.
fn outer_is_v4(options: &RunOptions) -> bool {
    options.node_ip.first().is_none_or(IpAddr::is_ipv4)
}

/// Follows the Nodes for as long as the agent runs; its end leaves the routes as they are.
pub(crate) async fn start(
    options: &RunOptions,
    tunnel: Option<u32>,
    datapath: Arc<Datapath>,
    nodes: &Nodes,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    let config = RouterConfig {
        node_name: options.node_name.clone(),
        node_addresses: options.node_ip.clone(),
        tunnel,
    };
    let (own_name, outer_is_v4) = (options.node_name.clone(), outer_is_v4(options));
    let router = Router::new(config, Namespace::current().await?);
    let (nodes, mut changed) = (nodes.store.clone(), nodes.changed.clone());
    let follow = async move {
        let mut compare = time::interval(COMPARE);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Before the first complete list, routes of nodes not heard of yet would be taken for stale.
        if nodes.wait_until_ready().await.is_err() {
            return;
        }
        loop {
            let peers: Vec<Peer> = nodes
                .state()
                .iter()
                .filter_map(|node| Peer::of(node))
                .collect();
            if tunnel.is_some() {
                let others = peers.iter().filter(|peer| peer.name != own_name);
                let tunnels: Vec<_> = others.flat_map(|peer| peer.tunnels(outer_is_v4)).collect();
                if let Err(error) = datapath.set_tunnels(&tunnels) {
                    tracing::error!(%error, "tunnels to other nodes not written, trying again");
                }
            }
            if let Err(error) = router.apply(&peers).await {
                tracing::warn!(%error, "routes to other nodes' pods not set, trying again");
            }
            tokio::select! {
                news = changed.changed() => {
                    if news.is_err() {
                        return;
                    }
                    time::sleep(GATHER).await;
                    changed.mark_unchanged();
                }
                _ = compare.tick() => {}
            }
        }
    };
    tasks.spawn("routes to other nodes", follow);
    Ok(())
}
