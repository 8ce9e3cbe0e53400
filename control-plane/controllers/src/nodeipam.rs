//! Gives each Node a pod CIDR of its own out of the cluster's, one for each address family.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use parking_lot::Mutex;
use tracing::info;

use windlass_informers::{Change, Informer, Key, recorder::EventType};

use crate::{
    config::ControllersConfig,
    runtime::{Context, Controller, Error, Outcome, Queue, Result, patch, run_workers},
};

struct NodeIpam {
    context: Context,
    nodes: Arc<Informer<Node>>,
    /// One for each of the cluster's CIDRs.
    pools: Mutex<Vec<Pool>>,
    /// Taken for a node by an attempt whose write failed; the next attempt uses them.
    reserved: Mutex<AHashMap<String, Vec<IpNet>>>,
}

/// The subnets of one cluster CIDR and which are taken.
struct Pool {
    cluster: IpNet,
    prefix: u8,
    taken: AHashSet<IpNet>,
    /// Where the last free one was found: a CIDR that was given back rests as long as possible.
    next: u128,
}

impl Pool {
    fn new(cluster: IpNet, prefix: u8) -> Self {
        Self {
            cluster: cluster.trunc(),
            prefix,
            taken: AHashSet::new(),
            next: 0,
        }
    }

    fn size(&self) -> u128 {
        1 << u32::from(self.prefix.saturating_sub(self.cluster.prefix_len())).min(64)
    }

    fn subnet(&self, index: u128) -> Option<IpNet> {
        let width = u32::from(self.cluster.max_prefix_len() - self.prefix);
        let offset = index.checked_shl(width).unwrap_or(0);
        let address = match self.cluster.network() {
            std::net::IpAddr::V4(base) => {
                std::net::Ipv4Addr::from(u32::from(base) | u32::try_from(offset).ok()?).into()
            }
            std::net::IpAddr::V6(base) => {
                std::net::Ipv6Addr::from(u128::from(base) | offset).into()
            }
        };
        IpNet::new(address, self.prefix).ok()
    }

    fn take(&mut self) -> Option<IpNet> {
        if self.prefix < self.cluster.prefix_len() {
            return None;
        }
        let size = self.size();
        // Never more tries than there are taken ones, plus one.
        let tries = size.min(self.taken.len() as u128 + 1);
        for step in 0..tries {
            let index = (self.next + step) % size;
            let Some(subnet) = self.subnet(index) else {
                continue;
            };
            if self.taken.insert(subnet) {
                self.next = (index + 1) % size;
                return Some(subnet);
            }
        }
        // The taken ones may all lie ahead of us and the free ones behind.
        let free = (0..size)
            .filter_map(|index| self.subnet(index))
            .find(|s| !self.taken.contains(s))?;
        self.taken.insert(free);
        Some(free)
    }

    fn give_back(&mut self, subnet: &IpNet) {
        self.taken.remove(subnet);
    }
}

fn pools(config: &ControllersConfig) -> Vec<Pool> {
    let prefix = |cluster: &IpNet| match cluster {
        IpNet::V4(_) => config.node_cidr_mask_v4,
        IpNet::V6(_) => config.node_cidr_mask_v6,
    };
    config
        .cluster_cidrs
        .iter()
        .map(|cluster| Pool::new(*cluster, prefix(cluster)))
        .collect()
}

fn cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    all.filter_map(|cidr| cidr.parse().ok()).collect()
}

pub(crate) async fn start(context: Context) {
    if context.config.cluster_cidrs.is_empty() {
        return;
    }
    let queue = Queue::new();
    let (nodes,) = context.synced::<(Node,)>().await;
    let controller = Arc::new(NodeIpam {
        pools: Mutex::new(pools(&context.config)),
        reserved: Mutex::new(AHashMap::new()),
        nodes: Arc::clone(&nodes),
        context: context.clone(),
    });
    // All that is taken must be known before the first one is given, so the replay of the view does it.
    let (own, taker) = (Arc::clone(&queue), Arc::clone(&controller));
    let _own = nodes.on_change(move |change| {
        match change {
            Change::Deleted(node) => taker.release(node),
            Change::Added(node) | Change::Updated { new: node, .. } => taker.note(node),
        }
        own.add(Key::of(change.object().as_ref()));
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

impl NodeIpam {
    fn note(&self, node: &Node) {
        let mut pools = self.pools.lock();
        for cidr in cidrs(node) {
            for pool in pools.iter_mut().filter(|pool| pool.cluster.contains(&cidr)) {
                pool.taken.insert(cidr);
            }
        }
    }

    fn release(&self, node: &Node) {
        let reserved = self
            .reserved
            .lock()
            .remove(&node.name_any())
            .unwrap_or_default();
        self.give_back(cidrs(node).iter().chain(&reserved));
    }

    fn give_back<'a>(&self, given: impl Iterator<Item = &'a IpNet>) {
        let mut pools = self.pools.lock();
        for cidr in given {
            pools.iter_mut().for_each(|pool| pool.give_back(cidr));
        }
    }

    fn take_for(&self, node: &str) -> Option<Vec<IpNet>> {
        if let Some(reserved) = self.reserved.lock().remove(node) {
            return Some(reserved);
        }
        let taken: Vec<IpNet> = self.pools.lock().iter_mut().map_while(Pool::take).collect();
        if taken.len() == self.context.config.cluster_cidrs.len() {
            return Some(taken);
        }
        self.give_back(taken.iter());
        None
    }
}

impl Controller for NodeIpam {
    type Key = Key;
    const NAME: &'static str = "nodeipam";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(node) = self.nodes.by_key(key) else {
            return Ok(Outcome::Done);
        };
        if !cidrs(&node).is_empty() || node.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let Some(given) = self.take_for(&key.name) else {
            let message = format!("Node {key} status is now: CIDRNotAvailable");
            let recorder = self.context.recorder.named("cidrAllocator");
            recorder.record(
                node.as_ref(),
                EventType::Normal,
                "CIDRNotAvailable",
                message,
            );
            return Err(Error::Invalid(format!(
                "no pod CIDR is left for node {key}"
            )));
        };
        let mut updated = node.as_ref().clone();
        let spec = updated.spec.get_or_insert_default();
        spec.pod_cidr = given.first().map(ToString::to_string);
        spec.pod_cidrs = Some(given.iter().map(ToString::to_string).collect());
        match patch(&self.context.cluster_api(), node.as_ref(), &updated).await {
            Ok(_) => {
                info!(node = key.name, cidrs = ?given, "gave pod cidrs");
                Ok(Outcome::Done)
            }
            Err(error) => {
                self.reserved.lock().insert(key.name.clone(), given);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cluster: &str, prefix: u8) -> Pool {
        Pool::new(cluster.parse().unwrap(), prefix)
    }

    #[test]
    fn subnets_are_given_once_and_a_returned_one_rests() {
        let mut pool = pool("10.244.0.0/22", 24);
        let mut take = || pool.take().map(|cidr| cidr.to_string());
        assert_eq!(take().as_deref(), Some("10.244.0.0/24"));
        assert_eq!(take().as_deref(), Some("10.244.1.0/24"));
        pool.give_back(&"10.244.0.0/24".parse().unwrap());
        let mut take = || pool.take().map(|cidr| cidr.to_string());
        assert_eq!(take().as_deref(), Some("10.244.2.0/24"));
        assert_eq!(take().as_deref(), Some("10.244.3.0/24"));
        assert_eq!(take().as_deref(), Some("10.244.0.0/24"));
        assert_eq!(take(), None);
    }

    #[test]
    fn taken_ones_are_skipped_and_v6_works() {
        let mut pool = pool("fd00:10::/56", 64);
        pool.taken.insert("fd00:10::/64".parse().unwrap());
        assert_eq!(pool.take().unwrap().to_string(), "fd00:10:0:1::/64");
    }
}
