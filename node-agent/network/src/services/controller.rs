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
    time::{self, Instant},
};
use windlass_datapath::{Datapath, types::Traffic};

use super::{
    cleaning::{Cleaner, ConnectionTable},
    health::ProxyHealth,
    host_ports::HostPorts,
    http::{self, Answer},
    metrics::{self, SyncMetrics},
    references::Shared,
    sync_loop::SyncLoop,
};
use crate::policy::PolicyController;

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
    pub(super) datapath: Arc<Datapath>,
    pub(super) config: ServiceControllerConfig,
    pub(super) shared: Arc<Shared>,
    pub(super) host_ports: HostPorts,
    pub(super) health: Arc<ProxyHealth>,
    pub(super) metrics: Arc<SyncMetrics>,
    pub(super) problem: Arc<watch::Sender<Option<String>>>,
    pub(super) connections: Arc<watch::Sender<ConnectionTable>>,
    pub(super) pods: Option<PolicyController>,
    pub(super) servable: Arc<watch::Sender<BTreeSet<IpAddr>>>,
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
            () = SyncLoop::new(self, &cleaner, client.clone()).run(client) => {}
            () = cleaner.run() => {}
        }
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
