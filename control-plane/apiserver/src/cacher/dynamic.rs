//! Caches that come and go while the server runs: those of custom resources.

use std::sync::Arc;

use windlass_api::resource::Resource;
use windlass_machinery::status::ApiError;
use windlass_store::{RangeRequest, Revision};

use super::{Cacher, Caches};
use crate::storage::store_error;

/// Objects read at once.
const PAGE: usize = 1_000;

impl Caches {
    /// Begins to cache `resource`, or, where its prefix is cached already, caches it anew by its present
    /// descriptor; watchers of the old one are told to start over (410).
    ///
    /// # Errors
    /// When the store cannot be read or the feed does not catch up.
    pub(crate) async fn serve(&self, resource: Arc<Resource>) -> Result<(), ApiError> {
        let cacher = Arc::new(Cacher::new(resource));
        let prefix = cacher.resource.prefix.to_string();
        // From here on the feed fills it; what was there before is read below.
        let old = {
            let mut cachers = self.cachers.write();
            if let Some(old) = cachers.get(&prefix) {
                let mut former = old.former.read().clone();
                former.retain(|read| read.strong_count() > 0);
                former.push(Arc::downgrade(old));
                *cacher.former.write() = former;
            }
            cachers.insert(prefix.clone(), cacher.clone())
        };
        let folder = format!("{prefix}/");
        let mut last: Option<Arc<str>> = None;
        let mut at: Option<Revision> = None;
        let mut found = Vec::new();
        loop {
            let request = RangeRequest {
                prefix: &folder,
                start_after: last.as_deref(),
                limit: PAGE,
                at,
            };
            let range = self.store.range(request).await.map_err(store_error)?;
            let more = range.more();
            at = Some(range.revision);
            last = range.items.last().map(|kv| kv.key.clone());
            found.extend(range.items);
            if !more {
                break;
            }
        }
        let read = at.unwrap_or_default();
        self.wait_for(read).await?;
        let mut state = cacher.state.write();
        for kv in found {
            // A later event knows better, also when it deleted the object.
            let touched = state
                .ring
                .after(read)
                .any(|event| event.entry().key == kv.key);
            if !touched {
                let entry = cacher.entry(kv);
                state.entries.insert(entry.key.clone(), entry);
            }
        }
        state.revision = state.revision.max(read);
        state.ring.begin_after(read);
        drop(state);
        if let Some(old) = old {
            old.retire();
        }
        Ok(())
    }

    /// Stops caching what lies below `prefix`.
    pub(crate) fn forget(&self, prefix: &str) {
        let old = self.cachers.write().remove(prefix);
        if let Some(old) = old {
            old.retire();
        }
    }
}

impl Cacher {
    /// No watch can go on here: each reader is sent away with 410.
    fn retire(&self) {
        let mut state = self.state.write();
        state.ring.begin_after(Revision(u64::MAX));
        state
            .watchers
            .all_queues()
            .for_each(|queue| queue.overflow());
    }
}
