//! Keeps the datapath's policy tables at what the cluster's policies and pods say.
//!
//! When the API server is away, nothing happens: the tables stay at the last good state, and a pod
//! that this node does not know yet gets no network. When a write fails, the state is read back from
//! the kernel and the whole is tried again, ever more slowly.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use ahash::AHashSet;
use futures::{Stream, StreamExt as _, stream};
use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client, Resource,
    core::DynamicObject,
    runtime::{
        WatchStreamExt as _,
        utils::Backoff,
        watcher::{self, Event},
    },
};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use windlass_datapath::Datapath;

use super::{
    cluster_spec,
    compile::Decider,
    observed::{Change, Interfaces, Observed, is_own},
    tables::Tables,
};
use crate::{attachments::PodInterface, ipam::AttachmentKey};

/// The slices by which the agents offer cluster DNS.
const DNS_SLICES: &str = "endpointslice.kubernetes.io/managed-by=dns.windlass.dev";
/// So many names of deciders are kept after their policies went, for what is still to be told.
const OLD_DECIDERS: usize = 4_096;

#[derive(Clone, Debug)]
pub struct PolicyControllerConfig {
    /// Where pods get their addresses from, beside what the Nodes say.
    pub pod_networks: Vec<IpNet>,
}

/// A handle to the policy tables; clones share one state. [`Self::run`] is the task.
#[derive(Clone)]
pub struct PolicyController {
    datapath: Arc<Datapath>,
    config: PolicyControllerConfig,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The local interfaces whose pods' policies are in the kernel.
    admitted: watch::Sender<AHashSet<AttachmentKey>>,
    deciders: RwLock<BTreeMap<u32, Decider>>,
}

/// Tells when a pod's policies are in force: until then its interface must not come up.
#[derive(Clone)]
pub struct PolicyGate(Arc<Shared>);

impl PolicyGate {
    /// Waits until the interface's pod is known and its policies are in the kernel; `false` when
    /// that takes longer than `limit`. The interface must have been published before.
    pub async fn admit(&self, interface: &PodInterface, limit: Duration) -> bool {
        if is_own(&interface.key) {
            return true;
        }
        let mut admitted = self.0.admitted.subscribe();
        let is_in = admitted.wait_for(|admitted| admitted.contains(&interface.key));
        matches!(tokio::time::timeout(limit, is_in).await, Ok(Ok(_)))
    }
}

impl PolicyController {
    pub fn new(datapath: Arc<Datapath>, config: PolicyControllerConfig) -> Self {
        Self {
            datapath,
            config,
            shared: Arc::default(),
        }
    }

    pub fn gate(&self) -> PolicyGate {
        PolicyGate(self.shared.clone())
    }

    /// Who is behind the number that a drop carries (`PolicyDecision::rule`).
    pub fn decider(&self, rule: u32) -> Option<Decider> {
        self.shared.deciders.read().get(&rule).cloned()
    }

    /// Watches and writes for as long as it is polled. `interfaces`: those of this node's pods.
    pub async fn run(&self, client: Client, interfaces: watch::Receiver<Interfaces>) {
        let mut changes = std::pin::pin!(watch(client, interfaces).ready_chunks(4_096));
        let mut observed = Observed::new();
        let mut tables: Option<Tables> = None;
        let mut pauses = Patience::default();
        let mut retry: Option<tokio::time::Instant> = None;
        loop {
            let retry_at = retry.unwrap_or_else(tokio::time::Instant::now);
            tokio::select! {
                chunk = changes.next() => {
                    let Some(chunk) = chunk else { return };
                    chunk.into_iter().for_each(|change| observed.take(change));
                }
                () = tokio::time::sleep_until(retry_at), if retry.is_some() => retry = None,
            }
            if retry.is_some() || !observed.is_synced() || observed.is_settled() {
                continue;
            }
            match self.sync(&mut observed, tables.take()).await {
                Ok(written) => {
                    tables = Some(written);
                    pauses.reset();
                }
                Err(error) => {
                    let pause = pauses.next().unwrap_or_default();
                    tracing::error!(%error, retry_in = ?pause, "cannot write the policy tables");
                    retry = Some(tokio::time::Instant::now() + pause);
                }
            }
        }
    }

    /// Brings the kernel to what was observed.
    async fn sync(
        &self,
        observed: &mut Observed,
        tables: Option<Tables>,
    ) -> windlass_datapath::Result<Tables> {
        let started = Instant::now();
        let mut tables = match tables {
            Some(tables) => tables,
            None => Tables::recover(&self.datapath.policy().snapshot()?),
        };
        let (cluster, admitted) = observed.cluster(&self.config.pod_networks);
        let plan = tables.plan(&cluster);
        self.remember(plan.deciders);
        if !plan.writes.is_empty() {
            let (count, datapath, writes) = (plan.writes.len(), self.datapath.clone(), plan.writes);
            // System calls, and many of them when the first policy comes.
            let write = move || datapath.policy().apply(&writes);
            match tokio::task::spawn_blocking(write).await {
                Ok(written) => written?,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
            tracing::debug!(
                writes = count,
                enforced = tables.enforced(),
                took = ?started.elapsed(),
                "policy tables written"
            );
        }
        observed.settle();
        self.shared.admitted.send_if_modified(|held| {
            let changed = *held != admitted;
            *held = admitted;
            changed
        });
        Ok(tables)
    }

    fn remember(&self, deciders: BTreeMap<u32, Decider>) {
        let mut held = self.shared.deciders.write();
        if held.len() > deciders.len() + OLD_DECIDERS {
            held.clear();
        }
        held.extend(deciders);
    }
}

/// All watches as one stream that never ends: they resume and retry by themselves.
fn watch(client: Client, interfaces: watch::Receiver<Interfaces>) -> impl Stream<Item = Change> {
    let everything = watcher::Config::default;
    let cluster_policies: Api<DynamicObject> =
        Api::all_with(client.clone(), &cluster_spec::resource());
    let dns = everything().labels(DNS_SLICES);
    stream::select_all([
        of_kind(Api::<Pod>::all(client.clone()), everything(), Change::Pod).boxed(),
        of_kind(
            Api::<Namespace>::all(client.clone()),
            everything(),
            Change::Namespace,
        )
        .boxed(),
        of_kind(Api::<Node>::all(client.clone()), everything(), Change::Node).boxed(),
        of_kind(
            Api::<NetworkPolicy>::all(client.clone()),
            everything(),
            Change::Policy,
        )
        .boxed(),
        of_kind(Api::<EndpointSlice>::all(client), dns, Change::DnsServer).boxed(),
        of_kind(cluster_policies, everything(), Change::ClusterPolicy).boxed(),
        WatchStream::new(interfaces).map(Change::Interfaces).boxed(),
    ])
}

fn of_kind<K>(
    api: Api<K>,
    config: watcher::Config,
    change: impl Fn(Event<K>) -> Change + Send + 'static,
) -> impl Stream<Item = Change> + Send
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let kind = api.resource_url().to_owned();
    watcher::watcher(api, config)
        .backoff(Patience::default())
        .filter_map(move |event| {
            let told = match event {
                Ok(event) => Some(change(event)),
                // Only the definition of ClusterNetworkPolicies may be absent.
                Err(error) if is_unknown_kind(&error) => Some(Change::NoClusterPolicies),
                Err(error) => {
                    tracing::warn!(%error, kind, "a watch failed; trying again");
                    None
                }
            };
            std::future::ready(told)
        })
}

fn is_unknown_kind(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.is_not_found()
    )
}

/// How soon something that failed is tried again. A node catches up within seconds of the API
/// server's return, and of a new kind's definition.
#[derive(Clone, Debug)]
struct Patience(Duration);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Default for Patience {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0 = FIRST_PAUSE;
    }
}
