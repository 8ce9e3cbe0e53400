//! Garbage collection: objects whose owners are all gone are deleted, in the background or, where the
//! owner asked for it, before the owner goes; `orphan` lets them live.
//!
//! Works on every kind that discovery names and that can be listed, watched and deleted, kinds of
//! CustomResourceDefinitions included, on metadata alone.

mod collect;
mod graph;

use std::{sync::Arc, time::Duration};

use ahash::{AHashMap, AHashSet};
use futures::future::join_all;
use kube::api::ApiResource;
use parking_lot::Mutex;
use tracing::{debug, info, warn};
use windlass_informers::{MetadataChange, MetadataFeed, Subscription};

use self::graph::{Graph, Identity, Work};
use crate::{
    resources::Catalog,
    runtime::{Context, Controller, Outcome, Queue, Result, run_workers},
};

/// Events own nothing and are owned by nothing, and there are many of them.
const IGNORED: &[(&str, &str)] = &[("", "events"), ("events.k8s.io", "events")];
const WORKERS: usize = 20;
/// How long the first listing of all kinds may take before collection starts with what there is.
const FIRST_LISTING: Duration = Duration::from_secs(30);

/// Remembers this many owners that are known to be absent.
const ABSENT_LIMIT: usize = 10_000;

pub(crate) struct GarbageCollector {
    context: Context,
    graph: Mutex<Graph>,
    queue: Arc<Queue<Work>>,
    absent: Mutex<AHashSet<Identity>>,
}

type Feeds = AHashMap<(String, String), (MetadataFeed, Subscription)>;

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let collector = Arc::new(GarbageCollector {
        context: context.clone(),
        graph: Mutex::new(Graph::default()),
        queue: Arc::clone(&queue),
        absent: Mutex::new(AHashSet::new()),
    });
    let mut catalogs = context.resources.subscribe();
    let first = context.resources.known().await;
    let mut feeds = Feeds::new();
    follow(&collector, &first, &mut feeds);
    let listing = join_all(feeds.values().map(|(feed, _)| feed.synced()));
    if tokio::time::timeout(FIRST_LISTING, listing).await.is_err() {
        warn!("some kinds are not listed yet, collecting garbage of the others");
    }
    info!(kinds = feeds.len(), "collecting garbage");

    let following = async {
        while catalogs.changed().await.is_ok() {
            let catalog = catalogs.borrow_and_update().clone();
            follow(&collector, &catalog, &mut feeds);
        }
    };
    tokio::select! {
        () = run_workers(Arc::clone(&collector), queue, WORKERS, &context.cancel) => {}
        () = following => {}
    }
}

/// Watches exactly the kinds of the catalog.
fn follow(collector: &Arc<GarbageCollector>, catalog: &Catalog, feeds: &mut Feeds) {
    let wanted: AHashMap<(String, String), &ApiResource> = catalog
        .iter()
        .filter(|served| served.collectable())
        .map(|served| {
            let resource = &served.resource;
            ((resource.group.clone(), resource.plural.clone()), resource)
        })
        .filter(|((group, plural), _)| !IGNORED.contains(&(group.as_str(), plural.as_str())))
        .collect();
    feeds.retain(|kind, _| wanted.contains_key(kind));
    for (kind, resource) in wanted {
        feeds.entry(kind).or_insert_with(|| {
            debug!(
                group = resource.group,
                kind = resource.kind,
                "watching for garbage"
            );
            let feed = collector.context.informers.metadata(resource);
            let (collector, resource) = (Arc::clone(collector), resource.clone());
            let subscription = feed.on_change(move |change| collector.see(&resource, change));
            (feed, subscription)
        });
    }
}

impl GarbageCollector {
    fn see(&self, resource: &ApiResource, change: &MetadataChange<'_>) {
        let meta = change.metadata;
        let Some(uid) = meta.uid.clone() else { return };
        if resource.plural == "customresourcedefinitions" {
            self.context.resources.refresh();
        }
        let identity = Identity {
            api_version: resource.api_version.clone(),
            kind: resource.kind.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid,
        };
        let work = if change.deleted {
            self.graph.lock().forget(&identity.uid)
        } else {
            self.graph.lock().observe(identity, meta)
        };
        self.enqueue(work);
    }

    fn enqueue(&self, work: impl IntoIterator<Item = Work>) {
        for item in work {
            self.queue.add(item);
        }
    }

    fn note_absent(&self, owner: Identity) {
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT_LIMIT {
            // uids never come back, so forgetting costs one look-up each.
            absent.clear();
        }
        absent.insert(owner);
    }
}

impl Controller for GarbageCollector {
    type Key = Work;
    const NAME: &'static str = "garbagecollector";

    async fn reconcile(&self, key: &Work) -> Result<Outcome> {
        match key {
            Work::Examine(uid) => self.examine(uid).await?,
            Work::Orphan(uid) => self.orphan(uid).await?,
        }
        Ok(Outcome::Done)
    }
}
