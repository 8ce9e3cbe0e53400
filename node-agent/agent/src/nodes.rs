//! What the cluster's Nodes say: this node's pod addresses, who all the others are, and what is told of this one.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use futures::StreamExt;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::sync::watch;
use windlass_datapath::Datapath;
use windlass_network::Attachments;
use windlass_pods::Patience;

use crate::tasks::Tasks;

/// Whoever is in the cluster sees pods' own addresses: the pods and the nodes.
pub(crate) fn native_networks(
    cluster: &[IpNet],
    nodes: impl Iterator<Item = IpAddr>,
) -> Vec<(IpAddr, u8)> {
    let pods = cluster.iter().map(|net| (net.network(), net.prefix_len()));
    let nodes = nodes.map(|ip| (ip, if ip.is_ipv4() { 32 } else { 128 }));
    let all: BTreeSet<(IpAddr, u8)> = pods.chain(nodes).collect();
    all.into_iter().collect()
}

/// The cluster's nodes, without what is not needed of them.
pub(crate) struct Nodes {
    pub(crate) store: Store<Node>,
    /// Tells of news in `store`, and first of all that they are known.
    pub(crate) changed: watch::Receiver<u64>,
}

pub(crate) fn watch_nodes(client: kube::Client, tasks: &mut Tasks) -> Nodes {
    let (store, writer) = reflector::store();
    let (told, changed) = watch::channel(0);
    let nodes: Api<Node> = Api::all(client);
    let stream = watcher::watcher(nodes, watcher::Config::default())
        .backoff(Patience::default())
        .modify(|node| {
            node.metadata.managed_fields = None;
            if let Some(status) = node.status.as_mut() {
                status.images = None;
                status.conditions = None;
            }
        })
        .reflect(writer);
    let follow = stream.for_each(move |event| {
        match event {
            Ok(_) => told.send_modify(|count| *count += 1),
            Err(error) => tracing::debug!(%error, "watch of nodes interrupted"),
        }
        std::future::ready(())
    });
    tasks.spawn("the watch of nodes", follow);
    Nodes { store, changed }
}

/// Carries what Nodes say into the datapath: this node's pod addresses, all nodes' own.
pub(crate) struct Follower {
    pub(crate) node_name: String,
    pub(crate) cluster_cidr: Vec<IpNet>,
    pub(crate) node_ips: Vec<IpAddr>,
    pub(crate) datapath: Arc<Datapath>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) nodes: Nodes,
}

impl Follower {
    /// Waits until this node was given addresses for its pods; says in `state` that it does.
    pub(crate) async fn first(
        &self,
        state: &watch::Sender<Result<(), String>>,
    ) -> anyhow::Result<()> {
        let mut changed = self.nodes.changed.clone();
        while !self.apply()? {
            if self.own().is_some() {
                let reason = "the Node was given no addresses for pods (spec.podCIDR)";
                let news = state.send_if_modified(|state| {
                    std::mem::replace(state, Err(reason.to_owned())) != Err(reason.to_owned())
                });
                if news {
                    let node = &self.node_name;
                    tracing::warn!(
                        node,
                        "waiting: {reason}; kube-controller-manager gives them with --allocate-node-cidrs and --cluster-cidr"
                    );
                }
            }
            changed.changed().await?;
        }
        Ok(())
    }

    fn own(&self) -> Option<Arc<Node>> {
        self.nodes
            .store
            .find(|node| node.metadata.name.as_deref() == Some(self.node_name.as_str()))
    }

    pub(crate) async fn follow(self) -> anyhow::Result<()> {
        let mut changed = self.nodes.changed.clone();
        while changed.changed().await.is_ok() {
            if let Err(error) = self.apply() {
                tracing::error!(error = format!("{error:#}"), "nodes not taken over");
            }
        }
        Ok(())
    }

    /// Whether this node has pod addresses.
    fn apply(&self) -> anyhow::Result<bool> {
        let nodes = self.nodes.store.state();
        let others = nodes.iter().flat_map(|node| {
            let addresses = node
                .status
                .iter()
                .flat_map(|it| it.addresses.iter().flatten());
            let internal = addresses.filter(|address| address.type_ == "InternalIP");
            internal.filter_map(|address| address.address.parse().ok())
        });
        let all = self.node_ips.iter().copied().chain(others);
        // What the Nodes were given counts beside what the flag says: a wrong flag must not masquerade pods.
        let given = nodes.iter().flat_map(|node| pod_cidrs(node));
        let pods: Vec<IpNet> = self.cluster_cidr.iter().copied().chain(given).collect();
        self.datapath
            .set_native_networks(&native_networks(&pods, all))?;

        let cidrs = self.own().map(|node| pod_cidrs(&node)).unwrap_or_default();
        if cidrs.is_empty() {
            return Ok(false);
        }
        self.attachments.set_pod_cidrs(&cidrs)?;
        Ok(true)
    }
}

fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let spec = node.spec.iter();
    let written = spec.flat_map(|spec| match &spec.pod_cidrs {
        Some(cidrs) => cidrs.clone(),
        None => spec.pod_cidr.iter().cloned().collect(),
    });
    written.filter_map(|cidr| cidr.parse().ok()).collect()
}

/// Says that this node has a network. Where a cloud provider's controller has said that it has none, which keeps pods
/// off it by a taint, nobody else would take that back. Tries until it is heard.
pub(crate) async fn say_available(client: kube::Client, node_name: &str) {
    let nodes: Api<Node> = Api::all(client);
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // Merged by type: the conditions of others stay.
    let patch = json!({"status": {"conditions": [{
        "type": "NetworkUnavailable",
        "status": "False",
        "reason": "WindlassIsUp",
        "message": "the Windlass node agent serves this node's network",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }]}});
    let mut pauses = Patience::default();
    while let Err(error) = nodes
        .patch_status(
            node_name,
            &PatchParams::default(),
            &Patch::Strategic(&patch),
        )
        .await
    {
        tracing::warn!(%error, "the Node is not told that it has a network, trying again");
        tokio::time::sleep(pauses.next().unwrap_or_default()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_nodes_are_native() {
        let cluster = [
            "10.244.0.0/16".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        ];
        let nodes: [IpAddr; 3] =
            ["192.0.2.1", "192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        let networks = native_networks(&cluster, nodes.into_iter());
        let text: Vec<String> = networks
            .iter()
            .map(|(ip, length)| format!("{ip}/{length}"))
            .collect();
        assert_eq!(
            text,
            [
                "10.244.0.0/16",
                "192.0.2.1/32",
                "2001:db8::1/128",
                "fd00::/48"
            ]
        );
    }

    #[test]
    fn a_nodes_networks_are_its_list_or_the_older_field() {
        let node = |spec| -> Node { serde_json::from_value(json!({"spec": spec})).unwrap() };
        let both = node(
            json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64", "none"]}),
        );
        let expected: [IpNet; 2] = ["10.1.0.0/24", "fd00:1::/64"].map(|net| net.parse().unwrap());
        assert_eq!(pod_cidrs(&both), expected);
        assert_eq!(
            pod_cidrs(&node(json!({"podCIDR": "10.1.0.0/24"}))),
            expected[..1]
        );
        assert!(pod_cidrs(&node(json!({}))).is_empty());
    }
}
