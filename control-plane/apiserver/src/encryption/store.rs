//! A store whose values of chosen resources are enciphered.
//!
//! The configuration may be replaced while the store is in use. Caches above hold what was read under an earlier one, so whether a
//! value is stale is then told by its age: what is older than the configuration was not enciphered by it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use windlass_api::resource::Resource;
use windlass_packed::Packed;
use windlass_store::{
    Event, Expect, KeyValue, Range, RangeRequest, Result, Revision, Store, StoreError, WatchBatch,
    WatchStream,
};

use super::ConfigError;
use super::config::Config;

/// Enciphers on the way into a store and deciphers on the way out.
#[derive(Clone)]
pub struct EncryptedStore {
    inner: Arc<dyn Store>,
    seals: Arc<Seals>,
}

struct Seals {
    present: ArcSwap<Present>,
    /// Key prefixes of built-in resources, and what the configuration calls those.
    names: HashMap<String, String>,
    /// Keys whose value, as of a revision, was not enciphered with the first key of the first provider.
    stale: Mutex<HashMap<Arc<str>, Revision>>,
}

/// The configuration in force.
struct Present {
    config: Arc<Config>,
    /// Values up to this revision were written under earlier ones.
    since: Revision,
}

impl EncryptedStore {
    /// `config` is the text of an `EncryptionConfiguration`.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(
        inner: Arc<dyn Store>,
        config: &str,
        resources: &[Arc<Resource>],
    ) -> std::result::Result<Self, ConfigError> {
        let names = resources.iter().map(|resource| {
            let name = windlass_machinery::status::qualified(&resource.group, &resource.plural);
            (resource.prefix.to_string(), name)
        });
        let seals = Seals {
            present: ArcSwap::from_pointee(Present {
                config: Arc::new(Config::parse(config)?),
                since: Revision(0),
            }),
            names: names.collect(),
            stale: Mutex::default(),
        };
        Ok(Self {
            inner,
            seals: Arc::new(seals),
        })
    }

    /// Enciphers by another configuration from now on.
    ///
    /// # Errors
    /// When it is none (the present one stays), or the store cannot be asked (then every value is taken for stale).
    pub async fn reload(&self, config: &str) -> std::result::Result<(), ConfigError> {
        let config = Arc::new(Config::parse(config)?);
        let enforce = |since| {
            let config = config.clone();
            self.seals
                .present
                .store(Arc::new(Present { config, since }));
        };
        // Asked before, the store would not tell of what is written until the change.
        enforce(Revision(u64::MAX));
        let since = self.inner.current_revision().await;
        enforce(since.map_err(ConfigError::Store)?);
        Ok(())
    }
}

impl Seals {
    /// What a configuration calls the resource that a key belongs to; custom ones are stored by group and plural.
    fn resource(&self, key: &str) -> String {
        let rest = key.strip_prefix("/registry/").unwrap_or(key);
        let mut parts = rest.splitn(3, '/');
        let (first, second) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let long = self.names.get(&format!("/registry/{first}/{second}"));
        match long.or_else(|| self.names.get(&format!("/registry/{first}"))) {
            Some(name) => name.clone(),
            None => format!("{second}.{first}"),
        }
    }

    fn seal(&self, present: &Present, key: &str, value: Bytes) -> Result<Bytes> {
        let providers = present.config.providers(&self.resource(key));
        let Some(provider) = providers.first() else {
            return Ok(value);
        };
        let sealed = provider.seal(key, &value);
        Ok(sealed.map_err(|error| unreadable(key, &error))?.into())
    }

    fn open(&self, mut kv: KeyValue) -> Result<KeyValue> {
        let present = self.present.load();
        let providers = present.config.providers(&self.resource(&kv.key));
        if providers.is_empty() {
            return Ok(kv);
        }
        for (index, provider) in providers.iter().enumerate() {
            let open = |sealed: &[u8]| provider.open(&kv.key, sealed);
            let Some(opened) = kv.value.read(open) else {
                continue;
            };
            let (plain, first) = opened.map_err(|error| unreadable(&kv.key, &error))?;
            if index > 0 || !first {
                self.stale.lock().insert(kv.key.clone(), kv.mod_revision);
            }
            kv.value = Packed::plain(&plain);
            return Ok(kv);
        }
        Err(unreadable(
            &kv.key,
            &"no provider of the configuration has written it",
        ))
    }

    fn event(&self, event: Event) -> Result<Event> {
        Ok(match event {
            Event::Put { kv, prev } => Event::Put {
                kv: self.open(kv)?,
                prev: prev.map(|prev| self.open(prev)).transpose()?,
            },
            Event::Delete { revision, prev } => {
                self.stale.lock().remove(&prev.key);
                Event::Delete {
                    revision,
                    prev: self.open(prev)?,
                }
            }
        })
    }

    fn conflict(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Conflict {
                current: Some(current),
            } => match self.open(*current) {
                Ok(current) => StoreError::Conflict {
                    current: Some(Box::new(current)),
                },
                Err(error) => error,
            },
            other => other,
        }
    }
}

fn unreadable(key: &str, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unreadable {
        key: key.to_owned(),
        why: why.to_string(),
    }
}

#[async_trait]
impl Store for EncryptedStore {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<KeyValue>> {
        let found = self.inner.get(key, at).await?;
        found.map(|kv| self.seals.open(kv)).transpose()
    }

    async fn range(&self, request: RangeRequest<'_>) -> Result<Range> {
        let range = self.inner.range(request).await?;
        let items = range.items.into_iter().map(|kv| self.seals.open(kv));
        Ok(Range {
            items: items.collect::<Result<_>>()?,
            ..range
        })
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision> {
        let present = self.seals.present.load_full();
        let sealed = self.seals.seal(&present, key, value)?;
        let put = self.inner.put(key, sealed, expect, ttl).await;
        let revision = put.map_err(|error| self.seals.conflict(error))?;
        let mut stale = self.seals.stale.lock();
        if Arc::ptr_eq(&present.config, &self.seals.present.load().config) {
            stale.remove(key);
        } else {
            // The configuration has changed under it.
            stale.insert(key.into(), revision);
        }
        Ok(revision)
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<(Revision, KeyValue)> {
        let deleted = self.inner.delete(key, expect).await;
        let (revision, kv) = deleted.map_err(|error| self.seals.conflict(error))?;
        Ok((revision, self.seals.open(kv)?))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream> {
        let seals = self.seals.clone();
        let stream = self.inner.watch(prefix, from).await?;
        let opened = stream.map(move |batch| {
            let batch = batch?;
            let events = batch.events.into_iter().map(|event| seals.event(event));
            Ok(WatchBatch {
                events: events.collect::<Result<_>>()?,
                revision: batch.revision,
            })
        });
        Ok(opened.boxed())
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

    fn is_stale(&self, key: &str, at: Revision) -> bool {
        let is_old = || {
            let present = self.seals.present.load();
            at <= present.since
                && !present
                    .config
                    .providers(&self.seals.resource(key))
                    .is_empty()
        };
        self.seals.stale.lock().get(key) == Some(&at) || is_old()
    }

    async fn compact(&self, at: Revision) -> Result<()> {
        self.inner.compact(at).await
    }
}

#[cfg(test)]
mod tests {
    use windlass_store::{Embedded, EmbeddedOptions};

    use super::*;

    fn config(keys: &str) -> String {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: \
             [secrets, x.example.com]\n  providers:\n  - aesgcm: {{keys: [{keys}]}}\n  - identity: {{}}\n"
        )
    }

    #[tokio::test]
    async fn chosen_resources_are_enciphered_and_a_new_key_makes_old_values_stale() {
        let dir = tempfile::tempdir().unwrap();
        let inner = Embedded::open(&dir.path().join("store"), EmbeddedOptions::default())
            .await
            .unwrap();
        let inner: Arc<dyn Store> = Arc::new(inner);
        let resources: Vec<_> = windlass_api::registry::builtin()
            .into_iter()
            .map(Arc::new)
            .collect();
        let open = |text: &str| EncryptedStore::new(inner.clone(), text, &resources).unwrap();
        let plain = Bytes::from_static(b"{\"kind\":\"Secret\"}");
        let (secret, map) = ("/registry/secrets/a/b", "/registry/configmaps/a/b");
        let custom = "/registry/example.com/x/a/b";
        // Before there was any encryption.
        inner
            .put(custom, plain.clone(), Expect::Absent, None)
            .await
            .unwrap();

        const A: &str = "{name: a, secret: AAAAAAAAAAAAAAAAAAAAAA==}";
        const B: &str = "{name: b, secret: AAAAAAAAAAAAAAAAAAAAAQ==}";
        let store = open(&config(A));
        for key in [secret, map] {
            store
                .put(key, plain.clone(), Expect::Absent, None)
                .await
                .unwrap();
        }
        let raw = inner.get(secret, None).await.unwrap().unwrap().value;
        assert!(raw.to_vec().starts_with(b"k8s:enc:aesgcm:v1:a:"));
        assert_eq!(
            inner.get(map, None).await.unwrap().unwrap().value.to_vec(),
            plain
        );
        let all = RangeRequest {
            prefix: "/registry/",
            ..RangeRequest::default()
        };
        let read = store.range(all).await.unwrap();
        assert!(read.items.iter().all(|kv| kv.value.to_vec() == plain));
        let kv = store.get(custom, None).await.unwrap().unwrap();
        assert!(store.is_stale(custom, kv.mod_revision));
        let mut watch = store
            .watch("/registry/secrets/", Revision(0))
            .await
            .unwrap();
        let Event::Put { kv, .. } = watch.next().await.unwrap().unwrap().events.remove(0) else {
            panic!("a put was made");
        };
        assert_eq!(kv.value.to_vec(), plain);
        assert!(!store.is_stale(secret, kv.mod_revision));

        let rotated = open(&config(&format!("{B}, {A}")));
        let kv = rotated.get(secret, None).await.unwrap().unwrap();
        assert_eq!(kv.value.to_vec(), plain);
        assert!(rotated.is_stale(secret, kv.mod_revision));
        let expect = Expect::ModRevision(kv.mod_revision);
        let revision = rotated
            .put(secret, plain.clone(), expect, None)
            .await
            .unwrap();
        assert!(!rotated.is_stale(secret, revision));
        let raw = inner.get(secret, None).await.unwrap().unwrap().value;
        assert!(raw.to_vec().starts_with(b"k8s:enc:aesgcm:v1:b:"));
        // Whoever has only the old key is told so.
        assert!(store.get(secret, None).await.is_err());
        // The same without a restart: what is older than the change is stale, what is written again is not.
        const C: &str = "{name: c, secret: AAAAAAAAAAAAAAAAAAAAAg==}";
        let before = revision;
        assert!(rotated.reload("kind: Other").await.is_err());
        assert!(!rotated.is_stale(secret, before), "the present one stays");
        let next = config(&format!("{C}, {B}, {A}"));
        rotated.reload(&next).await.unwrap();
        assert!(rotated.is_stale(secret, before));
        let map_kv = rotated.get(map, None).await.unwrap().unwrap();
        assert!(
            !rotated.is_stale(map, map_kv.mod_revision),
            "nobody enciphers maps"
        );
        let expect = Expect::ModRevision(before);
        let revision = rotated
            .put(secret, plain.clone(), expect, None)
            .await
            .unwrap();
        assert!(!rotated.is_stale(secret, revision));
        let raw = inner.get(secret, None).await.unwrap().unwrap().value;
        assert!(raw.to_vec().starts_with(b"k8s:enc:aesgcm:v1:c:"));
        // A conflict shows the plain value.
        let lost = rotated
            .put(secret, plain.clone(), Expect::Absent, None)
            .await;
        let Err(StoreError::Conflict {
            current: Some(current),
        }) = lost
        else {
            panic!("the key exists");
        };
        assert_eq!(current.value.to_vec(), plain);
    }
}
