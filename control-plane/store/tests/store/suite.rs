//! What every store must do, whatever it is made of: `suite!(open)` makes one test of each function here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use windlass_packed::Packed;
use windlass_store::{
    Event, Expect, KeyValue, Range, RangeRequest, Revision, Store, StoreError, WatchStream,
};

pub(crate) use crate::linearizable::concurrent_clients_agree_on_one_order;

/// `open` makes a future of (store, guard that removes it).
#[macro_export]
macro_rules! suite {
    ($open:path: $($test:ident),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            // `None` where this machine has not got what the store needs, which has been said.
            let Some((store, _guard)) = $open().await else { return };
            $crate::suite::$test(std::sync::Arc::new(store)).await;
        })+
    };
    ($open:path) => {
        $crate::suite!($open:
            revisions_grow_by_one_with_every_write,
            a_put_demands_what_it_expects,
            a_delete_demands_what_it_expects_and_has_its_own_revision,
            a_deleted_key_is_created_anew,
            a_range_pages_at_one_revision,
            a_range_stays_inside_its_prefix,
            reads_see_the_past,
            a_read_from_the_future_is_refused,
            a_watch_delivers_every_event_once_in_order,
            a_watch_resumes_where_another_ended,
            a_watch_sees_only_its_prefix_and_reports_progress,
            compaction_ends_the_past,
            a_watch_on_compacted_history_is_told,
            keys_expire_and_watchers_see_it,
            a_later_put_lifts_the_expiry,
            concurrent_compare_and_put_loses_no_update,
            a_watcher_beside_concurrent_writers_sees_each_revision,
            concurrent_clients_agree_on_one_order,
        );
    };
}

pub(crate) async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    let value = Bytes::copy_from_slice(value.as_bytes());
    store.put(key, value, Expect::Any, None).await.expect("put")
}

pub(crate) async fn range(store: &dyn Store, prefix: &str, at: Option<Revision>) -> Range {
    store
        .range(RangeRequest {
            prefix,
            at,
            ..Default::default()
        })
        .await
        .expect("range")
}

pub(crate) fn text(kv: &KeyValue) -> (&str, &str) {
    (
        &kv.key,
        std::str::from_utf8(kv.value.as_plain().expect("short values stay plain"))
            .expect("tests write text"),
    )
}

/// Reads a watch until it has reported `until`.
pub(crate) async fn events_until(watch: &mut WatchStream, until: Revision) -> Vec<Event> {
    let mut events = Vec::new();
    let mut reached = Revision(0);
    while reached < until {
        let next = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
        let batch = next
            .expect("the watch stands still")
            .expect("the watch ended")
            .expect("watch");
        assert!(batch.revision >= reached, "progress went backwards");
        reached = batch.revision;
        assert!(batch.events.iter().all(|event| event.revision() <= reached));
        events.extend(batch.events);
    }
    events
}

fn conflict<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Option<KeyValue> {
    match result {
        Err(StoreError::Conflict { current }) => current.map(|kv| *kv),
        other => panic!("expected a conflict, got {other:?}"),
    }
}

pub(crate) async fn revisions_grow_by_one_with_every_write(store: Arc<dyn Store>) {
    let start = store.current_revision().await.expect("revision");
    assert_eq!(put(&*store, "/a", "1").await, start.next());
    assert_eq!(put(&*store, "/b", "1").await, Revision(start.0 + 2));
    assert_eq!(put(&*store, "/a", "2").await, Revision(start.0 + 3));
    assert_eq!(
        store.current_revision().await.expect("revision"),
        Revision(start.0 + 3)
    );
    let a = store.get("/a", None).await.expect("get").expect("exists");
    assert_eq!(
        (a.create_revision, a.mod_revision),
        (start.next(), Revision(start.0 + 3))
    );
    assert_eq!(text(&a), ("/a", "2"));
    assert_eq!(store.get("/c", None).await.expect("get"), None);
}

pub(crate) async fn a_put_demands_what_it_expects(store: Arc<dyn Store>) {
    let value = || Bytes::from_static(b"x");
    let first = store
        .put("/k", value(), Expect::Absent, None)
        .await
        .expect("first");
    let current = conflict(store.put("/k", value(), Expect::Absent, None).await);
    assert_eq!(current.expect("exists").mod_revision, first);
    let second = store
        .put("/k", value(), Expect::ModRevision(first), None)
        .await
        .expect("second");
    let current = conflict(
        store
            .put("/k", value(), Expect::ModRevision(first), None)
            .await,
    );
    assert_eq!(current.expect("exists").mod_revision, second);
    assert_eq!(
        conflict(
            store
                .put("/n", value(), Expect::ModRevision(first), None)
                .await
        ),
        None
    );
    assert_eq!(
        store.current_revision().await.expect("revision"),
        second,
        "a conflict writes nothing"
    );
}

pub(crate) async fn a_delete_demands_what_it_expects_and_has_its_own_revision(
    store: Arc<dyn Store>,
) {
    assert_eq!(conflict(store.delete("/k", Expect::Any).await), None);
    let created = put(&*store, "/k", "x").await;
    let stale = Expect::ModRevision(Revision(created.0 - 1));
    assert_eq!(
        conflict(store.delete("/k", stale).await)
            .expect("exists")
            .mod_revision,
        created
    );
    assert!(conflict(store.delete("/k", Expect::Absent).await).is_some());
    let (deleted, prev) = store
        .delete("/k", Expect::ModRevision(created))
        .await
        .expect("delete");
    assert_eq!((deleted, prev.mod_revision), (created.next(), created));
    assert_eq!(store.get("/k", None).await.expect("get"), None);
    assert_eq!(
        conflict(store.delete("/k", Expect::ModRevision(created)).await),
        None
    );
}

pub(crate) async fn a_deleted_key_is_created_anew(store: Arc<dyn Store>) {
    put(&*store, "/k", "1").await;
    store.delete("/k", Expect::Any).await.expect("delete");
    let again = store
        .put("/k", Bytes::new(), Expect::Absent, None)
        .await
        .expect("put");
    let kv = store.get("/k", None).await.expect("get").expect("exists");
    assert_eq!((kv.create_revision, kv.mod_revision), (again, again));
    assert!(kv.value.is_empty());
}

pub(crate) async fn a_range_pages_at_one_revision(store: Arc<dyn Store>) {
    let keys: Vec<String> = (0..25).map(|n| format!("/page/{n:03}")).collect();
    for key in &keys {
        put(&*store, key, key).await;
    }
    let mut seen = Vec::new();
    let mut start_after = None;
    let mut at = None;
    loop {
        let request = RangeRequest {
            prefix: "/page/",
            start_after: start_after.as_deref(),
            limit: 10,
            at,
        };
        let page = store.range(request).await.expect("range");
        seen.extend(page.items.iter().map(|kv| kv.key.to_string()));
        assert_eq!(page.remaining, 25 - seen.len());
        assert_eq!(page.more(), seen.len() < 25);
        at = Some(page.revision);
        // What happens between the pages must not show.
        put(&*store, "/page/0055", "new").await;
        let _ = store.delete("/page/020", Expect::Any).await;
        if !page.more() {
            break;
        }
        start_after = seen.last().cloned();
    }
    assert_eq!(seen, keys);
}

pub(crate) async fn a_range_stays_inside_its_prefix(store: Arc<dyn Store>) {
    for key in [
        "/a",
        "/a/",
        "/a/b",
        "/a/b/c",
        "/a0",
        "/ab",
        "/b",
        "/a/\u{10ffff}x",
    ] {
        put(&*store, key, "v").await;
    }
    let keys = |range: Range| {
        range
            .items
            .iter()
            .map(|kv| kv.key.to_string())
            .collect::<Vec<_>>()
    };
    let inside = keys(range(&*store, "/a/", None).await);
    assert_eq!(inside, ["/a/", "/a/b", "/a/b/c", "/a/\u{10ffff}x"]);
    let after = |start_after| RangeRequest {
        prefix: "/a/",
        start_after,
        ..Default::default()
    };
    let before_the_prefix = store.range(after(Some("/"))).await.expect("range");
    assert_eq!(keys(before_the_prefix), inside);
    let past_the_prefix = store.range(after(Some("/b"))).await.expect("range");
    assert!(past_the_prefix.items.is_empty() && !past_the_prefix.more());
    assert_eq!(range(&*store, "/none/", None).await.items, []);
    assert_eq!(range(&*store, "", None).await.items.len(), 8);
}

pub(crate) async fn reads_see_the_past(store: Arc<dyn Store>) {
    let empty = store.current_revision().await.expect("revision");
    let one = put(&*store, "/p/a", "1").await;
    let two = put(&*store, "/p/a", "2").await;
    let (gone, _) = store.delete("/p/a", Expect::Any).await.expect("delete");
    put(&*store, "/p/b", "3").await;
    let past = async |at| {
        let all = range(&*store, "/p/", Some(at)).await;
        assert_eq!(all.revision, at);
        let one = store.get("/p/a", Some(at)).await.expect("get");
        let in_range = all.items.iter().find(|kv| &*kv.key == "/p/a").cloned();
        assert_eq!(one, in_range);
        one.map(|kv| text(&kv).1.to_owned())
    };
    if empty > Revision(0) {
        assert_eq!(past(empty).await, None);
    }
    assert_eq!(past(one).await.as_deref(), Some("1"));
    assert_eq!(past(two).await.as_deref(), Some("2"));
    assert_eq!(past(gone).await, None);
}

pub(crate) async fn a_read_from_the_future_is_refused(store: Arc<dyn Store>) {
    let current = put(&*store, "/a", "1").await;
    let future = Some(Revision(current.0 + 10));
    let refused = |error| matches!(error, StoreError::Future { .. });
    assert!(refused(store.get("/a", future).await.expect_err("get")));
    let request = RangeRequest {
        prefix: "/",
        at: future,
        ..Default::default()
    };
    assert!(refused(store.range(request).await.expect_err("range")));
    assert!(
        store
            .watch("/", Revision(current.0 + 10))
            .await
            .is_err_and(refused)
    );
}

pub(crate) async fn a_watch_delivers_every_event_once_in_order(store: Arc<dyn Store>) {
    let start = put(&*store, "/w/before", "0").await;
    let one = put(&*store, "/w/a", "1").await;
    let mut watch = store.watch("/w/", start).await.expect("watch");
    let two = put(&*store, "/w/a", "2").await;
    let (three, _) = store.delete("/w/a", Expect::Any).await.expect("delete");
    let four = put(&*store, "/w/a", "4").await;
    let events = events_until(&mut watch, four).await;
    let kv = |value: &'static str, create_revision, mod_revision| KeyValue {
        key: "/w/a".into(),
        value: Packed::plain(value.as_bytes()),
        create_revision,
        mod_revision,
    };
    assert_eq!(
        events,
        [
            Event::Put {
                kv: kv("1", one, one),
                prev: None
            },
            Event::Put {
                kv: kv("2", one, two),
                prev: Some(kv("1", one, one))
            },
            Event::Delete {
                revision: three,
                prev: kv("2", one, two)
            },
            Event::Put {
                kv: kv("4", four, four),
                prev: None
            },
        ]
    );
}

pub(crate) async fn a_watch_resumes_where_another_ended(store: Arc<dyn Store>) {
    let start = store.current_revision().await.expect("revision");
    let (mut expected, mut seen) = (Vec::new(), Vec::new());
    let mut position = start;
    for part in 0..3 {
        for n in 0..15 {
            expected.push(put(&*store, &format!("/r/{}", (part + n) % 7), "v").await);
        }
        let mut watch = store.watch("/r/", position).await.expect("watch");
        let until = expected.last().copied().expect("has been written");
        seen.extend(
            events_until(&mut watch, until)
                .await
                .iter()
                .map(Event::revision),
        );
        position = until;
        // Written between two watches: the next one begins with it.
        expected.push(put(&*store, "/r/between", "v").await);
    }
    let end = expected.last().copied().expect("has been written");
    let mut watch = store.watch("/r/", position).await.expect("watch");
    seen.extend(
        events_until(&mut watch, end)
            .await
            .iter()
            .map(Event::revision),
    );
    assert_eq!(seen, expected);
}

pub(crate) async fn a_watch_sees_only_its_prefix_and_reports_progress(store: Arc<dyn Store>) {
    let start = store.current_revision().await.expect("revision");
    let mut watch = store.watch("/in/", start).await.expect("watch");
    for _ in 0..5 {
        put(&*store, "/out", "x").await;
    }
    put(&*store, "/in/a", "x").await;
    put(&*store, "/in", "x").await;
    let last = put(&*store, "/in0", "x").await;
    let end = put(&*store, "/in/end", "x").await;
    let events = events_until(&mut watch, end).await;
    let keys: Vec<&str> = events.iter().map(|event| &**event.key()).collect();
    assert_eq!(keys, ["/in/a", "/in/end"]);
    assert!(last < end);
}

pub(crate) async fn compaction_ends_the_past(store: Arc<dyn Store>) {
    let mut revisions = Vec::new();
    for n in 0..10 {
        revisions.push(put(&*store, "/c/a", &n.to_string()).await);
    }
    let (deleted, _) = store.delete("/c/a", Expect::Any).await.expect("delete");
    let other = put(&*store, "/c/b", "b").await;
    store.compact(revisions[5]).await.expect("compact");
    let error = store
        .get("/c/a", Some(revisions[4]))
        .await
        .expect_err("is compacted");
    assert!(matches!(error, StoreError::Compacted { compacted, .. } if compacted == revisions[5]));
    let kept = store
        .get("/c/a", Some(revisions[5]))
        .await
        .expect("get")
        .expect("exists");
    assert_eq!(text(&kept).1, "5");
    let kept = store
        .get("/c/a", Some(revisions[8]))
        .await
        .expect("get")
        .expect("exists");
    assert_eq!(text(&kept).1, "8");
    store.compact(deleted).await.expect("compact");
    assert_eq!(store.get("/c/a", Some(deleted)).await.expect("get"), None);
    store.compact(other).await.expect("compact");
    let left = range(&*store, "/c/", None).await;
    assert_eq!(
        left.items.iter().map(text).collect::<Vec<_>>(),
        [("/c/b", "b")]
    );
    let again = store
        .put("/c/a", Bytes::new(), Expect::Absent, None)
        .await
        .expect("put");
    assert_eq!(again, other.next());
}

pub(crate) async fn a_watch_on_compacted_history_is_told(store: Arc<dyn Store>) {
    let first = put(&*store, "/c/a", "1").await;
    put(&*store, "/c/a", "2").await;
    let third = put(&*store, "/c/a", "3").await;
    let last = put(&*store, "/c/a", "4").await;
    store.compact(third).await.expect("compact");
    let told = match store.watch("/c/", first).await {
        Err(error) => error,
        Ok(mut watch) => watch
            .next()
            .await
            .expect("one item")
            .expect_err("is compacted"),
    };
    assert!(matches!(told, StoreError::Compacted { .. }), "{told:?}");
    let mut watch = store.watch("/c/", third).await.expect("watch");
    assert_eq!(events_until(&mut watch, last).await.len(), 1);
}

pub(crate) async fn keys_expire_and_watchers_see_it(store: Arc<dyn Store>) {
    let ttl = Some(Duration::from_secs(1));
    let put = store
        .put("/e", Bytes::from_static(b"x"), Expect::Any, ttl)
        .await
        .expect("put");
    let mut watch = store.watch("/e", put).await.expect("watch");
    let events = events_until(&mut watch, put.next()).await;
    assert!(matches!(&events[..], [Event::Delete { prev, .. }] if prev.mod_revision == put));
    assert_eq!(store.get("/e", None).await.expect("get"), None);
}

pub(crate) async fn a_later_put_lifts_the_expiry(store: Arc<dyn Store>) {
    let ttl = Some(Duration::from_secs(1));
    store
        .put("/stays", Bytes::new(), Expect::Any, ttl)
        .await
        .expect("put");
    let put = put(&*store, "/stays", "for good").await;
    // A key that was written after it with the same time to live marks that the time has passed.
    let mark = store
        .put("/mark", Bytes::new(), Expect::Any, ttl)
        .await
        .expect("put");
    let mut watch = store.watch("/", put).await.expect("watch");
    let events = events_until(&mut watch, mark.next()).await;
    assert_eq!(&**events.last().expect("an expiry").key(), "/mark");
    assert!(store.get("/stays", None).await.expect("get").is_some());
}

pub(crate) async fn concurrent_compare_and_put_loses_no_update(store: Arc<dyn Store>) {
    const WRITERS: usize = 8;
    const EACH: usize = 20;
    put(&*store, "/counter", "0").await;
    let increment = |store: Arc<dyn Store>| async move {
        let mut revisions = Vec::new();
        let mut current = store
            .get("/counter", None)
            .await
            .expect("get")
            .expect("exists");
        while revisions.len() < EACH {
            let count: usize = text(&current).1.parse().expect("a number");
            let next = Bytes::from((count + 1).to_string());
            let expect = Expect::ModRevision(current.mod_revision);
            match store.put("/counter", next, expect, None).await {
                Ok(revision) => {
                    revisions.push(revision);
                    current = store
                        .get("/counter", None)
                        .await
                        .expect("get")
                        .expect("exists");
                    assert!(current.mod_revision >= revision, "a write is not read back");
                }
                Err(StoreError::Conflict { current: Some(kv) }) => current = *kv,
                Err(other) => panic!("{other}"),
            }
        }
        revisions
    };
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| tokio::spawn(increment(store.clone())))
        .collect();
    let mut revisions = Vec::new();
    for writer in writers {
        revisions.extend(writer.await.expect("writer"));
    }
    revisions.sort();
    revisions.dedup();
    assert_eq!(
        revisions.len(),
        WRITERS * EACH,
        "two writes had one revision"
    );
    let counter = store
        .get("/counter", None)
        .await
        .expect("get")
        .expect("exists");
    assert_eq!(text(&counter).1, (WRITERS * EACH).to_string());
}

pub(crate) async fn a_watcher_beside_concurrent_writers_sees_each_revision(store: Arc<dyn Store>) {
    let start = store.current_revision().await.expect("revision");
    let mut watch = store.watch("/m/", start).await.expect("watch");
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..30 {
                    let key = format!("/m/{}", (writer + n) % 5);
                    if n % 4 == 3 {
                        let _ = store.delete(&key, Expect::Any).await;
                    } else {
                        put(&*store, &key, &format!("{writer} {n}")).await;
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("writer");
    }
    let end = store.current_revision().await.expect("revision");
    let events = events_until(&mut watch, end).await;
    let mut replayed = BTreeMap::new();
    for (event, expected) in events.iter().zip(start.0 + 1..) {
        assert_eq!(
            event.revision().0,
            expected,
            "an event is missing or repeated"
        );
        let before = match event {
            Event::Put { kv, prev } => {
                assert_eq!(replayed.insert(kv.key.clone(), kv.clone()), *prev);
                continue;
            }
            Event::Delete { prev, .. } => replayed.remove(&prev.key),
        };
        assert!(before.is_some(), "a key that is not there was deleted");
    }
    let now = range(&*store, "/m/", None).await;
    assert_eq!(replayed.into_values().collect::<Vec<_>>(), now.items);
}
