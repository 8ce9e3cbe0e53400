//! Clients that know of all servers, and go on at the next one when one does not answer.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use kube::{Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::cluster::{Cluster, SERVERS};

pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// What clients of the cluster know, whichever server they ask.
pub(crate) struct Clients {
    by_server: Vec<Client>,
    /// The ConfigMaps of which a server has said that they are there.
    pub(crate) acknowledged: Mutex<BTreeSet<String>>,
    writing: AtomicBool,
}

pub(crate) fn maps(client: Client) -> Api<ConfigMap> {
    Api::namespaced(client, "default")
}

impl Clients {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self {
            by_server: cluster.clients(),
            acknowledged: Mutex::default(),
            writing: AtomicBool::new(true),
        }
    }

    pub(crate) fn client(&self, server: usize) -> Client {
        self.by_server[server % SERVERS].clone()
    }

    pub(crate) fn maps(&self, server: usize) -> Api<ConfigMap> {
        maps(self.client(server))
    }

    pub(crate) fn are_writing(&self) -> bool {
        self.writing.load(Ordering::Relaxed)
    }

    pub(crate) fn stop_writing(&self) {
        self.writing.store(false, Ordering::Relaxed);
    }

    /// Asks one server after the other, until one has done it: an object that is there already is what was asked for.
    pub(crate) async fn tell<T>(&self, ask: impl AsyncFn(Client) -> kube::Result<T>) -> Option<T> {
        for server in 0.. {
            match ask(self.client(server)).await {
                Ok(answer) => return Some(answer),
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return None,
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        None
    }

    /// Creates one object after another.
    pub(crate) async fn write(&self, writer: usize) {
        let mut server = writer;
        let mut number = 0;
        while self.are_writing() {
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

    /// Watches from `version` on, and says how the watch was refused: that it ends is none.
    pub(crate) async fn watch<K>(
        &self,
        api: impl Fn(Client) -> Api<K>,
        mut server: usize,
        mut version: String,
        mut note: impl FnMut(u64, WatchEvent<K>),
    ) -> String
    where
        K: Resource + Clone + Debug + DeserializeOwned,
    {
        loop {
            let parameters = WatchParams::default().timeout(30);
            let stream = api(self.client(server)).watch(&parameters, &version).await;
            let Ok(stream) = stream else {
                server += 1;
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let mut stream = stream.boxed();
            while let Some(event) = stream.next().await {
                match event {
                    // The server has not seen that version yet: another one has.
                    Ok(WatchEvent::Error(status)) if status.code == 504 => break,
                    Ok(WatchEvent::Error(status)) => return format!("{status:?}"),
                    Ok(WatchEvent::Bookmark(bookmark)) => {
                        version = bookmark.metadata.resource_version;
                    }
                    Ok(event) => {
                        let (WatchEvent::Added(object)
                        | WatchEvent::Modified(object)
                        | WatchEvent::Deleted(object)) = &event
                        else {
                            continue;
                        };
                        let told = object.meta().resource_version.clone();
                        version = told.expect("an object has a version");
                        let number = version.parse().expect("a version is a number here");
                        note(number, event);
                    }
                    Err(_) => break,
                }
            }
            server += 1;
        }
    }
}
