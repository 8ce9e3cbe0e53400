//! Which kinds there are: the server's discovery, asked again every 30 s and whenever a
//! CustomResourceDefinition changes, shared by the garbage collector, namespace deletion and quotas.

use std::{sync::Arc, time::Duration};

use ahash::AHashMap;
use kube::{
    Client,
    api::ApiResource,
    discovery::{ApiCapabilities, Discovery, Scope, verbs},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

const REFRESH: Duration = Duration::from_secs(30);
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// One kind in its preferred version.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) resource: ApiResource,
    pub(crate) capabilities: ApiCapabilities,
}

impl Served {
    pub(crate) fn namespaced(&self) -> bool {
        self.capabilities.scope == Scope::Namespaced
    }

    pub(crate) fn supports(&self, verb: &str) -> bool {
        self.capabilities.supports_operation(verb)
    }

    /// Can be listed, watched and deleted: what garbage collection needs.
    pub(crate) fn collectable(&self) -> bool {
        self.supports(verbs::LIST) && self.supports(verbs::WATCH) && self.supports(verbs::DELETE)
    }
}

/// A complete answer of discovery.
#[derive(Default)]
pub(crate) struct Catalog {
    kinds: Vec<Served>,
    by_group_kind: AHashMap<(String, String), usize>,
}

impl Catalog {
    fn new(kinds: Vec<Served>) -> Self {
        let by_group_kind = kinds
            .iter()
            .enumerate()
            .map(|(at, served)| {
                (
                    (served.resource.group.clone(), served.resource.kind.clone()),
                    at,
                )
            })
            .collect();
        Self {
            kinds,
            by_group_kind,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Served> {
        self.kinds.iter()
    }

    /// The resource behind a kind as ownerReferences name it; the version does not matter.
    pub(crate) fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Served> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let at = self
            .by_group_kind
            .get(&(group.to_owned(), kind.to_owned()))?;
        self.kinds.get(*at)
    }
}

/// The newest catalog, and a way to ask for a newer one.
pub(crate) struct Resources {
    catalog: watch::Sender<Arc<Catalog>>,
    ask: Notify,
}

impl Resources {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            catalog: watch::Sender::new(Arc::new(Catalog::default())),
            ask: Notify::new(),
        })
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.borrow())
    }

    /// Told of every new catalog.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Catalog>> {
        self.catalog.subscribe()
    }

    /// Waits for the first answer.
    pub(crate) async fn known(&self) -> Arc<Catalog> {
        let mut receiver = self.catalog.subscribe();
        // The sender is a field of `self`, so waiting cannot fail.
        let _ = receiver.wait_for(|catalog| !catalog.kinds.is_empty()).await;
        self.catalog()
    }

    /// Kinds may have come or gone: look now.
    pub(crate) fn refresh(&self) {
        self.ask.notify_one();
    }

    pub(crate) async fn run(&self, client: Client, cancel: CancellationToken) {
        loop {
            let pause = match discover(&client).await {
                Ok(kinds) => {
                    debug!(kinds = kinds.len(), "discovered");
                    self.catalog.send_replace(Arc::new(Catalog::new(kinds)));
                    REFRESH
                }
                Err(error) => {
                    warn!(%error, "discovery failed, retrying");
                    AFTER_FAILURE
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.ask.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

async fn discover(client: &Client) -> kube::Result<Vec<Served>> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        Err(_) => Discovery::new(client.clone()).run().await?,
    };
    Ok(discovery
        .groups()
        .flat_map(|group| group.resources_by_stability())
        .map(|(resource, capabilities)| Served {
            resource,
            capabilities,
        })
        .collect())
}
