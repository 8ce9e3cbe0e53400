//! The scheduler: finds each pod a node, by Kubernetes' plugins and rules.
//!
//! `queue` orders the pods that wait, `cache` holds nodes and their pods, `cycle` runs the plugins of
//! `plugins/` over a snapshot, `scheduler` assumes and binds, `preemption` makes room. Everything below
//! `scheduler` is pure. Knows cluster state only as a client, through the shared informers; must never
//! depend on the API server, the store or the controllers.

mod arguments;
mod cache;
mod config;
mod cycle;
mod devices;
mod event;
mod framework;
mod kin;
mod node;
mod plugins;
mod pod;
mod preemption;
mod profile;
mod queue;
mod resources;
mod scheduler;
mod status;
mod storage;
mod watch;

use std::sync::Arc;

use ahash::AHashMap;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;
use windlass_informers::{Informers, recorder::Recorder};

use crate::{
    cache::Cache,
    devices::DeviceBinder,
    plugins::{InformerLookup, Lookup},
    profile::Profiles,
    queue::{Backoff, Queue},
    scheduler::Scheduler,
    storage::{Binder, InformerStorage, Storage},
};

pub use crate::config::{ConfigError, ProfileConfig, SchedulerConfig};

/// Whether a configuration can be run: what [`run`] would refuse is said at the start already.
pub fn check(config: &SchedulerConfig, informers: &Informers) -> Result<(), ConfigError> {
    let lookup: Arc<dyn Lookup> = Arc::new(InformerLookup::new(informers));
    let storage: Arc<dyn Storage> = Arc::new(InformerStorage::new(informers));
    Profiles::new(config, &lookup, &storage).map(drop)
}

/// Schedules until `cancel`; to be called by the current leader only.
pub async fn run(
    client: Client,
    informers: Arc<Informers>,
    config: SchedulerConfig,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let lookup = Arc::new(InformerLookup::new(&informers));
    let storage = Arc::new(InformerStorage::new(&informers));
    let nodes = informers.get::<Node>();
    let pods = informers.get();
    let budgets = informers.get();
    let all = async {
        lookup.synced().await;
        storage.synced().await;
        nodes.synced().await;
        pods.synced().await;
        budgets.synced().await;
    };
    if cancel.run_until_cancelled(all).await.is_none() {
        return Ok(());
    }
    let namespaces = Arc::clone(&lookup.namespaces);
    let lookup: Arc<dyn Lookup> = lookup;
    let disks: Arc<dyn Storage> = Arc::clone(&storage) as _;
    let profiles = Arc::new(Profiles::new(&config, &lookup, &disks)?);
    let backoff = Backoff {
        first: config.initial_backoff,
        longest: config.max_backoff,
    };
    let scheduler = Arc::new(Scheduler {
        recorder: Recorder::start(client.clone(), config::DEFAULT_NAME),
        client: client.clone(),
        cache: Cache::default(),
        queue: Queue::new(Arc::clone(&profiles), backoff),
        profiles: Arc::clone(&profiles),
        pods: Arc::clone(&pods),
        budgets,
        volumes: Binder {
            client: client.clone(),
            claims: Arc::clone(&storage.claims),
            reservations: Arc::clone(&storage.reservations),
        },
        devices: DeviceBinder {
            client: client.clone(),
            promises: Arc::clone(&storage.promises),
        },
        storage: Arc::clone(&storage),
        bindings: Scheduler::binding_slots(),
        nominated: Mutex::new(AHashMap::new()),
    });
    let _subscriptions = watch::subscribe(&scheduler, &nodes, &pods, &namespaces, &storage);
    info!(
        profiles = ?profiles.names(),
        nodes = nodes.len(),
        pods = pods.len(),
        "scheduling"
    );
    // On a task of its own, so that a fault ends the term and not the process.
    let mut running = JoinSet::new();
    running.spawn(scheduler.run());
    match cancel.run_until_cancelled(running.join_next()).await {
        None => Ok(()),
        Some(_ended) => anyhow::bail!("the scheduling loop ended"),
    }
}
