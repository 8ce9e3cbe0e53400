//! Keeps the datapath's service tables at what the cluster's Services and EndpointSlices
//! say.
//!
//! When the API server is away, nothing happens: the tables stay at the last good state,
//! and the list after its return is compared with them. When a write fails, the state is
//! read back from the kernel and the whole is tried again, ever more slowly.

use std::{net::IpAddr, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::time::{self, Instant, MissedTickBehavior};
use windlass_datapath::{Datapath, ServiceWrite};

use super::{
    observed::{Change, Observed},
    references::Shared,
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
        } else if observed.is_settled() {
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
        observed.settle();
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
