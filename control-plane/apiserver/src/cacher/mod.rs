//! The watch cache: every object's bytes in memory, fed by one watch on the store.
//!
//! The true copy is the store; a [`Cacher`] is a replica of one resource that is complete up to a revision.
//! Lists and watches are answered here. A read that must be current asks the store for its revision and waits
//! until the cache has come that far ([`Caches::wait_current`]), so it is never older than a write that
//! returned before it began.

mod converted;
mod dynamic;
mod entry;
mod event;
mod feed;
mod filter;
mod list;
mod queue;
mod ring;
mod shallow;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::RwLock;
use windlass_api::resource::Resource;
use windlass_machinery::status::{ApiError, Cause, Details};
use windlass_packed::Packer;
use windlass_store::{KeyValue, Revision, Store};

pub use self::entry::Entry;
pub(crate) use self::event::open_frame;
pub use self::event::{CacheEvent, EventType, Seen, frame};
pub use self::filter::Filter;
pub use self::list::Page;
use self::queue::Queue;
use self::ring::Ring;
pub use self::watch::{From, Watch};

/// How long a read waits for a revision that the cache has not reached.
const PATIENCE: Duration = Duration::from_secs(3);

/// The caches of all resources.
pub struct Caches {
    store: Arc<dyn Store>,
    cachers: RwLock<HashMap<String, Arc<Cacher>>>,
    /// Every cacher has every event up to this revision.
    progress: tokio::sync::watch::Sender<Revision>,
    /// As of when they were loaded first: every event after it has been, or will be, told.
    began: Revision,
}

/// The replica of one resource.
pub struct Cacher {
    pub resource: Arc<Resource>,
    indexed_field: Option<usize>,
    /// For values that the store does not hand out packed.
    packer: Packer,
    state: RwLock<State>,
    /// Whose place this one took: requests that still read there must not miss what is written meanwhile.
    former: RwLock<Vec<Weak<Cacher>>>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Arc<str>, Arc<Entry>>,
    /// The last event of this resource.
    revision: Revision,
    ring: Ring,
    watchers: Watchers,
}

/// Watchers by what wakes them.
#[derive(Default)]
struct Watchers {
    all: Vec<Arc<Queue>>,
    by_namespace: HashMap<Box<str>, Vec<Arc<Queue>>>,
    by_path: HashMap<Box<str>, Vec<Arc<Queue>>>,
    by_field: HashMap<Box<str>, Vec<Arc<Queue>>>,
}

/// Under which key a watcher is registered.
enum Trigger {
    All,
    Namespace(Box<str>),
    /// `namespace/name` or `name`.
    Path(Box<str>),
    /// A value of the indexed field.
    Field(Box<str>),
}

impl Watchers {
    fn list(&mut self, trigger: &Trigger) -> &mut Vec<Arc<Queue>> {
        match trigger {
            Trigger::All => &mut self.all,
            Trigger::Namespace(key) => self.by_namespace.entry(key.clone()).or_default(),
            Trigger::Path(key) => self.by_path.entry(key.clone()).or_default(),
            Trigger::Field(key) => self.by_field.entry(key.clone()).or_default(),
        }
    }

    fn add(&mut self, trigger: &Trigger, queue: Arc<Queue>) {
        self.list(trigger).push(queue);
    }

    fn remove(&mut self, trigger: &Trigger, queue: &Arc<Queue>) {
        let list = self.list(trigger);
        list.retain(|other| !Arc::ptr_eq(other, queue));
        if list.is_empty() {
            match trigger {
                Trigger::All => {}
                Trigger::Namespace(key) => drop(self.by_namespace.remove(key)),
                Trigger::Path(key) => drop(self.by_path.remove(key)),
                Trigger::Field(key) => drop(self.by_field.remove(key)),
            }
        }
    }

    fn all_queues(&self) -> impl Iterator<Item = &Arc<Queue>> {
        let keyed = [&self.by_namespace, &self.by_path, &self.by_field];
        self.all
            .iter()
            .chain(keyed.into_iter().flat_map(|map| map.values().flatten()))
    }

    fn tell(&self, event: &Arc<CacheEvent>, indexed_field: Option<usize>) {
        let tell = |list: Option<&Vec<Arc<Queue>>>| {
            for queue in list.into_iter().flatten() {
                queue.push(event);
            }
        };
        let entry = event.entry();
        tell(Some(&self.all));
        tell(self.by_namespace.get(entry.namespace()));
        tell(self.by_path.get(entry.path()));
        if let Some(index) = indexed_field {
            let after = event.after.as_ref().map(|e| e.field(index));
            let before = event.before.as_ref().map(|e| e.field(index));
            tell(after.and_then(|value| self.by_field.get(value)));
            if before != after {
                tell(before.and_then(|value| self.by_field.get(value)));
            }
        }
    }
}

impl Cacher {
    fn new(resource: Arc<Resource>) -> Self {
        Self {
            indexed_field: filter::indexed_field(&resource),
            resource,
            packer: Packer::default(),
            state: RwLock::default(),
            former: RwLock::default(),
        }
    }

    /// An object to keep.
    fn entry(&self, mut kv: KeyValue) -> Arc<Entry> {
        kv.value = self.packer.repack(kv.value);
        Arc::new(Entry::new(&self.resource, kv))
    }

    /// The store's key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        let prefix = &self.resource.prefix;
        if self.resource.namespaced {
            format!("{prefix}/{namespace}/{name}")
        } else {
            format!("{prefix}/{name}")
        }
    }

    /// The object as the cache has it, which may be older than the store.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        self.state
            .read()
            .entries
            .get(self.key(namespace, name).as_str())
            .cloned()
    }

    /// All objects in scope, as the cache has them.
    pub fn entries(&self, filter: &Filter) -> Vec<Arc<Entry>> {
        let state = self.state.read();
        state
            .scan(&self.scope(filter), None)
            .filter(|e| filter.matches(e))
            .cloned()
            .collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state.read().entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key prefix that `filter` can match.
    fn scope(&self, filter: &Filter) -> String {
        match &filter.namespace {
            Some(namespace) if self.resource.namespaced => {
                format!("{}/{namespace}/", self.resource.prefix)
            }
            _ => format!("{}/", self.resource.prefix),
        }
    }

    fn trigger(&self, filter: &Filter) -> Trigger {
        if let Some(name) = filter.name() {
            match &filter.namespace {
                Some(namespace) => return Trigger::Path(format!("{namespace}/{name}").into()),
                None if !self.resource.namespaced => return Trigger::Path(name.into()),
                None => {}
            }
        }
        if let Some(value) = self.indexed_field.and_then(|index| filter.field(index)) {
            return Trigger::Field(value.into());
        }
        match &filter.namespace {
            Some(namespace) => Trigger::Namespace(namespace.as_str().into()),
            None => Trigger::All,
        }
    }

    /// Takes over one change; older ones than what is known are ignored. Several may share a revision: keys of one
    /// etcd lease expire together.
    fn apply(&self, event: CacheEvent) {
        let mut state = self.state.write();
        if event.revision >= state.revision {
            state.apply(Arc::new(event), self.indexed_field);
        }
    }

    /// Takes over the whole content as of `revision`, telling watchers the differences.
    fn replace(&self, entries: Vec<Arc<Entry>>, revision: Revision) {
        let mut state = self.state.write();
        let fresh: BTreeMap<_, _> = entries.into_iter().map(|e| (e.key.clone(), e)).collect();
        if state.entries.is_empty() && state.ring.is_empty() {
            state.entries = fresh;
            state.ring.begin_after(revision);
            state.revision = state.revision.max(revision);
            return;
        }
        let mut events: Vec<CacheEvent> = fresh
            .values()
            .filter(|new| {
                state
                    .entries
                    .get(&new.key)
                    .is_none_or(|old| old.revision != new.revision)
            })
            .map(|new| {
                let before = state.entries.get(&new.key).cloned();
                CacheEvent::new(new.revision, before, Some(new.clone()))
            })
            .collect();
        events.sort_by_key(|event| event.revision);
        let gone = state
            .entries
            .values()
            .filter(|old| !fresh.contains_key(&old.key));
        // Their own revisions are lost; several may share the last one.
        events.extend(gone.map(|old| CacheEvent::new(revision, Some(old.clone()), None)));
        for event in events {
            state.apply(Arc::new(event), self.indexed_field);
        }
        state.revision = state.revision.max(revision);
    }
}

impl State {
    fn apply(&mut self, event: Arc<CacheEvent>, indexed_field: Option<usize>) {
        self.revision = self.revision.max(event.revision);
        match &event.after {
            Some(entry) => {
                self.entries.insert(entry.key.clone(), entry.clone());
            }
            None => {
                self.entries.remove(&event.entry().key);
            }
        }
        self.watchers.tell(&event, indexed_field);
        self.ring.push(event);
    }

    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        start_after: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        let start = start_after.filter(|key| *key > prefix).unwrap_or(prefix);
        self.entries
            .range::<str, _>((Bound::Excluded(start), Bound::Unbounded))
            .map(|(_, entry)| entry)
            .take_while(move |entry| entry.key.starts_with(prefix))
    }
}

impl Caches {
    /// The cache of the resource with this key prefix.
    pub fn get(&self, prefix: &str) -> Option<Arc<Cacher>> {
        self.cachers.read().get(prefix).cloned()
    }

    /// How far all caches are.
    pub fn revision(&self) -> Revision {
        *self.progress.borrow()
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Waits until the caches hold every write that returned before this call.
    ///
    /// # Errors
    /// 503 or 504 when the store cannot be asked or the cache lags too far behind.
    pub async fn wait_current(&self) -> Result<Revision, ApiError> {
        let current = self
            .store
            .current_revision()
            .await
            .map_err(crate::storage::store_error)?;
        self.wait_for(current).await?;
        Ok(current)
    }

    /// Waits until the caches have reached `revision`.
    ///
    /// # Errors
    /// 504 when they do not within [`PATIENCE`].
    pub async fn wait_for(&self, revision: Revision) -> Result<(), ApiError> {
        if self.revision() >= revision {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while *progress.borrow_and_update() < revision {
            let changed = tokio::time::timeout_at(deadline, progress.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Err(too_large_version(revision, self.revision()));
            }
        }
        Ok(())
    }
}

/// The client asks for a revision that the store has not reached: it may have met another server.
fn too_large_version(requested: Revision, current: Revision) -> ApiError {
    let message = format!("Too large resource version: {requested}, current: {current}");
    let mut error = ApiError::timeout(message);
    error.details = Some(Box::new(Details {
        causes: vec![Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        }],
        retry_after_seconds: Some(1),
        ..Details::default()
    }));
    error
}
