//! Three API servers over one etcd: any of them may die at any moment, and its clients go on with the others.

mod cluster;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;

use crate::cluster::{Cluster, SERVERS};

const KILLS: usize = 3;
const BETWEEN_KILLS: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// What clients of the cluster know, whichever server they ask.
struct Clients {
    by_server: Vec<Client>,
    acknowledged: Mutex<BTreeSet<String>>,
    writing: AtomicBool,
}

impl Clients {
    fn maps(&self, server: usize) -> Api<ConfigMap> {
        Api::namespaced(self.by_server[server % SERVERS].clone(), "default")
    }

    /// Creates one object after another; goes on at the next server when one does not answer.
    async fn write(&self, writer: usize) {
        let mut server = writer;
        let mut number = 0;
        while self.writing.load(Ordering::Relaxed) {
            let name = format!("written-{writer}-{number}");
            let map = ConfigMap {
                metadata: kube::core::ObjectMeta {
                    name: Some(name.clone()),
                    ..Default::default()
                },
                ..Default::default()
            };
            match self.maps(server).create(&PostParams::default(), &map).await {
                Ok(_) => {}
                // An earlier attempt was heard, only its answer was not.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(_) => {
                    server += 1;
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            self.acknowledged.lock().insert(name);
            number += 1;
        }
    }

    /// Watches from `from` on, at the next server when one ends it; returns what it has seen when `done` holds.
    async fn watch(
        &self,
        mut server: usize,
        from: String,
        seen: &Mutex<Vec<(u64, String)>>,
    ) -> Result<(), String> {
        let mut version = from;
        loop {
            let parameters = WatchParams::default().timeout(30);
            let stream = self.maps(server).watch(&parameters, &version).await;
            let Ok(stream) = stream else {
                server += 1;
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let mut stream = stream.boxed();
            while let Some(event) = stream.next().await {
                match event {
                    Ok(WatchEvent::Added(map)) => {
                        version = map.resource_version().expect("an object has a version");
                        let number = version.parse().expect("a version is a number here");
                        seen.lock().push((number, map.name_any()));
                    }
                    Ok(WatchEvent::Error(status)) => return Err(format!("{status:?}")),
                    Ok(WatchEvent::Bookmark(bookmark)) => {
                        version = bookmark.metadata.resource_version;
                    }
                    Ok(other) => return Err(format!("nobody does that: {other:?}")),
                    Err(_) => break,
                }
            }
            server += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_die_while_clients_write_and_watch() {
    if !windlass_loopback::is_etcd_installed() {
        return;
    }
    let mut cluster = Cluster::start().await;
    let clients = Arc::new(Clients {
        by_server: cluster.clients(),
        acknowledged: Mutex::default(),
        writing: AtomicBool::new(true),
    });
    let list = clients.maps(0).list(&ListParams::default()).await;
    let list = list.expect("the first server answers");
    let before: BTreeSet<String> = list.iter().map(ResourceExt::name_any).collect();
    let from = list
        .metadata
        .resource_version
        .expect("a list has a version");

    let seen: Vec<_> = (0..SERVERS)
        .map(|_| Arc::new(Mutex::new(Vec::new())))
        .collect();
    let watchers: Vec<_> = seen
        .iter()
        .enumerate()
        .map(|(server, seen)| {
            let (clients, seen, from) = (clients.clone(), seen.clone(), from.clone());
            tokio::spawn(async move { clients.watch(server, from, &seen).await })
        })
        .collect();
    let writers: Vec<_> = (0..SERVERS)
        .map(|writer| {
            let clients = clients.clone();
            tokio::spawn(async move { clients.write(writer).await })
        })
        .collect();

    for kill in 0..KILLS {
        tokio::time::sleep(BETWEEN_KILLS).await;
        let count = clients.acknowledged.lock().len();
        cluster.kill(kill % SERVERS);
        // While it is away, clients go on.
        let deadline = Instant::now() + PATIENCE;
        while clients.acknowledged.lock().len() < count + 10 {
            assert!(
                Instant::now() < deadline,
                "nobody can write while server {kill} is away"
            );
            tokio::time::sleep(PAUSE).await;
        }
        cluster.restart(kill % SERVERS).await;
    }
    clients.writing.store(false, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("a writer");
    }

    let acknowledged = clients.acknowledged.lock().clone();
    for server in 0..SERVERS {
        let list = clients.maps(server).list(&ListParams::default()).await;
        let list = list.expect("every server answers again");
        let names: BTreeSet<String> = list.iter().map(ResourceExt::name_any).collect();
        let lost: Vec<_> = acknowledged.difference(&names).collect();
        assert!(lost.is_empty(), "server {server} has lost {lost:?}");

        let written: Vec<String> = names.difference(&before).cloned().collect();
        let deadline = Instant::now() + PATIENCE;
        while seen[server].lock().len() < written.len() && Instant::now() < deadline {
            assert!(!watchers[server].is_finished(), "a watch was refused");
            tokio::time::sleep(PAUSE).await;
        }
        let events = seen[server].lock().clone();
        assert!(
            events.is_sorted_by(|(a, _), (b, _)| a < b),
            "a watch repeats events or mixes them up"
        );
        let told: BTreeSet<String> = events.iter().map(|(_, name)| name.clone()).collect();
        let missed: Vec<_> = written
            .iter()
            .filter(|name| !told.contains(*name))
            .collect();
        assert!(missed.is_empty(), "watch {server} has missed {missed:?}");
    }
    for watcher in watchers {
        assert!(!watcher.is_finished(), "{:?}", watcher.await);
        watcher.abort();
    }
}

/// Each finds that the `kubernetes` Service is not as it would have it, for their ports differ, and writes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_start_at_the_same_moment_all_serve() {
    if !windlass_loopback::is_etcd_installed() {
        return;
    }
    let mut cluster = Cluster::start().await;
    for _ in 0..5 {
        for server in 0..SERVERS {
            cluster.kill(server);
        }
        cluster.restart_all().await;
    }
}
