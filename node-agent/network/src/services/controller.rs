//! Keeps the datapath's service tables at what the cluster's Services and EndpointSlices
//! say.
//!
//! When the API server is away, nothing happens: the tables stay at the last good state,
//! and the list after its return is compared with them. When a write fails, the state is
//! read back from the kernel and the whole is tried again, ever more slowly.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
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
use tokio::{
    sync::watch,
    time::{self, Instant, MissedTickBehavior},
};
use windlass_datapath::{Datapath, GoneBackends, ServiceWrite};

use super::{
    events::{Announcer, DEGRADED},
    health::{HealthServers, ProxyHealth},
    host_ports::HostPorts,
    http::{self, Answer},
    metrics::SyncMetrics,
    observed::{Change, Observed},
    parse::SELECTOR,
    references::Shared,
    tables::Tables,
};

/// How often connections whose time is over are looked for.
const COLLECT_EVERY: Duration = Duration::from_secs(10);
/// How soon after a backend went its connections are dropped.
const COLLECT_AFTER_REMOVAL: Duration = Duration::from_millis(200);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default)]
pub struct ServiceControllerConfig {
    /// This node's name, by which its own endpoints are known.
    pub node_name: String,
    /// Where balancers' health checks are answered; all addresses when there are none.
    pub health_check_addresses: Vec<IpAddr>,
}

/// What a Node says that matters to its services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NodeTopology {
    /// Its `topology.kubernetes.io/zone`.
    zone: Option<String>,
    /// It is deleted, or the cluster autoscaler is about to.
    leaving: bool,
    /// It says that its service tables are not what they should be.
    degraded: bool,
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
            degraded: node
                .status
                .iter()
                .flat_map(|status| status.conditions.iter().flatten())
                .any(|condition| condition.type_ == DEGRADED && condition.status == "True"),
        }
    }
}

/// By which the cluster autoscaler marks what it is about to delete.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// A handle to the service tables; clones share one state. [`Self::run`] is the task.
#[derive(Clone)]
pub struct ServiceController {
    datapath: Arc<Datapath>,
    config: ServiceControllerConfig,
    shared: Arc<Shared>,
    host_ports: HostPorts,
    health: Arc<ProxyHealth>,
    metrics: Arc<SyncMetrics>,
    problem: Arc<watch::Sender<Option<String>>>,
}

impl ServiceController {
    pub fn new(datapath: Arc<Datapath>, config: ServiceControllerConfig) -> Self {
        Self {
            datapath,
            config,
            shared: Arc::new(Shared::new()),
            host_ports: HostPorts::new(),
            health: Arc::new(ProxyHealth::new()),
            metrics: Arc::new(SyncMetrics::default()),
            problem: Arc::new(watch::Sender::default()),
        }
    }

    /// Where this node's host ports are told.
    pub fn host_ports(&self) -> HostPorts {
        self.host_ports.clone()
    }

    /// Why the datapath does not hold what it should, if so: for the Node's conditions.
    pub fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.subscribe()
    }

    /// kube-proxy's metrics, in Prometheus' text format.
    pub fn metrics_text(&self) -> String {
        self.metrics.text()
    }

    /// Serves kube-proxy's `/healthz` and `/livez` for as long as it is polled.
    pub async fn serve_health(&self, address: SocketAddr) -> io::Result<()> {
        let health = self.health.clone();
        let handler = Arc::new(move |path: &str| health.answer(path));
        http::serve(http::bind(address).await?, handler).await;
        Ok(())
    }

    /// Serves kube-proxy's `/metrics` (and whatever else `text` has to say), `/healthz` and
    /// `/proxyMode` for as long as it is polled.
    pub async fn serve_metrics(
        &self,
        address: SocketAddr,
        text: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> io::Result<()> {
        let handler = Arc::new(move |path: &str| match path {
            "/metrics" => Some(Answer::text(text())),
            "/healthz" => Some(Answer::text("ok".to_owned())),
            "/proxyMode" => Some(Answer::text("ebpf".to_owned())),
            _ => None,
        });
        http::serve(http::bind(address).await?, handler).await;
        Ok(())
    }

    /// Returns once every Service of the cluster is in the datapath.
    pub async fn ready(&self) {
        self.shared.ready().await;
    }

    /// Waits until no Service sends new connections to an address because it is ready;
    /// `false` when that takes longer than `limit`. For the orderly end of a pod: its
    /// process is asked to stop only when nobody new can come. Connections that it has go
    /// on, and so do new ones when nobody else is left to serve (the fallback to
    /// terminating endpoints): waiting for those would be in vain.
    pub async fn wait_until_unreferenced(&self, address: IpAddr, limit: Duration) -> bool {
        self.shared.wait_until_unreferenced(address, limit).await
    }

    /// Watches and writes for as long as it is polled.
    pub async fn run(&self, client: Client) {
        let mut announcer = Announcer::new(client.clone(), &self.config.node_name);
        let changes = watch_objects(client, &self.config.node_name);
        let mut changes = std::pin::pin!(changes.ready_chunks(4_096));
        let addresses = self.config.health_check_addresses.clone();
        let mut checks = HealthServers::new(self.health.clone(), addresses);
        let mut host_ports = self.host_ports.subscribe();
        host_ports.mark_changed();
        let mut observed = Observed::new();
        let mut triggers = Vec::new();
        let mut recovered = false;
        let mut retry: Option<(Instant, Duration)> = None;
        let mut collect = time::interval(COLLECT_EVERY);
        collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                chunk = changes.next() => {
                    let Some(chunk) = chunk else { return };
                    chunk.into_iter().for_each(|told| self.take(told, &mut observed, &mut announcer));
                }
                // The sender does not end before `self`.
                Ok(()) = host_ports.changed() => observed.set_host_ports(&host_ports.borrow_and_update()),
                () = sleep_until(retry.map(|(at, _)| at)) => {}
                _ = collect.tick() => {
                    self.collect_garbage().await;
                    // What could not listen may be able to now.
                    self.open_checks(&mut checks, &observed, &mut announcer).await;
                    continue;
                }
            }
            let seen = observed.take_seen();
            self.metrics
                .queued(seen.service_changes, seen.endpoint_changes);
            triggers.extend(seen.triggers);
            for (slice, addresses) in seen.refused {
                announcer.refused(slice, &addresses);
            }
            let backing_off = retry.is_some_and(|(at, _)| at > Instant::now());
            if !observed.is_settled() {
                self.health.queued();
            }
            if !observed.is_synced() || backing_off {
                continue;
            }
            let (started, full) = (Instant::now(), !recovered);
            match self.sync(&mut observed, &mut recovered).await {
                Ok(None) => {}
                Ok(Some(gone)) => {
                    retry = None;
                    self.metrics.synced(started.elapsed(), full, &triggers);
                    triggers.clear();
                    self.metrics.note(&observed);
                    self.health.updated();
                    self.set_problem(None);
                    announcer.recovered();
                    self.open_checks(&mut checks, &observed, &mut announcer)
                        .await;
                    if !gone.is_empty() {
                        self.close_sockets(gone).await;
                        collect.reset_after(COLLECT_AFTER_REMOVAL);
                    }
                }
                Err(error) => {
                    let pause = retry.map_or(FIRST_RETRY, |(_, last)| (last * 2).min(LAST_RETRY));
                    retry = Some((Instant::now() + pause, pause));
                    recovered = false;
                    self.metrics
                        .failed(matches!(error, windlass_datapath::Error::MapFull { .. }));
                    self.set_problem(Some(error.to_string()));
                    announcer.degraded(&error.to_string());
                    tracing::error!(%error, retry_in = ?pause, "cannot write the service tables");
                }
            }
        }
    }

    fn take(&self, told: Told, observed: &mut Observed, announcer: &mut Announcer) {
        match told {
            Told::Object(change) => observed.take(change, &self.config.node_name),
            Told::Node(node) => {
                self.health.set_node_eligible(!node.leaving);
                observed.set_zone(node.zone.as_deref());
                announcer.set_degraded(node.degraded);
                if self.problem.borrow().is_none() {
                    // An earlier run's, or one that ended before this news came.
                    announcer.recovered();
                }
            }
        }
    }

    fn set_problem(&self, problem: Option<String>) {
        self.problem.send_if_modified(|held| {
            let changed = *held != problem;
            *held = problem;
            changed
        });
    }

    async fn open_checks(
        &self,
        checks: &mut HealthServers,
        observed: &Observed,
        announcer: &mut Announcer,
    ) {
        for (service, port, error) in checks.set(observed.health_checks()).await {
            announcer.health_check_failed(&service, port, &error);
            tracing::warn!(%error, %service, port, "cannot serve a health check");
        }
    }

    /// Brings the kernel to what was observed. Returns which backends went, or nothing when
    /// there was nothing to do.
    async fn sync(
        &self,
        observed: &mut Observed,
        recovered: &mut bool,
    ) -> Result<Option<GoneBackends>, windlass_datapath::Error> {
        let first = !*recovered;
        let snapshot = if first {
            observed.mark_all_dirty();
            Some(self.datapath.services().snapshot()?)
        } else if observed.is_settled() {
            return Ok(None);
        } else {
            None
        };
        let ((writes, cursor), number) = self.shared.plan(|tables| {
            if let Some(snapshot) = &snapshot {
                *tables = Tables::recover(snapshot);
            }
            let mut writes = observed.plan(tables);
            if first {
                writes.extend(tables.plan_removal_of_unclaimed());
            }
            (writes, tables.cursor())
        });
        let gone = gone(&writes);
        let host_ports = observed.has_host_ports();
        if !writes.is_empty() || first {
            let count = writes.len();
            let datapath = self.datapath.clone();
            // System calls, and many of them at a start with many Services.
            let apply = move || {
                let mut services = datapath.services();
                services.set_cursor(cursor.0, cursor.1)?;
                services.apply(&writes)?;
                drop(services);
                datapath.set_host_ports_in_use(host_ports)
            };
            run_blocking(apply).await?;
            tracing::debug!(writes = count, "service tables written");
        }
        *recovered = true;
        observed.settle();
        self.shared.mark_applied(number);
        Ok(Some(gone))
    }

    async fn close_sockets(&self, gone: GoneBackends) {
        let datapath = self.datapath.clone();
        match run_blocking(move || datapath.close_sockets(&gone)).await {
            Ok(0) => {}
            Ok(closed) => tracing::debug!(closed, "sockets of departed backends closed"),
            Err(error) => tracing::warn!(%error, "cannot close sockets of departed backends"),
        }
    }

    async fn collect_garbage(&self) {
        let datapath = self.datapath.clone();
        match run_blocking(move || datapath.collect_garbage()).await {
            Ok(report) => {
                let windlass_datapath::CollectReport {
                    live,
                    expired,
                    backend_gone,
                } = report;
                tracing::trace!(live, expired, backend_gone, "connections collected");
            }
            Err(error) => tracing::warn!(%error, "cannot collect connections"),
        }
    }
}

/// The backends that a plan takes away.
fn gone(writes: &[ServiceWrite]) -> GoneBackends {
    let mut gone = GoneBackends::default();
    for write in writes {
        match write {
            ServiceWrite::DeleteMember { key } => drop(gone.members.insert(*key)),
            ServiceWrite::DeleteBackend { id } => drop(gone.backends.insert(*id)),
            _ => {}
        }
    }
    gone
}

/// What the watches say.
#[allow(
    clippy::large_enum_variant,
    reason = "short-lived: read from one watch, taken at once"
)]
enum Told {
    Object(Change),
    Node(NodeTopology),
}

/// All watches as one stream that never ends: they resume and retry by themselves.
fn watch_objects(client: Client, node: &str) -> impl Stream<Item = Told> + use<> {
    let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let nodes = watcher::watcher(Api::<Node>::all(client.clone()), own)
        .default_backoff()
        .filter_map(async |event| match event {
            Ok(Event::Apply(node) | Event::InitApply(node)) => {
                Some(Told::Node(NodeTopology::of(&node)))
            }
            Ok(Event::Delete(_)) => Some(Told::Node(NodeTopology {
                leaving: true,
                ..NodeTopology::default()
            })),
            Ok(Event::Init | Event::InitDone) => None,
            Err(error) => {
                tracing::warn!(%error, "watching this node failed; trying again");
                None
            }
        });
    let config = || watcher::Config::default().labels(SELECTOR);
    let services = watcher::watcher(Api::<Service>::all(client.clone()), config());
    let slices = watcher::watcher(Api::<EndpointSlice>::all(client), config());
    let services = services
        .default_backoff()
        .filter_map(async |event| match event {
            Ok(event) => Some(Told::Object(Change::Service(event))),
            Err(error) => {
                tracing::warn!(%error, "watching services failed; trying again");
                None
            }
        });
    let slices = slices
        .default_backoff()
        .filter_map(async |event| match event {
            Ok(event) => Some(Told::Object(Change::Slice(event))),
            Err(error) => {
                tracing::warn!(%error, "watching endpoint slices failed; trying again");
                None
            }
        });
    stream::select(
        stream::select(services.boxed(), slices.boxed()),
        nodes.boxed(),
    )
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
