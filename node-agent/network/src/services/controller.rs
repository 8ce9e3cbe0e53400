//! Keeps the datapath's service tables at what the cluster's Services and EndpointSlices
//! say.
//!
//! When the API server is away, nothing happens: the tables stay at the last good state,
//! and the list after its return is compared with them. When a write fails, the state is
//! read back from the kernel and the whole is tried again, ever more slowly.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tokio::time::{self, Instant, MissedTickBehavior};
use windlass_datapath::{Datapath, ServiceWrite};

use super::{
    compile::{DesiredPort, compile},
    parse::{ServiceName, ServiceSpec, SliceSpec},
    references::Shared,
    source::Source,
    tables::Tables,
};

/// How often connections whose time is over are looked for.
const COLLECT_EVERY: Duration = Duration::from_secs(10);
/// How soon after a backend went its connections are dropped.
const COLLECT_AFTER_REMOVAL: Duration = Duration::from_millis(200);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct ServiceControllerConfig {
    /// This node's name, by which its own endpoints are known.
    pub node_name: String,
}

/// A handle to the service tables; clones share one state. [`Self::run`] is the task.
#[derive(Clone)]
pub struct ServiceController {
    datapath: Arc<Datapath>,
    config: ServiceControllerConfig,
    shared: Arc<Shared>,
}

/// A slice by namespace and name.
type SliceName = (String, String);

/// What the watches have told.
struct Observed {
    services: Source<ServiceName, ServiceSpec>,
    slices: Source<SliceName, (ServiceName, SliceSpec)>,
    /// Slices by Service.
    slices_of: HashMap<ServiceName, BTreeSet<SliceName>>,
    /// Services whose tables may be out of date.
    dirty: BTreeSet<ServiceName>,
    /// Services that claim a frontend of another, to be tried when one goes.
    contested: BTreeSet<ServiceName>,
}

enum Change {
    Service(Event<Service>),
    Slice(Event<EndpointSlice>),
}

impl ServiceController {
    pub fn new(datapath: Arc<Datapath>, config: ServiceControllerConfig) -> Self {
        Self {
            datapath,
            config,
            shared: Arc::new(Shared::new()),
        }
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
        let mut changes = std::pin::pin!(watch(client).ready_chunks(4_096));
        let mut observed = Observed::new();
        let mut recovered = false;
        let mut retry: Option<(Instant, Duration)> = None;
        let mut collect = time::interval(COLLECT_EVERY);
        collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                chunk = changes.next() => {
                    let Some(chunk) = chunk else { return };
                    chunk.into_iter().for_each(|change| observed.take(change, &self.config.node_name));
                }
                () = sleep_until(retry.map(|(at, _)| at)) => {}
                _ = collect.tick() => {
                    self.collect_garbage().await;
                    continue;
                }
            }
            let backing_off = retry.is_some_and(|(at, _)| at > Instant::now());
            if !observed.is_synced() || backing_off {
                continue;
            }
            match self.sync(&mut observed, &mut recovered).await {
                Ok(removed) => {
                    retry = None;
                    if removed {
                        collect.reset_after(COLLECT_AFTER_REMOVAL);
                    }
                }
                Err(error) => {
                    let pause = retry.map_or(FIRST_RETRY, |(_, last)| (last * 2).min(LAST_RETRY));
                    retry = Some((Instant::now() + pause, pause));
                    recovered = false;
                    tracing::error!(%error, retry_in = ?pause, "cannot write the service tables");
                }
            }
        }
    }

    /// Brings the kernel to what was observed. Returns whether backends were removed.
    async fn sync(
        &self,
        observed: &mut Observed,
        recovered: &mut bool,
    ) -> Result<bool, windlass_datapath::Error> {
        let first = !*recovered;
        let snapshot = if first {
            observed.mark_all_dirty();
            Some(self.datapath.services().snapshot()?)
        } else if observed.dirty.is_empty() {
            return Ok(false);
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
        let removed = writes
            .iter()
            .any(|write| matches!(write, ServiceWrite::DeleteMember { .. }));
        if !writes.is_empty() {
            let count = writes.len();
            let datapath = self.datapath.clone();
            // System calls, and many of them at a start with many Services.
            let apply = move || {
                let mut services = datapath.services();
                services.set_cursor(cursor.0, cursor.1)?;
                services.apply(&writes)
            };
            run_blocking(apply).await?;
            tracing::debug!(writes = count, "service tables written");
        }
        *recovered = true;
        observed.dirty.clear();
        self.shared.mark_applied(number);
        Ok(removed)
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

impl Observed {
    fn new() -> Self {
        Self {
            services: Source::new(),
            slices: Source::new(),
            slices_of: HashMap::new(),
            dirty: BTreeSet::new(),
            contested: BTreeSet::new(),
        }
    }

    fn is_synced(&self) -> bool {
        self.services.is_synced() && self.slices.is_synced()
    }

    fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.services.current().keys().cloned());
    }

    fn take(&mut self, change: Change, node: &str) {
        match change {
            Change::Service(event) => self.take_service(event),
            Change::Slice(event) => self.take_slice(event, node),
        }
    }

    fn take_service(&mut self, event: Event<Service>) {
        let name = |service: &Service| {
            ServiceName::new(service.namespace().unwrap_or_default(), service.name_any())
        };
        match event {
            Event::Init => self.services.begin_list(),
            Event::InitApply(service) => {
                if let Some(spec) = ServiceSpec::parse(&service) {
                    self.services.list(name(&service), spec);
                }
            }
            Event::InitDone => self.dirty.extend(self.services.end_list()),
            Event::Apply(service) => {
                let name = name(&service);
                let changed = match ServiceSpec::parse(&service) {
                    Some(spec) => self.services.apply(name.clone(), spec),
                    None => self.services.remove(&name),
                };
                if changed {
                    self.dirty.insert(name);
                }
            }
            Event::Delete(service) => {
                let name = name(&service);
                if self.services.remove(&name) {
                    self.dirty.insert(name);
                }
            }
        }
    }

    fn take_slice(&mut self, event: Event<EndpointSlice>, node: &str) {
        let key = |slice: &EndpointSlice| -> SliceName {
            (slice.namespace().unwrap_or_default(), slice.name_any())
        };
        let value = |slice: &EndpointSlice| {
            Some((SliceSpec::service_of(slice)?, SliceSpec::parse(slice, node)))
        };
        match event {
            Event::Init => self.slices.begin_list(),
            Event::InitApply(slice) => {
                if let Some(value) = value(&slice) {
                    self.slices.list(key(&slice), value);
                }
            }
            Event::InitDone => {
                // Both the old and the new owner of a slice that changed hands.
                for slice in self.slices.end_list() {
                    for (service, slices) in &self.slices_of {
                        if slices.contains(&slice) {
                            self.dirty.insert(service.clone());
                        }
                    }
                    if let Some((service, _)) = self.slices.current().get(&slice) {
                        self.dirty.insert(service.clone());
                    }
                }
                self.slices_of.clear();
                for (key, (service, _)) in self.slices.current() {
                    self.slices_of
                        .entry(service.clone())
                        .or_default()
                        .insert(key.clone());
                }
            }
            Event::Apply(slice) => {
                let key = key(&slice);
                match value(&slice) {
                    Some(value) => {
                        let service = value.0.clone();
                        self.disown(&key, Some(&service));
                        if self.slices.apply(key.clone(), value) {
                            self.slices_of
                                .entry(service.clone())
                                .or_default()
                                .insert(key);
                            self.dirty.insert(service);
                        }
                    }
                    None => self.forget_slice(&key),
                }
            }
            Event::Delete(slice) => self.forget_slice(&key(&slice)),
        }
    }

    fn forget_slice(&mut self, key: &SliceName) {
        self.disown(key, None);
        self.slices.remove(key);
    }

    /// Takes a slice away from the Service that has it, unless that is `except`.
    fn disown(&mut self, key: &SliceName, except: Option<&ServiceName>) {
        let Some((owner, _)) = self.slices.current().get(key) else {
            return;
        };
        if Some(owner) == except {
            return;
        }
        self.dirty.insert(owner.clone());
        if let Some(slices) = self.slices_of.get_mut(owner) {
            slices.remove(key);
            if slices.is_empty() {
                self.slices_of.remove(owner);
            }
        }
    }

    fn compile(&self, name: &ServiceName) -> Vec<DesiredPort> {
        let Some(service) = self.services.current().get(name) else {
            return Vec::new();
        };
        let slices: Vec<_> = self
            .slices_of
            .get(name)
            .into_iter()
            .flatten()
            .filter_map(|slice| self.slices.current().get(slice))
            .map(|(_, spec)| spec)
            .collect();
        compile(name, service, &slices)
    }

    /// The writes for every Service that may be out of date. Removals come first, so that
    /// a frontend that changes hands is free for its new owner.
    fn plan(&mut self, tables: &mut Tables) -> Vec<ServiceWrite> {
        let mut writes = Vec::new();
        let mut compiled = Vec::new();
        for name in &self.dirty {
            let ports = self.compile(name);
            for key in tables.ports_of(name) {
                if !ports.iter().any(|port| port.key == key) {
                    writes.extend(tables.plan_removal(&key));
                }
            }
            compiled.push((name.clone(), ports));
        }
        self.plan_ports(tables, compiled, &mut writes);
        let freed = writes
            .iter()
            .any(|write| matches!(write, ServiceWrite::DeleteService { .. }));
        if freed && !self.contested.is_empty() {
            let waiting = std::mem::take(&mut self.contested);
            let compiled = waiting
                .into_iter()
                .map(|name| (name.clone(), self.compile(&name)));
            self.plan_ports(tables, compiled.collect(), &mut writes);
        }
        writes
    }

    fn plan_ports(
        &mut self,
        tables: &mut Tables,
        compiled: Vec<(ServiceName, Vec<DesiredPort>)>,
        writes: &mut Vec<ServiceWrite>,
    ) {
        for (name, ports) in compiled {
            self.contested.remove(&name);
            for port in ports {
                let plan = tables.plan(&port);
                writes.extend(plan.writes);
                if !plan.contested.is_empty() {
                    tracing::warn!(
                        namespace = name.namespace,
                        name = name.name,
                        frontends = plan.contested.len(),
                        "addresses belong to another service already"
                    );
                    self.contested.insert(name.clone());
                }
            }
        }
    }
}

/// Both watches as one stream that never ends: they resume and retry by themselves.
fn watch(client: Client) -> impl Stream<Item = Change> {
    let services = watcher::watcher(
        Api::<Service>::all(client.clone()),
        watcher::Config::default(),
    );
    let slices = watcher::watcher(
        Api::<EndpointSlice>::all(client),
        watcher::Config::default(),
    );
    let services = services
        .default_backoff()
        .filter_map(async |event| match event {
            Ok(event) => Some(Change::Service(event)),
            Err(error) => {
                tracing::warn!(%error, "watching services failed; trying again");
                None
            }
        });
    let slices = slices
        .default_backoff()
        .filter_map(async |event| match event {
            Ok(event) => Some(Change::Slice(event)),
            Err(error) => {
                tracing::warn!(%error, "watching endpoint slices failed; trying again");
                None
            }
        });
    stream::select(services.boxed(), slices.boxed())
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
