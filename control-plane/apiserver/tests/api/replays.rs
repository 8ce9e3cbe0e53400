//! A watch is the replay of the history, also of custom resources whose definition changes, and of a cache that is loaded
//! anew. What there really was is asked of the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};
use windlass_store::{
    Event, Expect, KeyValue, Range, RangeRequest, Result, Revision, Store, StoreError, WatchStream,
};

use crate::definitions::{DEFINITIONS, establish, instances};
use crate::server::*;
use crate::store;
use crate::watches::Lines;

const NAMES: usize = 5;
const LAST: &str = "last";

/// What a client that lists and watches was told.
#[derive(Default)]
struct Told {
    state: BTreeMap<String, u64>,
    /// Of each watch: after which revision it began, and its events.
    watches: Vec<(u64, Vec<Seen>)>,
}

/// Revision, kind and name.
type Seen = (u64, String, String);

fn revision_of(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str();
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn name_of(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str();
    name.unwrap_or_default().to_owned()
}

/// Lists and watches, again from the start when told to, until the last object is seen.
async fn follow(server: &Server, path: &str) -> Told {
    let mut told = Told::default();
    'list: loop {
        let list = server.get(path).await.ok();
        let items = list["items"].as_array().unwrap();
        told.state = items.iter().map(|o| (name_of(o), revision_of(o))).collect();
        let mut from = revision_of(&list);
        loop {
            if told.state.contains_key(LAST) {
                return told;
            }
            let watch = format!("{path}?watch=1&allowWatchBookmarks=true&resourceVersion={from}");
            let mut lines = Lines::open(server, &watch).await;
            told.watches.push((from, Vec::new()));
            while let Some(event) = lines.next().await {
                let (kind, object) = (event["type"].as_str().unwrap(), &event["object"]);
                if kind == "ERROR" {
                    assert_eq!(object["code"], 410, "{object}");
                    continue 'list;
                }
                let (revision, name) = (revision_of(object), name_of(object));
                assert!(revision >= from, "{revision} after {from}");
                from = revision;
                let known = match kind {
                    "BOOKMARK" => continue,
                    "DELETED" => told.state.remove(&name),
                    _ => told.state.insert(name.clone(), revision),
                };
                assert_eq!(
                    known.is_none(),
                    kind == "ADDED",
                    "{kind} {name} at {revision}"
                );
                let seen = (revision, kind.to_owned(), name.clone());
                told.watches.last_mut().unwrap().1.push(seen);
                if name == LAST {
                    return told;
                }
            }
        }
    }
}

/// Creates, changes and deletes by a fixed but scattered plan; losing against another writer is part of it.
async fn write(server: &Server, path: &str, object: &Value, writer: usize, writes: usize) {
    for step in 0..writes {
        let number = writer.wrapping_mul(31).wrapping_add(step.wrapping_mul(17)) ^ (step >> 2);
        let name = format!("o{}", number % NAMES);
        let own = format!("{path}/{name}");
        let answer = match step % 5 {
            0 | 1 => {
                let mut object = object.clone();
                object["metadata"]["name"] = name.into();
                server.post(path, &object).await
            }
            2 | 3 => {
                let patch = json!({"metadata": {"labels": {"by": format!("{writer}-{step}")}}});
                server.patch(&own, "merge", &patch).await
            }
            _ => server.delete(&own, &json!(null)).await,
        };
        assert!(matches!(answer.code, 200 | 201 | 404 | 409), "{answer:?}");
    }
}

/// Every event below `prefix` that there ever was.
async fn history(store: &dyn Store, prefix: &str) -> Vec<Seen> {
    let end = store.current_revision().await.unwrap();
    let mut watch = store.watch(prefix, Revision(0)).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let batch = watch.next().await.unwrap().unwrap();
        for event in batch.events {
            let kind = match &event {
                Event::Put { prev: None, .. } => "ADDED",
                Event::Put { .. } => "MODIFIED",
                Event::Delete { .. } => "DELETED",
            };
            let name = event.key().rsplit('/').next().unwrap().to_owned();
            seen.push((event.revision().0, kind.to_owned(), name));
        }
        if batch.revision >= end {
            return seen;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watches_of_a_custom_resource_replay_its_history_while_its_definition_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, _etcd) = store::open(dir.path()).await;
    let server = Server::start_over(raw.clone(), Setup::default()).await;
    establish(&server, "drifters", "Drifter").await;
    let path = instances("drifters");
    let object = json!({"apiVersion": "life.test/v1", "kind": "Drifter", "metadata": {}});
    let change = async {
        let own = format!("{DEFINITIONS}/drifters.life.test");
        for turn in 0..12 {
            let text = json!([{"op": "add", "value": format!("turn {turn}"),
                "path": "/spec/versions/0/schema/openAPIV3Schema/description"}]);
            server.patch(&own, "json", &text).await.ok();
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    };
    let work = async {
        let writers = (0..3).map(|writer| write(&server, &path, &object, writer, 90));
        tokio::join!(futures::future::join_all(writers), change);
        let mut last = object.clone();
        last["metadata"]["name"] = LAST.into();
        server.post(&path, &last).await.ok();
    };
    let followers = futures::future::join_all((0..4).map(|_| follow(&server, &path)));
    let (told, ()) = tokio::time::timeout(6 * PATIENCE, async { tokio::join!(followers, work) })
        .await
        .expect("every follower sees the last object");

    let list = server.get(&path).await.ok();
    let items = list["items"].as_array().unwrap();
    let state: BTreeMap<_, _> = items.iter().map(|o| (name_of(o), revision_of(o))).collect();
    let history = history(&*raw, "/registry/life.test/drifters/").await;
    for told in told {
        assert_eq!(told.state, state);
        for (from, events) in told.watches {
            let until = events.last().map_or(from, |(revision, ..)| *revision);
            let real = history.iter().filter(|(at, ..)| *at > from && *at <= until);
            assert!(real.eq(&events), "after {from}: {events:?}");
        }
    }
}

/// A store whose watches are told, every few batches, that the history they read is gone.
struct Forgetful {
    inner: Arc<dyn Store>,
    broken: Arc<AtomicUsize>,
}

const BATCHES: usize = 25;

#[async_trait]
impl Store for Forgetful {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<KeyValue>> {
        self.inner.get(key, at).await
    }

    async fn range(&self, request: RangeRequest<'_>) -> Result<Range> {
        self.inner.range(request).await
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision> {
        self.inner.put(key, value, expect, ttl).await
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<(Revision, KeyValue)> {
        self.inner.delete(key, expect).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream> {
        let (mut left, broken) = (BATCHES, self.broken.clone());
        let watch = self.inner.watch(prefix, from).await?;
        let forgetful = watch.map(move |batch| {
            left = left.saturating_sub(1);
            if left > 0 {
                return batch;
            }
            broken.fetch_add(1, Ordering::Relaxed);
            let (requested, compacted) = (from, Revision(from.0 + 1));
            Err(StoreError::Compacted {
                requested,
                compacted,
            })
        });
        Ok(forgetful.boxed())
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cache_that_is_loaded_anew_leads_watchers_to_the_same_state() {
    let dir = tempfile::tempdir().unwrap();
    let (inner, _etcd) = store::open(dir.path()).await;
    let broken = Arc::new(AtomicUsize::new(0));
    let store = Forgetful {
        inner,
        broken: broken.clone(),
    };
    let server = Server::start_over(Arc::new(store), Setup::default()).await;
    let object = config_map("");
    let work = async {
        // On a busy machine few batches hold many writes.
        while broken.load(Ordering::Relaxed) < 3 {
            let writers = (0..3).map(|writer| write(&server, CONFIG_MAPS, &object, writer, 90));
            futures::future::join_all(writers).await;
        }
        // A list waits until the cache has all of it: what follows is told last.
        server.get(CONFIG_MAPS).await.ok();
        server.post(CONFIG_MAPS, &config_map(LAST)).await.ok();
    };
    let followers = futures::future::join_all((0..4).map(|_| follow(&server, CONFIG_MAPS)));
    let (told, ()) = tokio::time::timeout(6 * PATIENCE, async { tokio::join!(followers, work) })
        .await
        .expect("every follower sees the last object");
    let list = server.get(CONFIG_MAPS).await.ok();
    let items = list["items"].as_array().unwrap();
    let state: BTreeMap<_, _> = items.iter().map(|o| (name_of(o), revision_of(o))).collect();
    for told in told {
        assert_eq!(told.state, state);
    }
}
