//! Metadata of any kind: typed where the process keeps the kind anyway, else a watch of bare metadata.
//!
//! The garbage collector and namespace deletion work on every kind that discovery names, CRDs included,
//! and need only names, uids, owners and finalizers.

use std::sync::{Arc, Weak};

use ahash::AHashMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, PartialObjectMeta},
    runtime::watcher,
};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::{Cached, Change, Informer, Informers, Subscription, informer::feed, kinds::typed_feed};

/// A change of one object of which only the metadata is of interest.
pub struct MetadataChange<'a> {
    /// The newest known metadata.
    pub metadata: &'a ObjectMeta,
    /// The object is gone.
    pub deleted: bool,
}

/// The metadata view of one kind; dropping the last feed of a kind that has no typed view ends its watch.
pub enum MetadataFeed {
    /// The process keeps the whole kind.
    Typed(Box<dyn MetadataSource>),
    /// The process keeps the metadata only.
    Bare(Arc<BareInformer>),
}

/// A typed view seen through its metadata.
pub trait MetadataSource: Send + Sync {
    /// See [`MetadataFeed::on_change`].
    fn on_change(&self, handler: MetadataHandler) -> Subscription;
    /// See [`MetadataFeed::synced`].
    fn synced(&self) -> futures::future::BoxFuture<'_, ()>;
}

type MetadataHandler = Box<dyn Fn(&MetadataChange<'_>) + Send + Sync>;

impl<K: Cached> MetadataSource for Arc<Informer<K>> {
    fn on_change(&self, handler: MetadataHandler) -> Subscription {
        Informer::on_change(self, move |change| call(&handler, change))
    }

    fn synced(&self) -> futures::future::BoxFuture<'_, ()> {
        Box::pin(Informer::synced(self))
    }
}

fn call<K: Resource>(handler: &MetadataHandler, change: &Change<'_, K>) {
    handler(&MetadataChange {
        metadata: change.object().meta(),
        deleted: matches!(change, Change::Deleted(_)),
    });
}

impl MetadataFeed {
    /// As [`Informer::on_change`].
    pub fn on_change(
        &self,
        handler: impl Fn(&MetadataChange<'_>) + Send + Sync + 'static,
    ) -> Subscription {
        let handler: MetadataHandler = Box::new(handler);
        match self {
            Self::Typed(source) => source.on_change(handler),
            Self::Bare(bare) => bare
                .informer
                .on_change(move |change| call(&handler, change)),
        }
    }

    /// As [`Informer::synced`].
    pub async fn synced(&self) {
        match self {
            Self::Typed(source) => source.synced().await,
            Self::Bare(bare) => bare.informer.synced().await,
        }
    }
}

/// A watch of bare metadata that ends with its last user.
pub struct BareInformer {
    informer: Arc<Informer<PartialObjectMeta<DynamicObject>>>,
    task: AbortHandle,
}

impl Drop for BareInformer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Default)]
pub(crate) struct MetadataInformers {
    bare: Mutex<AHashMap<(String, String), Weak<BareInformer>>>,
}

impl MetadataInformers {
    pub(crate) fn feed(
        &self,
        informers: &Arc<Informers>,
        client: &Client,
        resource: &ApiResource,
    ) -> MetadataFeed {
        if let Some(typed) = typed_feed(informers, resource) {
            return MetadataFeed::Typed(typed);
        }
        let mut bare = self.bare.lock();
        bare.retain(|_, informer| informer.strong_count() > 0);
        let key = (resource.group.clone(), resource.plural.clone());
        if let Some(running) = bare.get(&key).and_then(Weak::upgrade) {
            return MetadataFeed::Bare(running);
        }
        let informer = Arc::new(Informer::new(|_| None));
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client.clone(), resource);
        let stream = watcher::watcher(api, watcher::Config::default());
        let what = format!("{}.{} (metadata)", resource.plural, resource.group);
        let feeding = feed(Arc::downgrade(&informer), what, stream, |object| {
            object.metadata.labels = None;
            object.metadata.annotations = None;
        });
        let task = tokio::spawn(feeding).abort_handle();
        let started = Arc::new(BareInformer { informer, task });
        bare.insert(key, Arc::downgrade(&started));
        MetadataFeed::Bare(started)
    }
}
