//! Keeps the datapath's service tables at what the cluster's Services and EndpointSlices
//! say.
//!
//! When the API server is away, nothing happens: the tables stay at the last good state,
//! and the list after its return is compared with them. When a write fails, the state is
//! read back from the kernel and the whole is tried again, ever more slowly.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use kube::Client;
use tokio::{
    sync::watch,
    time::{self, Instant, MissedTickBehavior},
};
use windlass_datapath::{Datapath, GoneBackends, ServiceWrite, types::Traffic};

use super::{
    cleaning::{Cleaner, ConnectionTable},
    events::Announcer,
    health::{HealthServers, ProxyHealth},
    host_ports::HostPorts,
    http::{self, Answer},
    metrics::{self, SyncMetrics},
    observed::Observed,
    references::Shared,
    tables::Tables,
    watches::{NodeTopology, Told, Watches},
};
use crate::policy::PolicyController;

/// How often what could not be done is tried again: health checks whose port was taken.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Services that are planned and written together: what is in memory at once, at a start with many.
const PORTION: usize = 1_024;
/// So many writes are done before another thread would have been woken up for them.
const FEW_WRITES: usize = 128;

#[derive(Clone, Debug, Default)]
pub struct ServiceControllerConfig {
    /// This node's name, by which its own endpoints are known.
    pub node_name: String,
    /// Where balancers' health checks are answered; all addresses when there are none.
    pub health_check_addresses: Vec<IpAddr>,
    /// Addresses of balancers for which the nodes themselves answer.
    pub load_balancer_pools: Vec<IpNet>,
}

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
    connections: Arc<watch::Sender<ConnectionTable>>,
    pods: Option<PolicyController>,
    servable: Arc<watch::Sender<BTreeSet<IpAddr>>>,
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
            connections: Arc::new(watch::Sender::default()),
            pods: None,
            servable: Arc::new(watch::Sender::default()),
        }
    }

    /// The same with somebody to ask which pods there are: an endpoint that leaves its Service need not have gone.
    #[must_use]
    pub fn asking(mut self, pods: PolicyController) -> Self {
        self.pods = Some(pods);
        self
    }

    /// The balancers' addresses for which this node may answer: in a pool, and served here.
    pub fn servable_addresses(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.servable.subscribe()
    }

    /// Where this node's host ports are told.
    pub fn host_ports(&self) -> HostPorts {
        self.host_ports.clone()
    }

    /// Why the datapath does not hold what it should, if so: for the Node's conditions.
    pub fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.subscribe()
    }

    /// kube-proxy's metrics and how full the maps are, in Prometheus' text format.
    pub fn metrics_text(&self) -> String {
        let mut text = self.metrics.text();
        let connections = *self.connections.borrow();
        let mut maps = vec![("CONNTRACK", connections.used, connections.capacity)];
        let capacities = self.datapath.services().capacities();
        for ((map, used), (_, capacity)) in self
            .shared
            .sizes()
            .into_iter()
            .zip(capacities.into_iter().flatten())
        {
            maps.push((map, used, capacity as usize));
        }
        metrics::write_maps(&mut text, &maps);
        if let Ok(traffic) = self.datapath.traffic() {
            let named = self.shared.named(&traffic, |sum: &mut Traffic, one| {
                sum.connections += one.connections;
                sum.request_bytes += one.request_bytes;
                sum.reply_bytes += one.reply_bytes;
            });
            metrics::write_traffic(&mut text, &named);
        }
        let open = self.datapath.open_connections();
        metrics::write_open(&mut text, &self.shared.named(&open, |sum, one| *sum += one));
        text
    }

    /// Serves kube-proxy's `/healthz` and `/livez` for as long as it is polled.
    pub async fn serve_health(&self, address: SocketAddr) -> io::Result<()> {
        let (health, metrics) = (self.health.clone(), self.metrics.clone());
        let handler = Arc::new(move |path: &str| {
            let answer = health.answer(path)?;
            metrics.asked(path, answer.status.as_u16());
            Some(answer)
        });
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
        if self.config.load_balancer_pools.is_empty()
            && let Err(error) = self.datapath.retain_announced(&[])
        {
            tracing::warn!(%error, "this node goes on answering for balancers' addresses");
        }
        let cleaner = Cleaner::new(
            self.datapath.clone(),
            self.shared.clone(),
            self.pods.clone(),
            self.connections.clone(),
        );
        tokio::select! {
            () = self.keep(client, &cleaner) => {}
            () = cleaner.run() => {}
        }
    }

    async fn keep(&self, client: Client, cleaner: &Cleaner) {
        let mut announcer = Announcer::new(client.clone(), &self.config.node_name);
        let mut watches = Watches::start(client, &self.config.node_name);
        let addresses = self.config.health_check_addresses.clone();
        let mut checks = HealthServers::new(self.health.clone(), addresses);
        let mut connections = self.connections.subscribe();
        let mut host_ports = self.host_ports.subscribe();
        host_ports.mark_changed();
        let mut observed = Observed::new();
        let mut node = NodeTopology::default();
        // What the watches say, until it is written.
        let mut networks = None;
        let mut triggers = Vec::new();
        let mut recovered = false;
        let mut retry: Option<(Instant, Duration)> = None;
        let mut look = time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                told = watches.next() => {
                    for told in told {
                        match told {
                            Told::Object(change) => observed.take(change),
                            Told::Node(news) => {
                                self.take_node(&news, &mut observed, &mut announcer);
                                node = news;
                                self.set_servable(&observed, &node);
                            }
                            Told::Networks(news) => networks = Some(news),
                        }
                    }
                }
                // The sender does not end before `self`.
                Ok(()) = host_ports.changed() => observed.set_host_ports(&host_ports.borrow_and_update()),
                () = sleep_until(retry.map(|(at, _)| at)) => {}
                Ok(()) = connections.changed() => {
                    announcer.connections(&connections.borrow_and_update());
                    continue;
                }
                _ = look.tick() => {
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
            for (service, why) in seen.misread {
                announcer.misread(service, why);
            }
            let backing_off = retry.is_some_and(|(at, _)| at > Instant::now());
            if !observed.is_settled() {
                self.health.queued();
            }
            if recovered && observed.is_settled() {
                self.set_networks(&mut networks);
                continue;
            }
            if !observed.is_synced() || backing_off {
                continue;
            }
            let (started, full) = (Instant::now(), !recovered);
            match self.sync(&mut observed, &mut recovered).await {
                Ok(gone) => {
                    cleaner.went(gone);
                    retry = None;
                    self.metrics.synced(started.elapsed(), full, &triggers);
                    triggers.clear();
                    self.metrics.note(&observed);
                    self.set_networks(&mut networks);
                    self.set_servable(&observed, &node);
                    self.health.updated();
                    self.set_problem(None);
                    announcer.recovered();
                    if observed.take_checks_changed() {
                        self.open_checks(&mut checks, &observed, &mut announcer)
                            .await;
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

    fn take_node(&self, node: &NodeTopology, observed: &mut Observed, announcer: &mut Announcer) {
        self.health.set_node_eligible(!node.leaving);
        observed.set_zone(node.zone.as_deref());
        announcer.set_told(node);
        if self.problem.borrow().is_none() {
            // An earlier run's, or one that ended before this news came.
            announcer.recovered();
        }
    }

    /// Once every Service of the cluster is in the tables: what is not there, nobody has.
    fn set_networks(&self, told: &mut Option<BTreeSet<IpNet>>) {
        let Some(networks) = told else {
            return;
        };
        let networks: Vec<_> = networks
            .iter()
            .map(|net| (net.network(), net.prefix_len()))
            .collect();
        match self.datapath.set_service_networks(&networks) {
            Ok(()) => *told = None,
            Err(error) => tracing::error!(%error, "cannot write the networks of Services"),
        }
    }

    /// What is in the tables may be answered for, on a node that stands for balancers at all.
    fn set_servable(&self, observed: &Observed, node: &NodeTopology) {
        let pools = &self.config.load_balancer_pools;
        let in_pool = |address: &&IpAddr| pools.iter().any(|pool| pool.contains(*address));
        let servable: BTreeSet<IpAddr> = match node.leaving || node.no_balancer {
            true => BTreeSet::new(),
            false => observed.servable().filter(in_pool).copied().collect(),
        };
        self.servable.send_if_modified(|held| {
            let changed = *held != servable;
            *held = servable;
            changed
        });
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

    /// Brings the kernel to what was observed. Returns which backends went.
    async fn sync(
        &self,
        observed: &mut Observed,
        recovered: &mut bool,
    ) -> Result<GoneBackends, windlass_datapath::Error> {
        let first = !*recovered;
        let _writing = self.shared.writing().await;
        let mut gone = GoneBackends::default();
        if first {
            observed.mark_all_dirty();
            let snapshot = self.datapath.services().snapshot()?;
            let recover = |tables: &mut Tables| {
                *tables = Tables::recover(&snapshot);
                if self.pods.is_some() {
                    tables.ask_for_pods();
                }
            };
            self.shared.plan(recover);
        }
        while !observed.is_settled() {
            let (writes, _) = self.shared.plan(|tables| {
                let writes = observed.plan(tables, PORTION);
                (writes, tables.cursor())
            });
            gone.note(&writes.0);
            self.write(writes).await?;
        }
        if first {
            let (writes, _) = self
                .shared
                .plan(|tables| (tables.plan_removal_of_unclaimed(), tables.cursor()));
            gone.note(&writes.0);
            self.write(writes).await?;
        }
        self.datapath
            .set_host_ports_in_use(observed.has_host_ports())?;
        let (retired, number) = self.shared.plan(Tables::take_retired);
        self.datapath.forget_traffic(&retired)?;
        *recovered = true;
        self.shared.mark_applied(number);
        Ok(gone)
    }

    async fn write(
        &self,
        (writes, cursor): (Vec<ServiceWrite>, (u32, u32)),
    ) -> Result<(), windlass_datapath::Error> {
        let count = writes.len();
        let datapath = self.datapath.clone();
        let apply = move || {
            let mut services = datapath.services();
            services.set_cursor(cursor.0, cursor.1)?;
            services.apply(&writes)
        };
        if count <= FEW_WRITES {
            apply()?;
        } else {
            run_blocking(apply).await?;
        }
        tracing::debug!(writes = count, "service tables written");
        Ok(())
    }
}

pub(super) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
