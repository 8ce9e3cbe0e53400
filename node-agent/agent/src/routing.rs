//! Routes to the pods of other nodes, kept at what the Nodes say.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::runtime::reflector::Store;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use windlass_network::interface::Namespace;
use windlass_network::{Peer, Router, RouterConfig};

use crate::cli::RunOptions;

/// What takes routes away without telling (an interface that goes down and up, a flush) is undone within this.
const COMPARE: Duration = Duration::from_secs(10);
/// Nodes that change together (a start of many) are one change.
const GATHER: Duration = Duration::from_millis(20);

/// Follows the Nodes until `stop`, which leaves the routes as they are. `changed` tells of news in `nodes`, and
/// first of all that they are known.
pub(crate) async fn start(
    options: &RunOptions,
    nodes: Store<Node>,
    mut changed: watch::Receiver<u64>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let config = RouterConfig {
        node_name: options.node_name.clone(),
        node_addresses: options.node_ip.clone(),
        tunnel: None,
    };
    let router = Router::new(config, Namespace::current().await?);
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
    tasks.spawn(async move {
        stop.run_until_cancelled(follow).await;
        Ok(())
    });
    Ok(())
}
