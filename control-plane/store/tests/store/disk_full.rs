//! A file system without room, a real one: what is refused has not happened, what was acknowledged stays, and
//! room is all that it takes to go on.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use windlass_store::{Embedded, EmbeddedOptions, Expect, Store, StoreError};

const VALUE: usize = 64 << 10;
const SMALL: &str = "size=8m";
const LARGE: &str = "size=64m";
const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn a_store_without_room_refuses_writes_and_recovers_when_there_is_room() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: mounting a tmpfs needs root");
        return;
    }
    // In a mount namespace of its own: the store's threads are started from here and are in it as well.
    let test = std::thread::spawn(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let nothing = None::<&str>;
        mount(
            nothing,
            "/",
            nothing,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            nothing,
        )
        .expect("private");
        mount(
            Some("tmpfs"),
            folder.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(SMALL),
        )
        .expect("tmpfs");
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(fill_and_recover(folder.path()));
        umount2(folder.path(), MntFlags::MNT_DETACH).expect("umount");
    });
    test.join().expect("the test's thread");
}

async fn fill_and_recover(folder: &Path) {
    let path = folder.join("store.redb");
    let options = EmbeddedOptions {
        checkpoint_bytes: 512 << 10,
        ..Default::default()
    };
    let store = Embedded::open(&path, options.clone()).await.expect("open");
    let value = bytes::Bytes::from(vec![b'x'; VALUE]);
    let put = async |store: &Embedded, n: usize| {
        store
            .put(&format!("/key/{n:04}"), value.clone(), Expect::Absent, None)
            .await
    };

    let mut written = 0;
    let refusal = loop {
        match put(&store, written).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written * VALUE < 16 << 20, "8 MiB hold more than 16");
    };
    assert!(matches!(refusal, StoreError::StorageFull), "{refusal:?}");
    assert!(refusal.to_string().contains("free some room"), "{refusal}");
    assert!(written > 10, "only {written} fitted");
    let before = store.current_revision().await.expect("revision");
    assert_eq!(before.0 as usize, written, "a refused write has a revision");
    let read = store.get("/key/0000", None).await.expect("reads go on");
    assert_eq!(read.expect("it was acknowledged").value.to_vec(), value);

    mount(
        None::<&str>,
        folder,
        None::<&str>,
        MsFlags::MS_REMOUNT,
        Some(LARGE),
    )
    .expect("room");
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = put(&store, written).await {
        assert!(
            Instant::now() < deadline,
            "there is room, and still: {error}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for n in written + 1..written + 50 {
        put(&store, n).await.expect("it goes on as ever");
    }
    drop(store);

    let store = Embedded::open(&path, options).await.expect("open again");
    for n in 0..written + 50 {
        let read = store
            .get(&format!("/key/{n:04}"), None)
            .await
            .expect("read");
        assert_eq!(read.expect("it was acknowledged").value.len(), VALUE);
    }
}
