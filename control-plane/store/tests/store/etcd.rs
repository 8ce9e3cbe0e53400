//! The store on etcd against the suite. Each test has an etcd-server of its own, on loopback.

use std::net::TcpListener;
use std::time::Duration;

use futures::StreamExt;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::watch;
use windlass_loopback::{EtcdServer, is_etcd_installed};
use windlass_store::{Etcd, EtcdOptions, Event, Expect, RangeRequest, Store, StoreError};

use crate::suite::{events_until, put};

struct Server {
    process: EtcdServer,
    _folder: TempDir,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let process = EtcdServer::start(folder.path()).await.expect("etcd");
        Self {
            process,
            _folder: folder,
        }
    }

    async fn connect(&self) -> Etcd {
        self.connect_among(&[]).await
    }

    /// As one of several members, of which the others are these.
    async fn connect_among(&self, others: &[String]) -> Etcd {
        let own = self.process.url().to_owned();
        let options = EtcdOptions {
            endpoints: [&[own], others].concat(),
            ..Default::default()
        };
        Etcd::connect(options).await.expect("etcd serves")
    }
}

async fn open() -> Option<(Etcd, Server)> {
    if !is_etcd_installed() {
        return None;
    }
    let server = Server::start().await;
    Some((server.connect().await, server))
}

crate::suite!(open);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_refused_for_members_that_are_away() {
    let Some((_, server)) = open().await else {
        return;
    };
    let away = [(); 2].map(|()| format!("http://{}:2379", windlass_loopback::address()));
    serves_among(&server, &away).await;
}

/// Whoever listens and accepts nothing is connected to by the kernel, as one whose process stands still.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_held_up_by_members_that_are_silent() {
    let Some((_, server)) = open().await else {
        return;
    };
    let silent = [(); 2].map(|()| TcpListener::bind((windlass_loopback::address(), 2379)));
    let silent = silent.map(|listener| listener.expect("an address"));
    let at = silent
        .each_ref()
        .map(|listener| format!("http://{}", listener.local_addr().expect("bound")));
    serves_among(&server, &at).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_silent_member_holds_is_given_up_with_it() {
    const WRITES: usize = 20;
    let Some((_, server)) = open().await else {
        return;
    };
    let (stand_still, at) = member_in_front_of(&server).await;
    let store = server.connect_among(&[at]).await;
    stand_still.send_replace(true);
    let keys: Vec<_> = (0..WRITES).map(|n| format!("/held/{n}")).collect();
    let puts = keys
        .iter()
        .map(|key| store.put(key, "v".into(), Expect::Absent, None));
    let outcomes = futures::future::join_all(puts).await;
    let held: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(
        !held.is_empty() && held.len() < WRITES,
        "calls go to both: {held:?}"
    );
    for error in held {
        assert!(
            error.to_string().contains("the member is silent"),
            "{error}"
        );
    }
}

/// Passes everything on to the server until it is told to stand still, as one whose process is stopped.
async fn member_in_front_of(server: &Server) -> (watch::Sender<bool>, String) {
    let bound = tokio::net::TcpListener::bind((windlass_loopback::address(), 2379)).await;
    let listener = bound.expect("an address");
    let at = format!("http://{}", listener.local_addr().expect("bound"));
    let behind = server
        .process
        .url()
        .trim_start_matches("http://")
        .to_owned();
    let (stand_still, stands) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (mut stands, behind) = (stands.clone(), behind.clone());
            tokio::spawn(async move {
                let passes_on = async {
                    let mut server = TcpStream::connect(behind).await?;
                    copy_bidirectional(&mut client, &mut server).await
                };
                tokio::select! {
                    _ = passes_on => return,
                    _ = stands.wait_for(|stands| *stands) => {}
                }
                // Its connections stay, and are not read.
                std::future::pending::<()>().await;
            });
        }
    });
    (stand_still, at)
}

async fn serves_among(server: &Server, others: &[String]) {
    let store = server.connect_among(others).await;
    for n in 0..50 {
        let key = format!("/among/{n}");
        let put = store.put(&key, "v".into(), Expect::Absent, None).await;
        assert!(put.is_ok(), "{n}: {put:?}");
        let found = store.get(&key, None).await;
        assert!(matches!(found, Ok(Some(_))), "{n}: {found:?}");
        let watched = store.watch("/among/", put.unwrap_or_default()).await;
        assert!(watched.is_ok(), "{n}: {:?}", watched.err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_range_is_read_in_pages_at_one_revision() {
    let Some((store, _server)) = open().await else {
        return;
    };
    let store = std::sync::Arc::new(store);
    const KEYS: usize = 5_300;
    let writers = (0..50).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in (writer..KEYS).step_by(50) {
                put(&*store, &format!("/many/{n:05}"), "v").await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer");
    }
    let range = store
        .range(RangeRequest {
            prefix: "/many/",
            ..Default::default()
        })
        .await;
    let range = range.expect("range");
    assert_eq!((range.items.len(), range.remaining), (KEYS, 0));
    assert!(range.items.is_sorted_by(|a, b| a.key < b.key));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_see_one_store() {
    let Some((first, server)) = open().await else {
        return;
    };
    let second = server.connect().await;
    let written = put(&first, "/a", "1").await;
    let mut watch = second.watch("/", written).await.expect("watch");
    assert_eq!(second.current_revision().await.expect("revision"), written);
    let conflict = second.put("/a", "2".into(), Expect::Absent, None).await;
    assert!(
        matches!(conflict, Err(StoreError::Conflict { current: Some(_) })),
        "{conflict:?}"
    );
    let (deleted, _) = first
        .delete("/a", Expect::ModRevision(written))
        .await
        .expect("delete");
    let events = events_until(&mut watch, deleted).await;
    assert!(matches!(&events[..], [Event::Delete { .. }]), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_server_ends_watches_and_a_restarted_one_is_used_again() {
    let Some((store, mut server)) = open().await else {
        return;
    };
    let written = put(&store, "/a", "1").await;
    let mut watch = store.watch("/", written).await.expect("watch");
    server.process.kill();
    let told = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
    let told = told
        .expect("the watch hangs")
        .expect("an item")
        .expect_err("is lost");
    assert!(matches!(told, StoreError::Unavailable(_)), "{told:?}");

    let down = store.get("/a", None).await;
    assert!(matches!(down, Err(StoreError::Unavailable(_))), "{down:?}");

    server.process.restart().expect("etcd");
    let mut again = None;
    for _ in 0..600 {
        match store
            .put("/a", "2".into(), Expect::ModRevision(written), None)
            .await
        {
            Ok(revision) => {
                again = Some(revision);
                break;
            }
            Err(StoreError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(other) => panic!("{other}"),
        }
    }
    let again = again.expect("the restarted server is not used");
    let mut watch = store.watch("/", written).await.expect("watch");
    assert_eq!(events_until(&mut watch, again).await.len(), 1);
}
