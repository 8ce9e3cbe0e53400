//! The cache's own promises, with a store that stands still.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use windlass_api::resource::Resource;
use windlass_packed::Packed;
use windlass_store::{Embedded, EmbeddedOptions, KeyValue, Revision};

use super::ring::Ages;
use super::*;

static CONFIG_MAPS: LazyLock<Arc<Resource>> = LazyLock::new(|| {
    let all = windlass_api::registry::builtin();
    Arc::new(
        all.into_iter()
            .find(|r| r.plural == "configmaps")
            .expect("are built in"),
    )
});

fn config_maps() -> Arc<Resource> {
    CONFIG_MAPS.clone()
}

fn entry(name: &str, revision: u64) -> Arc<Entry> {
    let value =
        format!(r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"{name}"}}}}"#);
    let kv = KeyValue {
        key: format!("/registry/configmaps/default/{name}").into(),
        value: Packed::plain(value.as_bytes()),
        create_revision: Revision(revision),
        mod_revision: Revision(revision),
    };
    Arc::new(Entry::new(&config_maps(), kv))
}

async fn caches() -> (tempfile::TempDir, Arc<Caches>, Arc<Cacher>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store"), EmbeddedOptions::default())
        .await
        .unwrap();
    let (progress, _) = tokio::sync::watch::channel(Revision(0));
    let cachers = RwLock::new(HashMap::new());
    let caches = Arc::new(Caches {
        store: Arc::new(store),
        cachers,
        progress,
        began: Revision(0),
    });
    (dir, caches, Arc::new(Cacher::new(config_maps())))
}

fn everything() -> Filter {
    Filter::new(&config_maps(), None, None, None).unwrap()
}

fn put(cacher: &Cacher, name: &str, revision: u64) {
    let before = cacher.get("default", name);
    cacher.apply(CacheEvent::new(
        Revision(revision),
        before,
        Some(entry(name, revision)),
    ));
}

fn told(events: &[(Arc<CacheEvent>, Seen)]) -> Vec<(&'static str, &str, u64)> {
    let line = |seen: &Seen| (seen.kind.as_str(), seen.revision.0);
    events
        .iter()
        .map(|(event, seen)| (line(seen).0, event.entry().name(), line(seen).1))
        .collect()
}

#[tokio::test]
async fn a_reload_tells_watchers_what_has_changed_meanwhile() {
    let (_dir, caches, cacher) = caches().await;
    cacher.replace(
        vec![entry("gone", 1), entry("same", 2), entry("changed", 3)],
        Revision(3),
    );
    let watch = caches
        .watch(&cacher, everything(), From::After(Revision(3)))
        .unwrap();
    cacher.replace(
        vec![entry("same", 2), entry("new", 9), entry("changed", 7)],
        Revision(12),
    );
    let mut events = watch.next().await.unwrap();
    while events.len() < 3 {
        events.extend(watch.next().await.unwrap());
    }
    assert_eq!(
        told(&events),
        [
            ("MODIFIED", "changed", 7),
            ("ADDED", "new", 9),
            ("DELETED", "gone", 12)
        ]
    );
    assert_eq!(cacher.len(), 3);
}

#[tokio::test]
async fn a_slow_reader_catches_up_from_the_ring_and_is_cut_off_when_that_has_moved_on() {
    let (_dir, caches, cacher) = caches().await;
    let slow = caches
        .watch(&cacher, everything(), From::After(Revision(0)))
        .unwrap();
    let lost = caches
        .watch(&cacher, everything(), From::After(Revision(0)))
        .unwrap();
    let some = queue::CAPACITY as u64 * 3;
    for revision in 1..=some {
        put(&cacher, "a", revision);
    }
    let mut seen = Vec::new();
    while seen.len() < some as usize {
        seen.extend(slow.next().await.unwrap());
    }
    let revisions: Vec<u64> = seen.iter().map(|(_, seen)| seen.revision.0).collect();
    assert_eq!(revisions, (1..=some).collect::<Vec<_>>());

    for revision in some + 1..=some + ring::CAPACITY as u64 + 1 {
        put(&cacher, "a", revision);
    }
    // What was queued is still told, then nothing can follow it.
    assert_eq!(lost.next().await.unwrap().len(), queue::CAPACITY);
    assert_eq!(lost.next().await.unwrap_err().code, 410);
    let late = caches.watch(&cacher, everything(), From::After(Revision(1)));
    assert_eq!(late.err().map(|error| error.code), Some(410));
}

#[tokio::test]
async fn a_bookmark_is_only_given_when_nothing_waits() {
    let (_dir, caches, cacher) = caches().await;
    let watch = caches
        .watch(&cacher, everything(), From::After(Revision(0)))
        .unwrap();
    put(&cacher, "a", 1);
    caches.progress.send_replace(Revision(5));
    assert_eq!(watch.delivered(), None);
    watch.next().await.unwrap();
    assert_eq!(watch.delivered(), Some(Revision(5)));
}

#[test]
fn an_event_that_is_older_than_what_is_known_changes_nothing() {
    let cacher = Cacher::new(config_maps());
    cacher.replace(vec![entry("a", 5)], Revision(8));
    put(&cacher, "a", 4);
    assert_eq!(cacher.get("default", "a").unwrap().revision, Revision(5));
}

#[tokio::test]
async fn a_token_from_before_a_compaction_is_exchanged_for_one_that_goes_on() {
    let (_dir, caches, cacher) = caches().await;
    for name in ["a", "b", "c"] {
        let entry = entry(name, 1);
        let bytes = entry.value.to_vec().into();
        let put = caches
            .store
            .put(&entry.key, bytes, windlass_store::Expect::Absent, None);
        put.await.unwrap();
    }
    cacher.replace(
        vec![entry("a", 1), entry("b", 2), entry("c", 3)],
        Revision(3),
    );
    caches.progress.send_replace(Revision(3));
    let page = async |token: String| {
        let query = format!("limit=1&continue={token}");
        let options =
            crate::options::ListOptions::parse(&crate::query::Query::parse(&query), false);
        caches.list(&cacher, &everything(), &options.unwrap()).await
    };
    let token = list::encode_token(Revision(3), "default/a");
    let names = |page: &Page| {
        page.entries
            .iter()
            .map(|e| e.name().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&page(token.clone()).await.unwrap()), ["b"]);

    let late = entry("d", 4);
    let bytes = late.value.to_vec().into();
    let put = caches
        .store
        .put(&late.key, bytes, windlass_store::Expect::Absent, None);
    put.await.unwrap();
    caches.progress.send_replace(Revision(4));
    caches.store.compact(Revision(4)).await.unwrap();
    let error = page(token).await.err().unwrap();
    assert_eq!(error.code, 410);
    let status = error.to_status();
    let token = status["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = page(token).await.unwrap();
    assert_eq!(
        (names(&rest), rest.remaining),
        (vec!["b".to_owned()], Some(1))
    );
}

#[tokio::test]
async fn old_events_go_but_for_the_latest_that_a_quiet_watcher_resumes_from() {
    let (_dir, caches, cacher) = caches().await;
    let from = |revision| caches.watch(&cacher, everything(), From::After(Revision(revision)));
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut ages = Ages::default();
    for revision in 1..=150 {
        put(&cacher, "often", revision);
    }
    assert_eq!(ages.sample(at(0), Revision(150)), None);
    for revision in 151..=400 {
        put(&cacher, "often", revision);
    }
    assert_eq!(ages.sample(at(200), Revision(400)), None);
    let old = ages.sample(at(300), Revision(400));
    assert_eq!(old, Some(Revision(150)));
    cacher.state.write().ring.forget(Revision(150));
    assert!(from(149).is_err());
    let watch = from(150).unwrap();
    assert_eq!(watch.next().await.unwrap().len(), 250);

    let old = ages.sample(at(500), Revision(400));
    assert_eq!(old, Some(Revision(400)));
    cacher.state.write().ring.forget(Revision(400));
    assert!(from(299).is_err());
    let watch = from(300).unwrap();
    assert_eq!(watch.next().await.unwrap().len(), 100);
}

/// A request that had its cacher before a definition changed reads what was written since.
#[tokio::test]
async fn who_still_reads_a_former_cache_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store"), EmbeddedOptions::default()).await;
    let shutdown = tokio_util::sync::CancellationToken::new();
    let _end = shutdown.clone().drop_guard();
    let store = Arc::new(store.unwrap());
    let caches = Caches::start(store.clone(), &[config_maps()], shutdown).await;
    let caches = caches.unwrap();
    let former = caches.get("/registry/configmaps").unwrap();
    for name in ["a", "b"] {
        caches.serve(config_maps()).await.unwrap();
        let entry = entry(name, 0);
        let bytes = entry.value.to_vec().into();
        let put = store.put(&entry.key, bytes, windlass_store::Expect::Absent, None);
        put.await.unwrap();
        caches.wait_current().await.unwrap();
        assert!(former.get("default", name).is_some(), "{name}");
    }
    assert_eq!(caches.get("/registry/configmaps").unwrap().len(), 2);
}
