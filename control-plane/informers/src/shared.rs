//! The one set of informers of a process.

use std::{
    any::{Any, TypeId},
    sync::Arc,
};

use ahash::AHashMap;
use kube::{Api, Client, runtime::watcher};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::{
    Cached, Informer,
    informer::feed,
    metadata::{MetadataFeed, MetadataInformers},
};

/// Starts a kind's watch when it is first asked for and hands out the same view ever after.
pub struct Informers {
    client: Client,
    typed: Mutex<AHashMap<TypeId, Typed>>,
    metadata: MetadataInformers,
}

struct Typed {
    informer: Arc<dyn Any + Send + Sync>,
    task: AbortHandle,
}

impl Informers {
    /// Needs a running tokio runtime when kinds are asked for, not here.
    pub fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            typed: Mutex::new(AHashMap::new()),
            metadata: MetadataInformers::default(),
        })
    }

    /// The view of a kind, in all namespaces.
    pub fn get<K: Cached>(&self) -> Arc<Informer<K>> {
        let mut typed = self.typed.lock();
        let entry = typed.entry(TypeId::of::<K>()).or_insert_with(|| {
            let informer = Arc::new(Informer::<K>::new(K::index));
            let stream = watcher::watcher(
                Api::<K>::all(self.client.clone()),
                // One object after another: a page of a list would be in memory as text and as values at once.
                watcher::Config::default().streaming_lists(),
            );
            let feeding = feed(
                Arc::downgrade(&informer),
                K::plural(&()).into_owned(),
                stream,
                K::trim,
            );
            let task = tokio::spawn(feeding).abort_handle();
            Typed { informer, task }
        });
        Arc::clone(&entry.informer)
            .downcast()
            .unwrap_or_else(|_| unreachable!("the map's key is the informer's type"))
    }

    /// The metadata of any kind that discovery names, from the typed view where there is one.
    pub fn metadata(self: &Arc<Self>, resource: &kube::api::ApiResource) -> MetadataFeed {
        self.metadata.feed(self, &self.client, resource)
    }
}

impl Drop for Informers {
    fn drop(&mut self) {
        for typed in self.typed.get_mut().values() {
            typed.task.abort();
        }
    }
}
