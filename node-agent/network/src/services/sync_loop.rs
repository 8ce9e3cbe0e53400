//! The task of a [`ServiceController`]: takes what the watches say and writes what follows from it.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use ipnet::IpNet;
use jiff::Timestamp;
use kube::Client;
use tokio::time::{self, Instant, MissedTickBehavior};
use windlass_datapath::{GoneBackends, ServiceWrite};

use super::{
    cleaning::Cleaner,
    controller::{ServiceController, run_blocking, sleep_until},
    events::Announcer,
    health::HealthServers,
    observed::Observed,
    tables::Tables,
    watches::{NodeTopology, Told, Watches},
};

/// How often what could not be done is tried again: health checks whose port was taken.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Services that are planned and written together: what is in memory at once, at a start with many.
const PORTION: usize = 1_024;
/// So many writes are done before another thread would have been woken up for them.
const FEW_WRITES: usize = 128;

pub(super) struct SyncLoop<'a> {
    controller: &'a ServiceController,
    cleaner: &'a Cleaner,
    announcer: Announcer,
    checks: HealthServers,
    observed: Observed,
    node: NodeTopology,
    /// The networks of Services, until they are written.
    networks: Option<BTreeSet<IpNet>>,
    /// When that happened which is not written yet.
    triggers: Vec<Timestamp>,
    /// Whether the tables are what the kernel holds.
    recovered: bool,
    /// When a write that failed is tried again, and how long that was put off.
    retry: Option<(Instant, Duration)>,
}

impl<'a> SyncLoop<'a> {
    pub(super) fn new(
        controller: &'a ServiceController,
        cleaner: &'a Cleaner,
        client: Client,
    ) -> Self {
        let config = &controller.config;
        let addresses = config.health_check_addresses.clone();
        Self {
            controller,
            cleaner,
            announcer: Announcer::new(client, &config.node_name),
            checks: HealthServers::new(controller.health.clone(), addresses),
            observed: Observed::new(),
            node: NodeTopology::default(),
            networks: None,
            triggers: Vec::new(),
            recovered: false,
            retry: None,
        }
    }

    pub(super) async fn run(mut self, client: Client) {
        let mut watches = Watches::start(client, &self.controller.config.node_name);
        let mut connections = self.controller.connections.subscribe();
        let mut host_ports = self.controller.host_ports.subscribe();
        host_ports.mark_changed();
        let mut look = time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                told = watches.next() => {
                    for told in told {
                        self.take(told);
                    }
                }
                // The sender does not end before the controller.
                Ok(()) = host_ports.changed() => {
                    self.observed.set_host_ports(&host_ports.borrow_and_update());
                }
                () = sleep_until(self.retry.map(|(at, _)| at)) => {}
                Ok(()) = connections.changed() => {
                    self.announcer.connections(&connections.borrow_and_update());
                    continue;
                }
                _ = look.tick() => {
                    // What could not listen may be able to now.
                    self.open_checks().await;
                    continue;
                }
            }
            self.tell_seen();
            let backing_off = self.retry.is_some_and(|(at, _)| at > Instant::now());
            if !self.observed.is_settled() {
                self.controller.health.queued();
            }
            if self.recovered && self.observed.is_settled() {
                self.set_networks();
            } else if self.observed.is_synced() && !backing_off {
                self.sync().await;
            }
        }
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Object(change) => self.observed.take(change),
            Told::Node(node) => {
                self.controller.health.set_node_eligible(!node.leaving);
                self.observed.set_zone(node.zone.as_deref());
                self.announcer.set_told(&node);
                if self.controller.problem.borrow().is_none() {
                    // An earlier run's, or one that ended before this news came.
                    self.announcer.recovered();
                }
                self.node = node;
                self.set_servable();
            }
            Told::Networks(networks) => self.networks = Some(networks),
        }
    }

    /// Tells what was noticed while reading: in metrics and in events.
    fn tell_seen(&mut self) {
        let seen = self.observed.take_seen();
        self.controller
            .metrics
            .queued(seen.service_changes, seen.endpoint_changes);
        self.triggers.extend(seen.triggers);
        for (slice, addresses) in seen.refused {
            self.announcer.refused(slice, &addresses);
        }
        for (service, why) in seen.misread {
            self.announcer.misread(service, why);
        }
    }

    async fn sync(&mut self) {
        let (started, full) = (Instant::now(), !self.recovered);
        match self.write_all().await {
            Ok(gone) => {
                self.cleaner.went(gone);
                self.retry = None;
                let metrics = &self.controller.metrics;
                metrics.synced(started.elapsed(), full, &self.triggers);
                self.triggers.clear();
                metrics.note(&self.observed);
                self.set_networks();
                self.set_servable();
                self.controller.health.updated();
                self.set_problem(None);
                self.announcer.recovered();
                if self.observed.take_checks_changed() {
                    self.open_checks().await;
                }
            }
            Err(error) => {
                let last = self.retry.map(|(_, last)| last);
                let pause = last.map_or(FIRST_RETRY, |last| (last * 2).min(LAST_RETRY));
                self.retry = Some((Instant::now() + pause, pause));
                self.recovered = false;
                let full = matches!(error, windlass_datapath::Error::MapFull { .. });
                self.controller.metrics.failed(full);
                self.set_problem(Some(error.to_string()));
                self.announcer.degraded(&error.to_string());
                tracing::error!(%error, retry_in = ?pause, "cannot write the service tables");
            }
        }
    }

    /// Once every Service of the cluster is in the tables: what is not there, nobody has.
    fn set_networks(&mut self) {
        let Some(networks) = &self.networks else {
            return;
        };
        let networks: Vec<_> = networks
            .iter()
            .map(|net| (net.network(), net.prefix_len()))
            .collect();
        match self.controller.datapath.set_service_networks(&networks) {
            Ok(()) => self.networks = None,
            Err(error) => tracing::error!(%error, "cannot write the networks of Services"),
        }
    }

    /// What is in the tables may be answered for, on a node that stands for balancers at all.
    fn set_servable(&self) {
        let (node, controller) = (&self.node, self.controller);
        let pools = &controller.config.load_balancer_pools;
        let in_pool = |address: &&IpAddr| pools.iter().any(|pool| pool.contains(*address));
        let servable: BTreeSet<IpAddr> = match node.leaving || node.no_balancer {
            true => BTreeSet::new(),
            false => self.observed.servable().filter(in_pool).copied().collect(),
        };
        controller.servable.send_if_modified(|held| {
            let changed = *held != servable;
            *held = servable;
            changed
        });
    }

    fn set_problem(&self, problem: Option<String>) {
        self.controller.problem.send_if_modified(|held| {
            let changed = *held != problem;
            *held = problem;
            changed
        });
    }

    async fn open_checks(&mut self) {
        let wanted = self.observed.health_checks();
        for (service, port, error) in self.checks.set(wanted).await {
            self.announcer.health_check_failed(&service, port, &error);
            tracing::warn!(%error, %service, port, "cannot serve a health check");
        }
    }

    /// Brings the kernel to what was observed. Returns which backends went.
    async fn write_all(&mut self) -> Result<GoneBackends, windlass_datapath::Error> {
        let first = !self.recovered;
        let ServiceController {
            datapath, shared, ..
        } = self.controller;
        let _writing = shared.writing().await;
        let mut gone = GoneBackends::default();
        if first {
            self.observed.mark_all_dirty();
            let snapshot = datapath.services().snapshot()?;
            let recover = |tables: &mut Tables| {
                *tables = Tables::recover(&snapshot);
                if self.controller.pods.is_some() {
                    tables.ask_for_pods();
                }
            };
            shared.plan(recover);
        }
        while !self.observed.is_settled() {
            let (writes, _) = shared.plan(|tables| {
                let writes = self.observed.plan(tables, PORTION);
                (writes, tables.cursor())
            });
            gone.note(&writes.0);
            self.write(writes).await?;
        }
        if first {
            let (writes, _) =
                shared.plan(|tables| (tables.plan_removal_of_unclaimed(), tables.cursor()));
            gone.note(&writes.0);
            self.write(writes).await?;
        }
        datapath.set_host_ports_in_use(self.observed.has_host_ports())?;
        let (retired, number) = shared.plan(Tables::take_retired);
        datapath.forget_traffic(&retired)?;
        self.recovered = true;
        shared.mark_applied(number);
        Ok(gone)
    }

    async fn write(
        &self,
        (writes, cursor): (Vec<ServiceWrite>, (u32, u32)),
    ) -> Result<(), windlass_datapath::Error> {
        let count = writes.len();
        let datapath = self.controller.datapath.clone();
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
