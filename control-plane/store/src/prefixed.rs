//! A store whose keys stand under another root: several clusters can share one etcd.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;

use crate::{
    Event, Expect, KeyValue, Range, RangeRequest, Result, Revision, Store, StoreError, WatchStream,
};

/// What every key of the API server begins with.
pub const ROOT: &str = "/registry";

/// Shows `<prefix>/…` of the inner store as `/registry/…`.
pub struct Prefixed {
    inner: Arc<dyn Store>,
    prefix: Arc<str>,
}

impl Prefixed {
    /// `prefix` is taken as it is written by upstream's `--etcd-prefix`: with or without a slash at either end.
    pub fn new(inner: Arc<dyn Store>, prefix: &str) -> Self {
        Self {
            inner,
            prefix: format!("/{}", prefix.trim_matches('/')).into(),
        }
    }

    fn outer(&self, key: &str) -> String {
        let rest = key.strip_prefix(ROOT).unwrap_or(key);
        format!("{}{rest}", self.prefix)
    }
}

fn inner_key(prefix: &str, mut kv: KeyValue) -> KeyValue {
    let rest = kv.key.strip_prefix(prefix).unwrap_or(&kv.key);
    kv.key = format!("{ROOT}{rest}").into();
    kv
}

#[async_trait]
impl Store for Prefixed {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<KeyValue>> {
        let found = self.inner.get(&self.outer(key), at).await?;
        Ok(found.map(|kv| inner_key(&self.prefix, kv)))
    }

    async fn range(&self, request: RangeRequest<'_>) -> Result<Range> {
        let start_after = request.start_after.map(|key| self.outer(key));
        let request = RangeRequest {
            prefix: &self.outer(request.prefix),
            start_after: start_after.as_deref(),
            ..request
        };
        let mut range = self.inner.range(request).await?;
        let items = std::mem::take(&mut range.items);
        range.items = items
            .into_iter()
            .map(|kv| inner_key(&self.prefix, kv))
            .collect();
        Ok(range)
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision> {
        let outcome = self.inner.put(&self.outer(key), value, expect, ttl).await;
        outcome.map_err(|error| self.named(error))
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<(Revision, KeyValue)> {
        let outcome = self.inner.delete(&self.outer(key), expect).await;
        let (revision, kv) = outcome.map_err(|error| self.named(error))?;
        Ok((revision, inner_key(&self.prefix, kv)))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream> {
        let root = self.prefix.clone();
        let stream = self.inner.watch(&self.outer(prefix), from).await?;
        let named = move |event| match event {
            Event::Put { kv, prev } => Event::Put {
                kv: inner_key(&root, kv),
                prev: prev.map(|kv| inner_key(&root, kv)),
            },
            Event::Delete { revision, prev } => Event::Delete {
                revision,
                prev: inner_key(&root, prev),
            },
        };
        let batches = stream.map(move |batch| {
            batch.map(|mut batch| {
                let events = std::mem::take(&mut batch.events);
                batch.events = events.into_iter().map(&named).collect();
                batch
            })
        });
        Ok(batches.boxed())
    }

    async fn current_revision(&self) -> Result<Revision> {
        self.inner.current_revision().await
    }

    async fn oldest_revision(&self) -> Result<Revision> {
        self.inner.oldest_revision().await
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    async fn compact(&self, at: Revision) -> Result<()> {
        self.inner.compact(at).await
    }
}

impl Prefixed {
    fn named(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Conflict { current } => StoreError::Conflict {
                current: current.map(|kv| Box::new(inner_key(&self.prefix, *kv))),
            },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Embedded, EmbeddedOptions};

    #[tokio::test]
    async fn two_clusters_in_one_store_do_not_see_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = Embedded::open(&path, EmbeddedOptions::default())
            .await
            .unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let [first, second] = ["/a", "b/"].map(|prefix| Prefixed::new(store.clone(), prefix));
        let key = "/registry/pods/default/web";
        let at = first
            .put(key, "1".into(), Expect::Absent, None)
            .await
            .unwrap();
        second
            .put(key, "2".into(), Expect::Absent, None)
            .await
            .unwrap();
        assert!(
            store
                .get("/b/pods/default/web", None)
                .await
                .unwrap()
                .is_some()
        );
        let request = RangeRequest {
            prefix: "/registry/",
            ..RangeRequest::default()
        };
        let range = second.range(request).await.unwrap();
        let found: Vec<_> = range
            .items
            .iter()
            .map(|kv| (&*kv.key, kv.value.to_vec()))
            .collect();
        assert_eq!(found, [(key, b"2".to_vec())]);

        let mut watch = first.watch("/registry/", Revision(0)).await.unwrap();
        let batch = watch.next().await.unwrap().unwrap();
        assert_eq!((batch.events.len(), &**batch.events[0].key()), (1, key));
        let conflict = first.put(key, "3".into(), Expect::Absent, None).await;
        let Err(StoreError::Conflict {
            current: Some(current),
        }) = conflict
        else {
            panic!("{conflict:?}");
        };
        assert_eq!((&*current.key, current.mod_revision), (key, at));
        let (_, gone) = first.delete(key, Expect::Any).await.unwrap();
        assert_eq!(&*gone.key, key);
    }
}
