//! The embedded store against the suite, and what only it promises: its file.

use std::path::Path;
use std::time::Duration;

use crate::suite::{events_until, put, range, text};
use bytes::Bytes;
use futures::StreamExt;
use tempfile::TempDir;
use windlass_store::{Embedded, EmbeddedOptions, Event, Expect, Revision, Store, StoreError};

async fn open_at(path: &Path) -> Embedded {
    Embedded::open(path, EmbeddedOptions::default())
        .await
        .expect("open")
}

async fn fresh() -> (Embedded, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open_at(&folder.path().join("store.redb")).await;
    (store, folder)
}

async fn open() -> Option<(Embedded, TempDir)> {
    Some(fresh().await)
}

crate::suite!(open);

#[tokio::test]
async fn a_restart_keeps_keys_history_and_watches() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.redb");
    let store = open_at(&path).await;
    let one = put(&store, "/a", "1").await;
    let two = put(&store, "/a", "2").await;
    put(&store, "/gone", "x").await;
    let (end, _) = store.delete("/gone", Expect::Any).await.expect("delete");
    drop(store);

    let store = open_at(&path).await;
    assert_eq!(store.current_revision().await.expect("revision"), end);
    let a = store.get("/a", None).await.expect("get").expect("exists");
    assert_eq!(
        (text(&a).1, a.create_revision, a.mod_revision),
        ("2", one, two)
    );
    let past = store
        .get("/a", Some(one))
        .await
        .expect("get")
        .expect("exists");
    assert_eq!(text(&past).1, "1");
    let mut watch = store.watch("/", one).await.expect("watch");
    let revisions: Vec<u64> = events_until(&mut watch, end)
        .await
        .iter()
        .map(|event| event.revision().0)
        .collect();
    assert_eq!(revisions, [2, 3, 4]);
}

#[tokio::test]
async fn a_restart_after_compaction_goes_on_from_the_last_revision() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.redb");
    let store = open_at(&path).await;
    put(&store, "/a", "1").await;
    put(&store, "/b", "1").await;
    let (end, _) = store.delete("/b", Expect::Any).await.expect("delete");
    store.compact(end).await.expect("compact");
    drop(store);

    let store = open_at(&path).await;
    assert_eq!(store.current_revision().await.expect("revision"), end);
    assert!(matches!(
        store.watch("/", Revision(1)).await,
        Err(StoreError::Compacted { .. })
    ));
    assert_eq!(put(&store, "/c", "1").await, end.next());
    drop(store);
    let store = open_at(&path).await;
    let keys = range(&store, "/", None).await;
    assert_eq!(
        keys.items.iter().map(text).collect::<Vec<_>>(),
        [("/a", "1"), ("/c", "1")]
    );
}

#[tokio::test]
async fn keys_that_expired_while_the_store_was_closed_are_deleted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.redb");
    let store = open_at(&path).await;
    let ttl = Some(Duration::from_millis(100));
    let put = store
        .put("/e", Bytes::new(), Expect::Absent, ttl)
        .await
        .expect("put");
    drop(store);
    let store = open_at(&path).await;
    let mut watch = store.watch("/", put).await.expect("watch");
    let events = events_until(&mut watch, put.next()).await;
    assert!(matches!(&events[..], [Event::Delete { .. }]), "{events:?}");
}

#[tokio::test]
async fn history_is_compacted_by_itself_when_it_grows_too_large() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = EmbeddedOptions {
        max_history_events: 50,
        ..Default::default()
    };
    let path = folder.path().join("store.redb");
    let store = Embedded::open(&path, options).await.expect("open");
    let mut slow = store.watch("/", Revision(0)).await.expect("watch");
    for n in 0..120 {
        put(&store, "/a", &n.to_string()).await;
    }
    let told = slow
        .next()
        .await
        .expect("one item")
        .expect_err("is too slow");
    assert!(matches!(told, StoreError::Compacted { .. }), "{told:?}");
    assert!(slow.next().await.is_none(), "a watch ends with its error");
    let a = store.get("/a", None).await.expect("get").expect("exists");
    assert_eq!((text(&a).1, a.mod_revision), ("119", Revision(120)));
    let recent = store
        .get("/a", Some(Revision(110)))
        .await
        .expect("get")
        .expect("exists");
    assert_eq!(text(&recent).1, "109");
}

#[tokio::test]
async fn history_is_compacted_by_itself_when_it_grows_old() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = EmbeddedOptions {
        keep_history: std::time::Duration::ZERO,
        ..Default::default()
    };
    let path = folder.path().join("store.redb");
    let store = Embedded::open(&path, options).await.expect("open");
    put(&store, "/a", "1").await;
    put(&store, "/a", "2").await;
    put(&store, "/a", "3").await;
    // Housekeeping rides on the writes: the first revision is gone with one of the next.
    for _ in 0..100 {
        if let Err(error) = store.get("/a", Some(Revision(1))).await {
            assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
            return;
        }
        put(&store, "/b", "x").await;
    }
    panic!("old history was kept");
}

#[tokio::test]
async fn a_snapshot_restores_the_state_at_a_later_revision() {
    let (store, folder) = fresh().await;
    let ttl = Some(std::time::Duration::from_secs(3600));
    for n in 0..1_500 {
        put(&store, &format!("/many/{n}"), &n.to_string()).await;
    }
    let expiring = store
        .put("/event", Bytes::from_static(b"e"), Expect::Absent, ttl)
        .await;
    put(&store, "/gone", "x").await;
    store.delete("/gone", Expect::Any).await.expect("delete");
    let before = range(&store, "", None).await;
    let snapshot = folder.path().join("snapshot");
    let taken = store.save_snapshot(&snapshot).await.expect("save");
    assert_eq!(taken, before.revision);
    let twice = store
        .save_snapshot(&snapshot)
        .await
        .expect_err("is there already");
    assert!(matches!(twice, StoreError::Io { .. }), "{twice}");
    // What is written after it is not in it.
    let seen = put(&store, "/later", "x").await;

    let restored = folder.path().join("restored");
    let revision = Embedded::restore(&snapshot, &restored, 1_000)
        .await
        .expect("restore");
    assert_eq!(revision.0, taken.0 + 1_000);
    let store = open_at(&restored).await;
    let after = range(&store, "", None).await;
    assert_eq!(after.items, before.items);
    assert_eq!(after.revision, revision);
    assert!(matches!(
        store.watch("/", seen).await,
        Err(StoreError::Compacted { .. })
    ));
    let event = store
        .get("/event", None)
        .await
        .expect("get")
        .expect("exists");
    assert_eq!(event.mod_revision, expiring.expect("put"));
    assert_eq!(put(&store, "/new", "x").await, revision.next());
    drop(store);
    let again = range(&open_at(&restored).await, "", None).await;
    assert_eq!(again.items.len(), before.items.len() + 1);

    let at = |name: &str| folder.path().join(name);
    let missing = Embedded::restore(&at("none"), &at("x"), 0).await;
    assert!(matches!(missing, Err(StoreError::Io { .. })), "{missing:?}");
    std::fs::write(&snapshot, "damaged").expect("write");
    let damaged = Embedded::restore(&snapshot, &at("y"), 0).await;
    assert!(
        matches!(damaged, Err(StoreError::Corrupt { .. })),
        "{damaged:?}"
    );
}

#[tokio::test]
async fn a_snapshot_keeps_expiries() {
    let (store, folder) = fresh().await;
    let mut ttl = Duration::from_millis(300);
    let snapshot = loop {
        let put = store
            .put("/e", Bytes::new(), Expect::Any, Some(ttl))
            .await
            .expect("put");
        let snapshot = folder.path().join(format!("snapshot-{}", ttl.as_millis()));
        if store.save_snapshot(&snapshot).await.expect("save") == put {
            break snapshot;
        }
        // This machine took so long that the key expired before.
        ttl *= 2;
    };
    let restored = folder.path().join("restored");
    let revision = Embedded::restore(&snapshot, &restored, 0)
        .await
        .expect("restore");
    let store = open_at(&restored).await;
    let mut watch = store.watch("/", revision).await.expect("watch");
    let events = events_until(&mut watch, revision.next()).await;
    assert!(matches!(&events[..], [Event::Delete { .. }]), "{events:?}");
}

#[tokio::test]
async fn an_older_format_is_taken_over_and_a_newer_one_refused() {
    const META: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    let (store, folder) = fresh().await;
    let written = put(&store, "/a", "1").await;
    drop(store);
    let path = folder.path().join("store.redb");
    let set_format = |format: u64| {
        let file = redb::Database::open(&path).expect("open");
        let transaction = file.begin_write().expect("begin");
        let mut meta = transaction.open_table(META).expect("table");
        let before = meta
            .insert("format", format)
            .expect("insert")
            .map(|row| row.value());
        drop(meta);
        transaction.commit().expect("commit");
        before
    };
    assert_eq!(set_format(1), Some(2));
    let store = open_at(&path).await;
    assert_eq!(store.current_revision().await.expect("revision"), written);
    drop(store);
    assert_eq!(set_format(9), Some(2), "it was raised");
    let newer = Embedded::open(&path, EmbeddedOptions::default())
        .await
        .err()
        .expect("refused");
    assert!(
        matches!(newer, StoreError::Newer { found: 9, .. }),
        "{newer}"
    );
    assert_eq!(set_format(2), Some(9), "it was left alone");
    assert_eq!(
        open_at(&path)
            .await
            .current_revision()
            .await
            .expect("revision"),
        written
    );
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let (store, folder) = fresh().await;
    let path = folder.path().join("store.redb");
    let second = Embedded::open(&path, EmbeddedOptions::default()).await;
    let error = second.err().expect("the file is in use");
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    put(&store, "/a", "still works").await;
}

#[tokio::test]
async fn closing_tells_watchers() {
    let (store, _folder) = fresh().await;
    let mut watch = store.watch("/", Revision(0)).await.expect("watch");
    drop(store);
    let told = watch
        .next()
        .await
        .expect("one item")
        .expect_err("was closed");
    assert!(matches!(told, StoreError::Unavailable(_)), "{told:?}");
}

#[tokio::test]
async fn a_file_of_another_kind_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.redb");
    std::fs::write(&path, "apiVersion: v1\n".repeat(1_000)).expect("write");
    let before = std::fs::read(&path).expect("read");
    let error = Embedded::open(&path, EmbeddedOptions::default())
        .await
        .err()
        .expect("is refused");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("restore a snapshot"), "{error}");
    assert_eq!(std::fs::read(&path).expect("read"), before);
}

/// Damage anywhere in the file is either refused, or lies where nothing is kept: never does the store come
/// up with other content than was written, and never does it panic.
#[tokio::test]
async fn a_damaged_file_is_never_served() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.redb");
    let store = open_at(&path).await;
    for n in 0..200 {
        put(&store, &format!("/key/{n}"), &"value".repeat(100)).await;
    }
    let expected = range(&store, "/", None).await;
    drop(store);
    let good = std::fs::read(&path).expect("read");
    let mut refused = 0;
    for step in 0..60 {
        let mut bad = good.clone();
        let position = step * (bad.len() / 60);
        let length = 64.min(bad.len() - position);
        for byte in &mut bad[position..position + length] {
            *byte ^= 0x5a;
        }
        std::fs::write(&path, &bad).expect("write");
        match Embedded::open(&path, EmbeddedOptions::default()).await {
            Ok(store) => assert_eq!(range(&store, "/", None).await, expected, "at {position}"),
            Err(StoreError::Corrupt { .. } | StoreError::Io { .. } | StoreError::Newer { .. }) => {
                refused += 1
            }
            Err(other) => panic!("unexpected {other:?} at {position}"),
        }
    }
    assert!(refused > 0, "no damage was noticed");
    std::fs::write(&path, &good).expect("write");
    assert_eq!(range(&open_at(&path).await, "/", None).await, expected);
}
