//! The watches: each in a task of its own, so that reading thousands of objects keeps neither the other watch
//! nor the writing waiting.

use std::collections::BTreeSet;

use futures::{Stream, StreamExt as _, pin_mut};
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tokio::{sync::mpsc, task::JoinSet};
use windlass_patience::Patience;

use super::{
    events::{DEGRADED, PORTS_EXHAUSTED, TABLE_FULL},
    networks,
    news::{self, Light, ServiceNews, SliceNews},
    observed::Change,
    parse::SELECTOR,
};

/// What is read ahead of what is taken over.
const READ_AHEAD: usize = 1_024;

/// What the watches say.
#[allow(
    clippy::large_enum_variant,
    reason = "short-lived: read from one watch, taken at once"
)]
pub(super) enum Told {
    Object(Change),
    Node(NodeTopology),
    /// All networks of Services' addresses.
    Networks(BTreeSet<IpNet>),
}

/// What a Node says that matters to its services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeTopology {
    /// Its `topology.kubernetes.io/zone`.
    pub(super) zone: Option<String>,
    /// It is deleted, or the cluster autoscaler is about to.
    pub(super) leaving: bool,
    /// It is not to stand for balancers.
    pub(super) no_balancer: bool,
    /// It says that its service tables are not what they should be.
    pub(super) degraded: bool,
    /// It says that its table of connections is full.
    pub(super) table_full: bool,
    /// It says that it has no source ports for new connections.
    pub(super) ports_exhausted: bool,
}

impl NodeTopology {
    fn of(node: &Node) -> Self {
        let labels = node.metadata.labels.as_ref();
        let taints = node
            .spec
            .iter()
            .flat_map(|spec| spec.taints.iter().flatten());
        Self {
            zone: labels
                .and_then(|labels| labels.get("topology.kubernetes.io/zone"))
                .filter(|zone| !zone.is_empty())
                .cloned(),
            leaving: node.metadata.deletion_timestamp.is_some()
                || taints.into_iter().any(|taint| taint.key == LEAVING_TAINT),
            no_balancer: labels.is_some_and(|labels| labels.contains_key(NO_BALANCER_LABEL)),
            degraded: says(node, DEGRADED),
            table_full: says(node, TABLE_FULL),
            ports_exhausted: says(node, PORTS_EXHAUSTED),
        }
    }
}

fn says(node: &Node, condition: &str) -> bool {
    let status = node.status.iter();
    let mut conditions = status.flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|held| held.type_ == condition && held.status == "True")
}

/// By which a node is kept out of all balancers (the upstream name of the label).
const NO_BALANCER_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// By which the cluster autoscaler marks what it is about to delete.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// All watches; they resume and retry by themselves, for as long as this lives.
pub(super) struct Watches {
    told: mpsc::Receiver<Told>,
    _tasks: JoinSet<()>,
}

impl Watches {
    pub(super) fn start(client: Client, node: &str) -> Self {
        let (sender, told) = mpsc::channel(READ_AHEAD);
        let mut tasks = JoinSet::new();
        let config = || watcher::Config::default().labels(SELECTOR);
        let services = watcher::watcher(Api::<Light<Service>>::all(client.clone()), config());
        let services = read_all(services, "services", |event| {
            let event = news::read(event, |Light(service)| ServiceNews::of(service));
            Some(Told::Object(Change::Service(event)))
        });
        tasks.spawn(forward(services, sender.clone()));

        let slices = watcher::watcher(Api::<Light<EndpointSlice>>::all(client.clone()), config());
        let name = node.to_owned();
        let slices = read_all(slices, "endpoint slices", move |event| {
            let event = news::read(event, |Light(slice)| SliceNews::of(slice, &name));
            Some(Told::Object(Change::Slice(event)))
        });
        tasks.spawn(forward(slices, sender.clone()));

        let networks = networks::watch(client.clone()).map(Told::Networks);
        tasks.spawn(forward(networks, sender.clone()));

        let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
        let nodes = watcher::watcher(Api::<Node>::all(client), own);
        let nodes = read_all(nodes, "this node", |event| match event {
            Event::Apply(node) | Event::InitApply(node) => {
                Some(Told::Node(NodeTopology::of(&node)))
            }
            Event::Delete(_) => Some(Told::Node(NodeTopology {
                leaving: true,
                ..NodeTopology::default()
            })),
            Event::Init | Event::InitDone => None,
        });
        tasks.spawn(forward(nodes, sender));
        Self {
            told,
            _tasks: tasks,
        }
    }

    /// What has come since the last call; waits until there is something.
    pub(super) async fn next(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        if self.told.recv_many(&mut told, READ_AHEAD).await == 0 {
            // The tasks do not end by themselves.
            std::future::pending::<()>().await;
        }
        told
    }
}

fn read_all<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    what: &'static str,
    read: impl Fn(Event<K>) -> Option<Told> + Send,
) -> impl Stream<Item = Told> + Send {
    events
        .backoff(Patience::default())
        .filter_map(move |event| {
            let told = match event {
                Ok(event) => read(event),
                Err(error) => {
                    tracing::warn!(%error, "watching {what} failed; trying again");
                    None
                }
            };
            std::future::ready(told)
        })
}

async fn forward(told: impl Stream<Item = Told>, to: mpsc::Sender<Told>) {
    pin_mut!(told);
    while let Some(told) = told.next().await {
        if to.send(told).await.is_err() {
            return;
        }
    }
}
