//! Lets a controller see its own writes before it acts again.
//!
//! A controller that creates three pods and looks at a view that does not show them yet would create three
//! more. Upstream counts expected events; here a write remembers the resourceVersion it returned and the
//! key rests until the view has reached it. Deletions need no version: a uid that was deleted is left out
//! of what the controller sees for as long as the view still shows it, or is shown as on its way where
//! its successor has to wait for its end.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use ahash::AHashMap;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use windlass_informers::{Cached, Informer, Key, Position};

use super::version_of;

/// A view that has not shown a write by then never will: its event was lost with a fault of ours, and
/// standing still for ever would be worse than one superfluous object. Upstream's expectations expire alike.
const GIVE_UP: Duration = Duration::from_secs(300);

/// What one controller wrote of kind `W`, by the key on whose behalf.
pub(crate) struct Freshness<W> {
    informer: Arc<Informer<W>>,
    written: Mutex<AHashMap<Key, Written>>,
}

struct Written {
    before: Position,
    resource_version: u64,
    at: Instant,
    deleted: HashSet<String>,
}

/// Taken before a reconciliation writes; notes what it wrote.
pub(crate) struct Observer<'a, W> {
    freshness: &'a Freshness<W>,
    key: &'a Key,
    before: Position,
}

impl<W: Cached> Freshness<W> {
    pub(crate) fn new(informer: Arc<Informer<W>>) -> Self {
        Self {
            informer,
            written: Mutex::new(AHashMap::new()),
        }
    }

    /// Whether the view shows everything that was written for the key. If not, the event that brings the
    /// view there will enqueue the key again.
    pub(crate) fn is_fresh(&self, key: &Key) -> bool {
        self.written.lock().get(key).is_none_or(|written| {
            self.informer
                .has_reached(written.before, written.resource_version)
                || written.at.elapsed() > GIVE_UP
        })
    }

    /// Drops the objects that were deleted on behalf of the key but are still in the view.
    pub(crate) fn without_deleted(&self, key: &Key, objects: Vec<Arc<W>>) -> Vec<Arc<W>> {
        let deleted = self.deleted_of(key, &objects);
        let gone = |object: &Arc<W>| {
            object
                .meta()
                .uid
                .as_ref()
                .is_some_and(|uid| deleted.contains(uid))
        };
        objects.into_iter().filter(|object| !gone(object)).collect()
    }

    /// Shows the objects that were deleted on behalf of the key as what they are: on their way, but still there.
    pub(crate) fn with_deleted(&self, key: &Key, objects: Vec<Arc<W>>) -> Vec<Arc<W>> {
        let deleted = self.deleted_of(key, &objects);
        let show = |object: Arc<W>| {
            let meta = object.meta();
            let asked = meta.uid.as_ref().is_some_and(|uid| deleted.contains(uid));
            if !asked || meta.deletion_timestamp.is_some() {
                return object;
            }
            let mut leaving = object.as_ref().clone();
            leaving.meta_mut().deletion_timestamp = Some(Time(Timestamp::now()));
            Arc::new(leaving)
        };
        objects.into_iter().map(show).collect()
    }

    /// The uids of what was deleted on behalf of the key and is still among `objects`.
    fn deleted_of(&self, key: &Key, objects: &[Arc<W>]) -> HashSet<String> {
        let mut all = self.written.lock();
        let Some(written) = all
            .get_mut(key)
            .filter(|written| !written.deleted.is_empty())
        else {
            return HashSet::new();
        };
        let shown: HashSet<&str> = objects
            .iter()
            .filter_map(|object| object.meta().uid.as_deref())
            .collect();
        written.deleted.retain(|uid| shown.contains(uid.as_str()));
        written.deleted.clone()
    }

    /// Nothing is remembered of a key that is gone.
    pub(crate) fn forget(&self, key: &Key) {
        self.written.lock().remove(key);
    }

    pub(crate) fn observer<'a>(&'a self, key: &'a Key) -> Observer<'a, W> {
        Observer {
            freshness: self,
            key,
            before: self.informer.position(),
        }
    }

    fn note(&self, key: &Key, before: Position, change: impl FnOnce(&mut Written)) {
        let mut all = self.written.lock();
        let written = all.entry(key.clone()).or_insert_with(|| Written {
            before,
            resource_version: 0,
            at: Instant::now(),
            deleted: HashSet::new(),
        });
        written.before = before;
        written.at = Instant::now();
        change(written);
    }
}

impl<W: Cached> Observer<'_, W> {
    /// An object was created or changed.
    pub(crate) fn wrote(&self, object: &W) {
        self.freshness.note(self.key, self.before, |written| {
            written.resource_version = written.resource_version.max(version_of(object));
        });
    }

    /// An object was deleted (or is on its way).
    pub(crate) fn deleted(&self, object: &W) {
        if let Some(uid) = object.meta().uid.clone() {
            self.freshness.note(self.key, self.before, |written| {
                written.deleted.insert(uid);
            });
        }
    }
}
