//! Caches that come and go while the server runs: those of custom resources.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt as _;
use windlass_api::resource::Resource;
use windlass_machinery::status::ApiError;
use windlass_store::{KeyValue, RangeRequest, Revision, StoreError};

use super::feed::{self, ROOT};
use super::{Cacher, Caches};
use crate::storage::store_error;

/// Objects read at once.
const PAGE: usize = 1_000;

impl Caches {
    /// Begins to cache what no client has been served yet, from the same past on as what was there from the start: its
    /// clients, too, can resume at a server that has come back.
    ///
    /// # Errors
    /// When the store cannot be read or the feed does not catch up.
    pub(crate) async fn serve_from_the_past(
        &self,
        resources: &[Arc<Resource>],
    ) -> Result<(), ApiError> {
        match self.replay(resources).await {
            Err(error) if feed::is_past(&error) => {
                for resource in resources {
                    self.serve(resource.clone()).await?;
                }
                Ok(())
            }
            replayed => replayed.map_err(store_error),
        }
    }

    async fn replay(&self, resources: &[Arc<Resource>]) -> Result<(), StoreError> {
        let mut replayed = HashMap::new();
        for resource in resources {
            let cacher = Arc::new(Cacher::new(resource.clone()));
            let (found, _) = self.read(&resource.prefix, Some(self.began)).await?;
            let entries = found.into_iter().map(|kv| cacher.entry(kv)).collect();
            cacher.replace(entries, self.began);
            replayed.insert(resource.prefix.to_string(), cacher);
        }
        // From here on the feed fills the caches that stay; what was before comes by the replay.
        for resource in resources {
            let cacher = Arc::new(Cacher::new(resource.clone()));
            let prefix = resource.prefix.to_string();
            self.cachers.write().insert(prefix, cacher);
        }
        let present = self.store.current_revision().await?;
        self.reached(present).await;
        let mut events = self.store.watch(ROOT, self.began).await?;
        let mut reached = self.began;
        while reached < present {
            let Some(batch) = events.next().await.transpose()? else {
                return Err(StoreError::Unavailable("the watch ended".to_owned()));
            };
            reached = batch.revision;
            for event in batch.events {
                if let Some(cacher) = feed::of_key(&replayed, event.key())
                    && event.revision() <= present
                {
                    cacher.apply(cacher.event_of(event));
                }
            }
        }
        for (prefix, past) in replayed {
            if let Some(cacher) = self.get(&prefix) {
                cacher.go_on_from(&past, present);
            }
        }
        Ok(())
    }

    /// Everything below a resource's prefix, as of a revision or now; and as of when that is.
    async fn read(
        &self,
        prefix: &str,
        mut at: Option<Revision>,
    ) -> Result<(Vec<KeyValue>, Revision), StoreError> {
        let folder = format!("{prefix}/");
        let mut last: Option<Arc<str>> = None;
        let mut found = Vec::new();
        loop {
            let request = RangeRequest {
                prefix: &folder,
                start_after: last.as_deref(),
                limit: PAGE,
                at,
            };
            let range = self.store.range(request).await?;
            let more = range.more();
            at = Some(range.revision);
            last = range.items.last().map(|kv| kv.key.clone());
            found.extend(range.items);
            if !more {
                return Ok((found, at.unwrap_or_default()));
            }
        }
    }

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
        let (found, read) = self.read(&prefix, None).await.map_err(store_error)?;
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
    /// Takes over what `past` knows up to `present`; what was told here since then comes after it. Nobody watches yet.
    fn go_on_from(&self, past: &Self, present: Revision) {
        let mut state = self.state.write();
        let since = std::mem::replace(&mut *state, std::mem::take(&mut *past.state.write()));
        for event in since.ring.after(present) {
            state.apply(event.clone(), self.indexed_field);
        }
    }

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
