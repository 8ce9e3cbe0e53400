//! Keeps the datapath's policy tables at what the cluster's policies and pods say.
//!
//! When the API server is away, nothing happens: the tables stay at the last good state, and a pod
//! that this node does not know yet gets no network. When a write fails, the state is read back from
//! the kernel and the whole is tried again, ever more slowly; what has no room is closed meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    path::PathBuf,
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
    runtime::{
        WatchStreamExt as _,
        utils::Backoff,
        watcher::{self, Event},
    },
};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::MissedTickBehavior,
};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use windlass_datapath::Datapath;
use windlass_domain_names::DomainPattern;
use windlass_patience::{Patience, is_not_served};

use super::{
    classes::Decider,
    closing,
    kinds::{self, Optional},
    metrics::{self, PolicyMetrics, Since},
    names::{LearnedNames, Lesson},
    observed::{Change, Interfaces, Observed, is_own},
    tables::Tables,
    trouble::Trouble,
};
use crate::{attachments::PodInterface, ipam::AttachmentKey};

/// The slices by which the agents offer cluster DNS.
const DNS_SLICES: &str = "endpointslice.kubernetes.io/managed-by=dns.windlass.dev";

/// How often policies that ask for it are told what they dropped.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How often addresses of names are looked for whose time is over.
const FORGET_EVERY: Duration = Duration::from_secs(5);
/// What is told of names and not yet taken; who tells more has to wait.
const LESSONS: usize = 64;

#[derive(Clone, Debug)]
pub struct PolicyControllerConfig {
    /// Where it is kept what names were said to be.
    pub names_file: PathBuf,
    /// Where pods get their addresses from, beside what the Nodes say.
    pub pod_networks: Vec<IpNet>,
    pub node_name: String,
}

/// A handle to the policy tables; clones share one state. [`Self::run`] is the task.
#[derive(Clone)]
pub struct PolicyController {
    datapath: Arc<Datapath>,
    config: PolicyControllerConfig,
    shared: Arc<Shared>,
}

struct Shared {
    /// The local interfaces whose pods' policies are in the kernel.
    admitted: watch::Sender<AHashSet<AttachmentKey>>,
    /// The names that policies speak of; none before that is known.
    domains: watch::Sender<Option<BTreeSet<DomainPattern>>>,
    lessons: mpsc::Sender<Change>,
    /// Until somebody runs.
    untaken: Mutex<Option<mpsc::Receiver<Change>>>,
    deciders: RwLock<BTreeMap<u32, Decider>>,
    metrics: PolicyMetrics,
}

impl Shared {
    fn new() -> Self {
        let (lessons, untaken) = mpsc::channel(LESSONS);
        Self {
            admitted: watch::Sender::default(),
            domains: watch::Sender::default(),
            lessons,
            untaken: Mutex::new(Some(untaken)),
            deciders: RwLock::default(),
            metrics: PolicyMetrics::default(),
        }
    }
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
            shared: Arc::new(Shared::new()),
        }
    }

    pub fn gate(&self) -> PolicyGate {
        PolicyGate(self.shared.clone())
    }

    /// The names that policies speak of, whenever that changes; none before that is known.
    pub fn domains(&self) -> watch::Receiver<Option<BTreeSet<DomainPattern>>> {
        self.shared.domains.subscribe()
    }

    /// Takes over what a name is said to be. Returns when packets are judged by that; `false` when they will not be.
    pub async fn learn(&self, lesson: Lesson) -> bool {
        let (taught, is_taught) = oneshot::channel();
        let told = self.shared.lessons.send(Change::Lesson(lesson, taught));
        told.await.is_ok() && is_taught.await.is_ok()
    }

    /// Which of these addresses pods have; none while that is not known.
    pub async fn living(&self, addresses: HashSet<IpAddr>) -> Option<HashSet<IpAddr>> {
        let (answer, answered) = oneshot::channel();
        let asked = self
            .shared
            .lessons
            .send(Change::Question(addresses, answer));
        asked.await.ok()?;
        answered.await.ok()
    }

    /// Who is behind the number that a drop carries (`PolicyDecision::rule`).
    pub fn decider(&self, rule: u32) -> Option<Decider> {
        self.shared.deciders.read().get(&rule).cloned()
    }

    /// In Prometheus' text format.
    pub fn metrics_text(&self) -> String {
        let drops = self.datapath.policy_drops().unwrap_or_default();
        self.shared
            .metrics
            .text(&drops, &self.shared.deciders.read())
    }

    /// Watches and writes for as long as it is polled. `interfaces`: those of this node's pods.
    pub async fn run(&self, client: Client, interfaces: watch::Receiver<Interfaces>) {
        let mut trouble = Trouble::new(client.clone(), &self.config.node_name);
        let lessons = match self.shared.untaken.lock().take() {
            Some(lessons) => ReceiverStream::new(lessons).left_stream(),
            None => stream::pending().right_stream(),
        };
        let watched = watch(client, interfaces);
        let mut changes = std::pin::pin!(stream::select(watched, lessons).ready_chunks(4_096));
        let names = LearnedNames::recover(self.config.names_file.clone());
        let mut observed = Observed::new(self.config.pod_networks.clone(), names);
        let mut tables: Option<Tables> = None;
        let mut pauses = Patience::default();
        let mut retry: Option<tokio::time::Instant> = None;
        let mut heard: Option<Instant> = None;
        let mut since = Since::default();
        let mut telling = tokio::time::interval(TELL_EVERY);
        telling.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut forgetting = tokio::time::interval(FORGET_EVERY);
        forgetting.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let retry_at = retry.unwrap_or_else(tokio::time::Instant::now);
            tokio::select! {
                chunk = changes.next() => {
                    let Some(chunk) = chunk else { return };
                    heard.get_or_insert_with(Instant::now);
                    chunk.into_iter().for_each(|change| observed.take(change));
                }
                () = tokio::time::sleep_until(retry_at), if retry.is_some() => retry = None,
                _ = telling.tick() => {
                    self.tell_of_drops(&observed, &mut since, &trouble);
                    continue;
                }
                _ = forgetting.tick() => self.forget_names(&mut observed).await,
            }
            if retry.is_some() || !observed.is_synced() {
                continue;
            }
            if observed.is_settled() {
                observed.brought();
                heard = None;
                continue;
            }
            match self.sync(&mut observed, tables.take()).await {
                Ok(written) => {
                    tables = Some(written);
                    observed.brought();
                    self.shared.domains.send_if_modified(|held| {
                        let patterns = observed.names().patterns();
                        let differ = held.as_ref() != Some(patterns);
                        if differ {
                            *held = Some(patterns.clone());
                        }
                        differ
                    });
                    if let Some(heard) = heard.take() {
                        self.shared.metrics.programmed(heard);
                    }
                    pauses.reset();
                    trouble.recovered();
                }
                Err(error) => {
                    observed.forget();
                    trouble.failed(&error.to_string());
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
        let changes = observed.take_changes();
        let (cluster, admitted) = observed.cluster();
        let plan = tables.plan_changes(&cluster, &changes);
        let planned = started.elapsed();
        // Before the writes: a drop may be told of at once.
        self.remember(tables.deciders());
        if !plan.writes.is_empty() {
            let (count, datapath, writes) = (plan.writes.len(), self.datapath.clone(), plan.writes);
            // System calls, and many of them when the first policy comes.
            let write = move || closing::write(&mut datapath.policy(), &writes);
            match tokio::task::spawn_blocking(write).await {
                Ok(written) => written?,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
            tracing::debug!(
                writes = count,
                enforced = tables.enforced(),
                ?planned,
                took = ?started.elapsed(),
                "policy tables written"
            );
        }
        self.shared.admitted.send_if_modified(|held| {
            let changed = *held != admitted;
            *held = admitted;
            changed
        });
        Ok(tables)
    }

    /// Lets go of addresses whose time as a name's is over, unless somebody still talks to them: a new connection
    /// may wait for a new answer, one that is open goes on.
    async fn forget_names(&self, observed: &mut Observed) {
        let over = observed.names().over();
        if over.is_empty() || !observed.is_synced() {
            return;
        }
        let datapath = self.datapath.clone();
        let look = move || {
            let connections = datapath.connections()?.into_iter();
            let ends = connections.flat_map(|(it, _)| [it.src, it.dst].map(|end| end.to_ip()));
            Ok::<_, windlass_datapath::Error>(ends.filter(|end| over.contains(end)).collect())
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok(in_use)) => observed.expire_names(&in_use),
            Ok(Err(error)) => tracing::warn!(%error, "addresses of names stay for now"),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Events on the policies whose authors want to know what they drop.
    fn tell_of_drops(&self, observed: &Observed, since: &mut Since, trouble: &Trouble) {
        if !observed.anybody_asks_for_events() {
            *since = Since::default();
            return;
        }
        let drops = match self.datapath.policy_drops() {
            Ok(drops) => drops,
            Err(error) => {
                tracing::warn!(%error, "what policies dropped is not known");
                return;
            }
        };
        let deciders = self.shared.deciders.read();
        let told = since.take(&drops, &deciders, |name| observed.asks_for_events(name));
        for (policy, reasons) in told {
            let note = metrics::note(&self.config.node_name, &reasons, TELL_EVERY);
            trouble.dropped(&policy, note);
        }
    }

    fn remember(&self, deciders: &BTreeMap<u32, Decider>) {
        if *self.shared.deciders.read() != *deciders {
            self.shared.deciders.write().clone_from(deciders);
        }
    }
}

/// All watches as one stream that never ends: they resume and retry by themselves.
fn watch(client: Client, interfaces: watch::Receiver<Interfaces>) -> impl Stream<Item = Change> {
    let dns = watcher::Config::default().labels(DNS_SLICES);
    let optional = Optional::ALL.map(|kind| kinds::watch(client.clone(), kind).boxed());
    let always = [
        changes(Api::<Pod>::all(client.clone()), Change::Pod).boxed(),
        changes(Api::<Namespace>::all(client.clone()), Change::Namespace).boxed(),
        changes(Api::<Node>::all(client.clone()), Change::Node).boxed(),
        changes(Api::<NetworkPolicy>::all(client.clone()), Change::Policy).boxed(),
        of_kind(Api::<EndpointSlice>::all(client), dns, |event| {
            event.map(Change::DnsServer)
        })
        .filter_map(std::future::ready)
        .boxed(),
        WatchStream::new(interfaces).map(Change::Interfaces).boxed(),
    ];
    stream::select_all(always.into_iter().chain(optional))
}

fn changes<K>(
    api: Api<K>,
    change: impl Fn(Event<K>) -> Change + Send + 'static,
) -> impl Stream<Item = Change> + Send
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    of_kind(api, watcher::Config::default(), move |event| {
        event.map(&change)
    })
    .filter_map(std::future::ready)
}

/// `change`: none is told when the cluster has no such kind; a watch that fails otherwise tells nothing.
pub(super) fn of_kind<K, T>(
    api: Api<K>,
    config: watcher::Config,
    change: impl Fn(Option<Event<K>>) -> T + Send + 'static,
) -> impl Stream<Item = T> + Send
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
    T: Send,
{
    let kind = api.resource_url().to_owned();
    watcher::watcher(api, config)
        .backoff(Patience::default())
        .filter_map(move |event| {
            let told = match event {
                Ok(event) => Some(change(Some(event))),
                Err(error) if is_not_served(&error) => Some(change(None)),
                Err(error) => {
                    tracing::warn!(%error, kind, "a watch failed; trying again");
                    None
                }
            };
            std::future::ready(told)
        })
}
