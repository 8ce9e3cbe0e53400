//! Three API servers over one etcd: any of them may die at any moment, and its clients go on with the others.

mod chaos;
mod clients;
mod cluster;
mod hollow;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{ListParams, WatchEvent};
use parking_lot::Mutex;

use crate::clients::{Clients, PAUSE, maps};
use crate::cluster::{Cluster, SERVERS};

const KILLS: usize = 3;
const BETWEEN_KILLS: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_may_die_while_clients_write_and_watch() {
    if !windlass_loopback::is_etcd_installed() {
        return;
    }
    let mut cluster = Cluster::start(1).await;
    let clients = Arc::new(Clients::of(&cluster));
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
            tokio::spawn(async move {
                let note = |version, event| seen.lock().push((version, added(event)));
                clients.watch(maps, server, from, note).await
            })
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
    clients.stop_writing();
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

fn added(event: WatchEvent<ConfigMap>) -> String {
    match event {
        WatchEvent::Added(map) => map.name_any(),
        other => panic!("nobody does that: {other:?}"),
    }
}

/// Each finds that the `kubernetes` Service is not as it would have it, for their ports differ, and writes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_start_at_the_same_moment_all_serve() {
    if !windlass_loopback::is_etcd_installed() {
        return;
    }
    let mut cluster = Cluster::start(1).await;
    for _ in 0..5 {
        for server in 0..SERVERS {
            cluster.kill(server);
        }
        cluster.restart_all().await;
    }
}
