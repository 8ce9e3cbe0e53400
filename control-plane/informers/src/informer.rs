//! One watched kind: its store, who wants to hear of changes, and how far the view has come.

use std::{
    any::Any,
    collections::HashSet,
    fmt::Debug,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::{Stream, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tracing::{debug, warn};
use windlass_patience::{Patience, is_not_served};

use crate::{
    Key,
    store::{Held, IndexBy, Keepable, Store},
};

/// What happened to one object, as the shared view saw it.
pub enum Change<'a, K> {
    /// The object is new to the view.
    Added(&'a Arc<K>),
    /// The object was replaced by a newer version.
    Updated {
        /// The version that the view held before.
        old: &'a Arc<K>,
        /// The version it holds now.
        new: &'a Arc<K>,
    },
    /// The object is gone; this is its last known state.
    Deleted(&'a Arc<K>),
}

impl<K> Change<'_, K> {
    /// The newest known state of the object.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Added(object) | Self::Updated { new: object, .. } | Self::Deleted(object) => {
                object
            }
        }
    }

    /// The state before the change, if there was one.
    pub fn previous(&self) -> Option<&Arc<K>> {
        match self {
            Self::Added(_) => None,
            Self::Updated { old, .. } => Some(old),
            Self::Deleted(object) => Some(object),
        }
    }
}

type Handler<K> = dyn Fn(&Change<'_, K>) + Send + Sync;

/// Keeps a callback registered; dropping it ends the calls.
#[must_use = "the callback is called only while its subscription lives"]
pub struct Subscription(
    #[allow(dead_code, reason = "held for its drop")] Arc<dyn Any + Send + Sync>,
);

struct Registered<K>(Box<Handler<K>>);

/// How far a view has come: the newest resourceVersion seen and how often it was listed afresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    resource_version: u64,
    listings: u64,
}

/// The shared view of one kind.
pub struct Informer<K> {
    store: RwLock<Store<K>>,
    /// Held while a change is applied and told, so that a new handler sees each object exactly once:
    /// in its replay or as a change.
    handlers: Mutex<Vec<Weak<Registered<K>>>>,
    position: Mutex<Position>,
    synced: watch::Sender<bool>,
}

impl<K: Keepable> Informer<K> {
    pub(crate) fn new(index_by: IndexBy<K>) -> Self {
        Self {
            store: RwLock::new(Store::new(index_by)),
            handlers: Mutex::new(Vec::new()),
            position: Mutex::new(Position {
                resource_version: 0,
                listings: 0,
            }),
            synced: watch::Sender::new(false),
        }
    }

    /// The object, if the view has it.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.by_key(&Key::new(namespace, name))
    }

    /// The object of a key, if the view has it.
    pub fn by_key(&self, key: &Key) -> Option<Arc<K>> {
        let held = self.store.read().get(key);
        held.map(|held| held.object())
    }

    /// Every object. Of a kind that may have very many, ask for [`those that matter`](Self::filter).
    pub fn list(&self) -> Vec<Arc<K>> {
        values(self.store.read().list())
    }

    /// The objects that `wanted` picks. Only they are in memory as values when it returns; with many objects
    /// it takes so long that it has no place on a task of the runtime.
    pub fn filter(&self, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        // Not under the lock: the watch goes on meanwhile.
        let held = self.store.read().list();
        let objects = held.iter().map(Held::object);
        objects.filter(|object| wanted(object)).collect()
    }

    /// The objects of a namespace whose metadata `wanted` picks.
    pub fn select(&self, namespace: &str, wanted: impl Fn(&ObjectMeta) -> bool) -> Vec<Arc<K>> {
        let held = self.store.read().in_namespace(namespace);
        let picked = held.iter().filter(|held| held.with_metadata(&wanted));
        picked.map(Held::object).collect()
    }

    /// How many objects the view holds.
    pub fn len(&self) -> usize {
        self.store.read().len()
    }

    /// Whether the view holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every object of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        values(self.store.read().in_namespace(namespace))
    }

    /// The objects whose controlling owner (`controller: true`) has this uid.
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        values(self.store.read().controlled_by(uid))
    }

    /// The objects of a namespace that have no controlling owner.
    pub fn orphans(&self, namespace: &str) -> Vec<Arc<K>> {
        values(self.store.read().orphans(namespace))
    }

    /// The objects with this value in the kind's own index (see [`crate::Cached::index`]).
    pub fn indexed(&self, value: &str) -> Vec<Arc<K>> {
        values(self.store.read().indexed(value))
    }

    /// The values under which [`Self::indexed`] finds anything.
    pub fn index_values(&self) -> Vec<String> {
        self.store.read().index_values()
    }

    /// Calls `handler` for every object there is and then for every change, until the subscription is
    /// dropped. Handlers run on the watching task: they push keys and return, and may read any store.
    pub fn on_change(
        &self,
        handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static,
    ) -> Subscription {
        let registered = Arc::new(Registered(Box::new(handler)));
        let mut handlers = self.handlers.lock();
        let present = self.store.read().list();
        for held in present {
            (registered.0)(&Change::Added(&held.object()));
        }
        handlers.push(Arc::downgrade(&registered));
        Subscription(registered)
    }

    /// Waits until the view has been filled once.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`, so this can only end by becoming true.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Where the view is now: to be taken before a write, and given to [`Self::has_reached`] with the
    /// resourceVersion that the write returned.
    pub fn position(&self) -> Position {
        *self.position.lock()
    }

    /// Whether the view includes a write that returned `resource_version`. A view that was listed afresh
    /// twice since `before` includes it whatever it saw: the second listing began after the write.
    pub fn has_reached(&self, before: Position, resource_version: u64) -> bool {
        let now = self.position();
        now.resource_version >= resource_version || now.listings >= before.listings + 2
    }

    fn advance(&self, object: &K) {
        let mut position = self.position.lock();
        position.resource_version = position.resource_version.max(version(object));
    }

    /// Applies one object and tells the handlers.
    fn apply(&self, object: K) {
        let object = Arc::new(object);
        let mut handlers = self.handlers.lock();
        let old = self.store.write().insert(Arc::clone(&object));
        self.advance(&object);
        match &old {
            Some(old) => tell(&mut handlers, &Change::Updated { old, new: &object }),
            None => tell(&mut handlers, &Change::Added(&object)),
        }
    }

    fn delete(&self, last: K) {
        let mut handlers = self.handlers.lock();
        let removed = self.store.write().remove(&Key::of(&last));
        self.advance(&last);
        if removed.is_some() {
            tell(&mut handlers, &Change::Deleted(&Arc::new(last)));
        }
    }

    /// Takes one object of a listing, which is complete, and then says how far the view has come, only
    /// with [`Self::listed`].
    fn apply_listed(&self, object: K) {
        let key = Key::of(&object);
        let known = self.store.read().get(&key);
        let same =
            |metadata: &ObjectMeta| metadata.resource_version == object.meta().resource_version;
        if known.is_some_and(|held| held.with_metadata(same)) {
            return;
        }
        let object = Arc::new(object);
        let mut handlers = self.handlers.lock();
        let old = self.store.write().insert(Arc::clone(&object));
        match &old {
            Some(old) => tell(&mut handlers, &Change::Updated { old, new: &object }),
            None => tell(&mut handlers, &Change::Added(&object)),
        }
    }

    /// Ends a listing: what is not in it was deleted while nobody watched.
    fn listed(&self, listing: Listing) {
        let present = self.store.read().keys();
        let gone = present
            .iter()
            .filter(|key| !listing.keys.contains(key.as_ref()));
        let mut handlers = self.handlers.lock();
        for key in gone {
            let removed = self.store.write().remove(key);
            if let Some(object) = removed {
                tell(&mut handlers, &Change::Deleted(&object));
            }
        }
        drop(handlers);
        let mut position = self.position.lock();
        position.resource_version = position.resource_version.max(listing.newest);
        position.listings += 1;
        drop(position);
        self.synced.send_replace(true);
    }

    /// Brings the view to exactly `listed`.
    #[cfg(test)]
    fn replace(&self, objects: Vec<K>) {
        let mut listing = Listing::default();
        for object in objects {
            listing.note(&object);
            self.apply_listed(object);
        }
        self.listed(listing);
    }
}

/// What a listing has brought so far; the objects themselves are in the view already.
#[derive(Default)]
struct Listing {
    keys: HashSet<Key, ahash::RandomState>,
    newest: u64,
}

impl Listing {
    fn note<K: Resource>(&mut self, object: &K) {
        self.keys.insert(Key::of(object));
        self.newest = self.newest.max(version(object));
    }
}

fn version<K: Resource>(object: &K) -> u64 {
    let version = object.meta().resource_version.as_deref();
    version.and_then(|rv| rv.parse().ok()).unwrap_or(0)
}

fn values<K: Keepable>(held: Vec<Held<K>>) -> Vec<Arc<K>> {
    held.iter().map(Held::object).collect()
}

fn tell<K>(handlers: &mut Vec<Weak<Registered<K>>>, change: &Change<'_, K>) {
    handlers.retain(|handler| match handler.upgrade() {
        Some(handler) => {
            (handler.0)(change);
            true
        }
        None => false,
    });
}

/// Feeds an informer from a watch stream until the informer is dropped. The stream resumes from its
/// last resourceVersion by itself; only after 410 Gone does it list afresh.
pub(crate) async fn feed<K>(
    informer: Weak<Informer<K>>,
    what: String,
    stream: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    trim: fn(&mut K),
) where
    K: Keepable + Debug,
{
    let mut events = pin!(stream.backoff(Patience::default()));
    let mut listing = Listing::default();
    while let Some(event) = events.next().await {
        let Some(informer) = informer.upgrade() else {
            return;
        };
        match event.map(|event| event.modify(|object| shrink(object, trim))) {
            Ok(Event::Init) => listing = Listing::default(),
            Ok(Event::InitApply(object)) => {
                listing.note(&object);
                informer.apply_listed(object);
            }
            Ok(Event::InitDone) => {
                debug!(kind = what, objects = listing.keys.len(), "listed");
                informer.listed(std::mem::take(&mut listing));
            }
            Ok(Event::Apply(object)) => informer.apply(object),
            Ok(Event::Delete(object)) => informer.delete(object),
            Err(error) if is_not_served(&error) => {
                debug!(kind = what, "no longer served");
                tokio::time::sleep(WHEN_REMOVED).await;
            }
            Err(error) => warn!(kind = what, %error, "watch interrupted, resuming"),
        }
    }
}

/// A kind that is gone, since its definition was deleted, comes back rarely, and whoever watches it is told by discovery.
const WHEN_REMOVED: Duration = Duration::from_secs(30);

/// What kubectl keeps to compute its next patch: a copy of the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// managedFields are half of many objects and kubectl's copy another; no controller reads them.
fn shrink<K: Resource>(object: &mut K, trim: fn(&mut K)) {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = object.meta_mut().annotations.as_mut() {
        annotations.remove(LAST_APPLIED);
    }
    trim(object);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(name: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                resource_version: Some(version.to_string()),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn recorded(informer: &Informer<ConfigMap>) -> (Subscription, Arc<Mutex<Vec<String>>>) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&log);
        let subscription = informer.on_change(move |change| {
            let verb = match change {
                Change::Added(_) => "added",
                Change::Updated { .. } => "updated",
                Change::Deleted(_) => "deleted",
            };
            let name = change.object().metadata.name.clone().unwrap();
            sink.lock().push(format!("{verb} {name}"));
        });
        (subscription, log)
    }

    #[test]
    fn a_relist_tells_only_the_difference() {
        let informer = Informer::<ConfigMap>::new(|_| None);
        informer.replace(vec![object("a", 1), object("b", 2)]);
        let (_subscription, log) = recorded(&informer);
        log.lock().clear();
        informer.replace(vec![object("b", 2), object("c", 4)]);
        assert_eq!(*log.lock(), ["added c", "deleted a"]);
    }

    #[test]
    fn a_listing_that_is_not_complete_promises_no_version() {
        let informer = Informer::<ConfigMap>::new(|_| None);
        let before = informer.position();
        informer.apply_listed(object("b", 9));
        assert!(
            !informer.has_reached(before, 5),
            "a, of version 5, may follow"
        );
        informer.replace(vec![object("a", 5), object("b", 9)]);
        assert!(informer.has_reached(before, 9));
    }

    #[test]
    fn a_late_handler_sees_what_is_there_and_a_dropped_one_nothing_more() {
        let informer = Informer::<ConfigMap>::new(|_| None);
        informer.apply(object("a", 1));
        let (subscription, log) = recorded(&informer);
        informer.apply(object("a", 2));
        assert_eq!(*log.lock(), ["added a", "updated a"]);
        drop(subscription);
        informer.delete(object("a", 3));
        assert_eq!(log.lock().len(), 2);
    }

    #[test]
    fn a_write_is_reached_by_its_version_or_by_a_listing_that_began_after_it() {
        let informer = Informer::<ConfigMap>::new(|_| None);
        informer.replace(vec![object("a", 5)]);
        let before = informer.position();
        assert!(informer.has_reached(before, 5));
        assert!(!informer.has_reached(before, 9));
        informer.replace(vec![]);
        assert!(
            !informer.has_reached(before, 9),
            "that listing may have begun before the write"
        );
        informer.replace(vec![]);
        assert!(informer.has_reached(before, 9));
    }
}
