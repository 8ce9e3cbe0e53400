//! The feed: loads what is stored, then applies one watch on everything to the caches.
//!
//! A watch that breaks is resumed from the last revision; when that is compacted away, everything is loaded
//! again and watchers are told the differences.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use windlass_api::resource::Resource;
use windlass_store::{Event, KeyValue, RangeRequest, Revision, Store, StoreError, WatchBatch};

use super::ring::{self, Ages};
use super::{CacheEvent, Cacher, Caches, Entry};

pub(super) const ROOT: &str = "/registry/";
/// Objects read at once while loading.
const PAGE: usize = 1_000;
/// At most so many of the latest events are replayed at a start: what the caches keep for watchers, and no more.
const REPLAYED: u64 = ring::CAPACITY as u64;
/// Between attempts while the store is unavailable.
const RETRY: Duration = Duration::from_millis(500);

/// Whether history cannot be read, and the present perhaps can.
pub(super) fn is_past(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Compacted { .. } | StoreError::Unreadable { .. }
    )
}

/// The cache that a key belongs to: prefixes are `/registry/x` or `/registry/x/y`.
pub(super) fn of_key<'a>(
    cachers: &'a HashMap<String, Arc<Cacher>>,
    key: &str,
) -> Option<&'a Arc<Cacher>> {
    let rest = key.strip_prefix(ROOT)?;
    let first = rest.find('/')?;
    let second = rest[first + 1..].find('/').map(|at| first + 1 + at);
    let long = second.and_then(|at| cachers.get(&key[..ROOT.len() + at]));
    long.or_else(|| cachers.get(&key[..ROOT.len() + first]))
}

impl Caches {
    /// Loads the caches of `resources` and keeps them fed until `shutdown`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(
        store: Arc<dyn Store>,
        resources: &[Arc<Resource>],
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let mut cachers = HashMap::new();
        for resource in resources.iter().filter(|resource| resource.verbs.stores()) {
            // Where two groups share what is stored (Events), the first one's rules hold for it.
            cachers
                .entry(resource.prefix.to_string())
                .or_insert_with(|| Arc::new(Cacher::new(resource.clone())));
        }
        let (progress, _) = tokio::sync::watch::channel(Revision(0));
        let mut caches = Self {
            store,
            cachers: RwLock::new(cachers),
            progress,
            began: Revision(0),
        };
        // From before the present state on, so that clients of a server that was here before can resume.
        let current = caches.store.current_revision().await?;
        let oldest = caches.store.oldest_revision().await?;
        let from = oldest.max(Revision(current.0.saturating_sub(REPLAYED)));
        let began = match caches.load(Some(from)).await {
            // Compacted in between, or under a key that has been retired.
            Err(error) if is_past(&error) => caches.load(None).await?,
            loaded => loaded?,
        };
        caches.began = began;
        let caches = Arc::new(caches);
        let feed = caches.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = feed.follow(began) => {}
                () = feed.forget_old() => {}
                () = shutdown.cancelled() => {}
            }
        });
        caches.reached(current).await;
        tracing::info!(%began, revision = %caches.revision(), "watch cache loaded");
        Ok(caches)
    }

    /// Waits for the feed, however long it takes to replay what it began before.
    pub(super) async fn reached(&self, revision: Revision) {
        let mut progress = self.progress.subscribe();
        // Ends early only with the process.
        let _ = progress.wait_for(|reached| *reached >= revision).await;
    }

    /// Reads everything, as of a revision or now, and replaces the caches' content by it.
    async fn load(&self, mut at: Option<Revision>) -> Result<Revision, StoreError> {
        let mut loaded: HashMap<String, Vec<Arc<Entry>>> = HashMap::new();
        let mut last: Option<Arc<str>> = None;
        loop {
            let request = RangeRequest {
                prefix: ROOT,
                start_after: last.as_deref(),
                // The keys behind a page are counted every time: where pages save nothing, there is one.
                limit: if self.store.is_shared() { PAGE } else { 0 },
                at,
            };
            let range = self.store.range(request).await?;
            let more = range.more();
            at = Some(range.revision);
            last = range.items.last().map(|kv| kv.key.clone());
            for (prefix, entries) in self.entries_of(range.items) {
                loaded.entry(prefix).or_default().extend(entries);
            }
            if !more {
                break;
            }
        }
        let revision = at.unwrap_or_default();
        let cachers: Vec<_> = self.cachers.read().values().cloned().collect();
        for cacher in cachers {
            let entries = loaded.remove(&*cacher.resource.prefix).unwrap_or_default();
            cacher.replace(entries, revision);
        }
        self.progress.send_replace(revision);
        Ok(revision)
    }

    /// Reads keys of any resources, on all processors: at a start there are all there are. In their order.
    fn entries_of(&self, items: Vec<KeyValue>) -> Vec<(String, Vec<Arc<Entry>>)> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = items.len().div_ceil(threads).max(PAGE);
        let read = |items: &[KeyValue]| {
            let mut read: Vec<(String, Vec<Arc<Entry>>)> = Vec::new();
            for kv in items {
                let Some(cacher) = self.of_key(&kv.key) else {
                    continue;
                };
                let prefix = &*cacher.resource.prefix;
                let entry = cacher.entry(kv.clone());
                match read.last_mut() {
                    Some((last, entries)) if last == prefix => entries.push(entry),
                    _ => read.push((prefix.to_owned(), vec![entry])),
                }
            }
            read
        };
        std::thread::scope(|scope| {
            let readers: Vec<_> = items
                .chunks(share)
                .map(|items| scope.spawn(|| read(items)))
                .collect();
            let joined = readers.into_iter().map(|reader| {
                let read = reader.join();
                read.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            joined.flatten().collect()
        })
    }

    fn of_key(&self, key: &str) -> Option<Arc<Cacher>> {
        of_key(&self.cachers.read(), key).cloned()
    }

    async fn follow(&self, mut from: Revision) {
        loop {
            let error = match self.store.watch(ROOT, from).await {
                Ok(mut stream) => loop {
                    match stream.next().await {
                        Some(Ok(batch)) => {
                            from = batch.revision;
                            self.take(batch);
                        }
                        Some(Err(error)) => break error,
                        None => break StoreError::Unavailable("the watch ended".to_owned()),
                    }
                },
                Err(error) => error,
            };
            tracing::warn!(%error, revision = %from, "the store's watch broke, resuming");
            if !is_past(&error) {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            match self.load(None).await {
                Ok(revision) => {
                    tracing::info!(%revision, "watch cache loaded anew");
                    from = revision;
                }
                Err(error) => {
                    tracing::error!(%error, "the watch cache cannot be loaded");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Lets go of events by their age, for ever.
    async fn forget_old(&self) {
        let mut ages = Ages::default();
        loop {
            tokio::time::sleep(ring::SAMPLED_EVERY).await;
            let Some(old) = ages.sample(Instant::now(), self.revision()) else {
                continue;
            };
            let cachers: Vec<_> = self.cachers.read().values().cloned().collect();
            for cacher in cachers {
                cacher.state.write().ring.forget(old);
            }
        }
    }

    fn take(&self, batch: WatchBatch) {
        for event in batch.events {
            let Some(cacher) = self.of_key(event.key()) else {
                continue;
            };
            let former: Vec<_> = cacher
                .former
                .read()
                .iter()
                .filter_map(Weak::upgrade)
                .collect();
            for read in former {
                read.apply(read.event_of(event.clone()));
            }
            cacher.apply(cacher.event_of(event));
        }
        // Only now: whoever sees this revision finds every event up to it in every cache.
        self.progress.send_replace(batch.revision);
    }
}

impl Cacher {
    pub(super) fn event_of(&self, event: Event) -> CacheEvent {
        let revision = event.revision();
        let known = self.state.read().entries.get(event.key()).cloned();
        let (prev, after) = match event {
            Event::Put { kv, prev } => (prev, Some(self.entry(kv))),
            Event::Delete { prev, .. } => (Some(prev), None),
        };
        CacheEvent::new(revision, self.before(known, prev), after)
    }

    /// The state before an event: what the cache holds, unless it is not the state that the event names.
    fn before(&self, known: Option<Arc<Entry>>, prev: Option<KeyValue>) -> Option<Arc<Entry>> {
        let prev = prev?;
        match known {
            Some(known) if known.revision == prev.mod_revision => Some(known),
            _ => Some(self.entry(prev)),
        }
    }
}
