//! How this node reaches the pods of other nodes: one route for each of their pod CIDRs.
//!
//! `direct`: by the other node's own address, which has to be a neighbour's. The kernel forwards, and nothing is
//! added to a packet. `vxlan`: into one tunnel device, whose tc program knows which node is behind which
//! address; nodes need only reach each other somehow.
//!
//! The kernel's table is the true copy. It is compared with what the Nodes say on every change of them and from
//! time to time, since an interface that goes down takes its routes with it. Our routes carry a protocol number
//! of their own: those of others are left alone, and of those to the same pods ours come first.

mod peer;
mod plan;
mod table;
pub mod tunnel;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use parking_lot::Mutex;

pub use self::peer::Peer;
pub use self::plan::{NextHop, Route};
use crate::interface::{LinkError, Namespace};

/// How packets to other nodes' pods travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// By the other node's address, which must be on a network that this node is on too.
    Direct,
    /// In VXLAN packets between the nodes' addresses.
    Vxlan,
}

impl FromStr for Routing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "direct" => Ok(Self::Direct),
            "vxlan" => Ok(Self::Vxlan),
            _ => Err(format!("{text:?} is neither direct nor vxlan")),
        }
    }
}

#[derive(Clone, Debug)]
pub struct RouterConfig {
    pub node_name: String,
    /// At most one of each family: the source of what the host itself sends to pods elsewhere.
    pub node_addresses: Vec<IpAddr>,
    /// The index of the tunnel device; without one, routing is direct.
    pub tunnel: Option<u32>,
}

/// Removes our routes and the tunnel device, as part of taking Windlass off a node.
pub async fn remove_all(host: &Namespace) -> Result<(), LinkError> {
    for route in table::list(host).await? {
        table::delete(host, &route).await?;
    }
    tunnel::remove(host).await
}

/// Keeps the kernel's routes at what the Nodes say.
pub struct Router {
    config: RouterConfig,
    host: Namespace,
    /// The nodes that could not be reached directly when it was last tried, so that it is said once.
    told: Mutex<BTreeSet<String>>,
}

impl Router {
    pub fn new(config: RouterConfig, host: Namespace) -> Self {
        Self {
            config,
            host,
            told: Mutex::default(),
        }
    }

    /// Brings the routes to what these nodes say. `peers` are all nodes of the cluster, this one among them.
    pub async fn apply(&self, peers: &[Peer]) -> Result<(), LinkError> {
        let networks = self.host.networks().await?;
        let plan = plan::plan(&self.config, peers, &networks);
        let held = table::list(&self.host).await?;
        let mut failed = None;
        for route in plan.routes.iter().filter(|route| !held.contains(route)) {
            let replaces = held.iter().any(|held| route.replaces(held));
            match table::put(&self.host, route, replaces).await {
                Ok(()) => {
                    tracing::info!(destination = %route.destination, next = ?route.next, "route to pods set");
                }
                // One route that cannot be made must not keep the others away.
                Err(error) => failed = Some(error),
            }
        }
        for route in &held {
            let kept = plan.routes.iter().any(|wanted| wanted.replaces(route));
            if !kept {
                table::delete(&self.host, route).await?;
                tracing::info!(destination = %route.destination, "route to pods removed");
            }
        }
        self.tell(plan.out_of_reach);
        failed.map_or(Ok(()), Err)
    }

    fn tell(&self, out_of_reach: BTreeSet<String>) {
        let mut told = self.told.lock();
        for node in out_of_reach.difference(&told) {
            tracing::warn!(
                peer = node,
                "its pods cannot be reached directly: no network is shared with that node (--routing=vxlan needs none)"
            );
        }
        *told = out_of_reach;
    }
}
