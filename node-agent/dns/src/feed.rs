//! Keeps the zone true: a watch each of Services, EndpointSlices and namespaces.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::RwLock;
use tokio::sync::watch::Sender;

use crate::zone::Zone;

/// How many kinds have to be read before anything is answered.
pub(crate) const KINDS: usize = 3;

/// A kind that makes records.
trait Source: kube::Resource<DynamicType = ()> + Clone + Send + 'static {
    /// Whether the zone is of use without it, should it be forbidden to read.
    const OPTIONAL: bool = false;

    fn set(&self, zone: &mut Zone);
    fn remove(zone: &mut Zone, namespace: &str, name: &str);
}

impl Source for Service {
    fn set(&self, zone: &mut Zone) {
        zone.set_service(self);
    }

    fn remove(zone: &mut Zone, namespace: &str, name: &str) {
        zone.remove_service(namespace, name);
    }
}

impl Source for EndpointSlice {
    fn set(&self, zone: &mut Zone) {
        zone.set_slice(self);
    }

    fn remove(zone: &mut Zone, namespace: &str, name: &str) {
        zone.remove_slice(namespace, name);
    }
}

impl Source for Namespace {
    const OPTIONAL: bool = true;

    fn set(&self, zone: &mut Zone) {
        zone.add_namespace(&self.name_any());
    }

    fn remove(zone: &mut Zone, _: &str, name: &str) {
        zone.remove_namespace(name);
    }
}

/// Follows these kinds until dropped; `synced` counts those that were read completely.
pub(crate) async fn follow(client: Client, zone: Arc<RwLock<Zone>>, synced: Sender<usize>) {
    tokio::join!(
        follow_kind::<Service>(client.clone(), &zone, &synced),
        follow_kind::<EndpointSlice>(client.clone(), &zone, &synced),
        follow_kind::<Namespace>(client, &zone, &synced),
    );
}

async fn follow_kind<K>(client: Client, zone: &RwLock<Zone>, synced: &Sender<usize>)
where
    K: Source + std::fmt::Debug + for<'de> k8s_openapi::serde::Deserialize<'de>,
{
    let api: Api<K> = Api::all(client);
    let mut events = watch(api, watcher::Config::default())
        .default_backoff()
        .boxed();
    // What the list now being read has shown, and what the zone holds from before it.
    let mut listed: HashSet<(String, String)> = HashSet::new();
    let mut held: HashSet<(String, String)> = HashSet::new();
    let mut first = true;
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                // The watcher goes on by itself, with backoff; the zone serves what it knows.
                tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted");
                if K::OPTIONAL && std::mem::take(&mut first) {
                    synced.send_modify(|kinds| *kinds += 1);
                }
                continue;
            }
        };
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                listed.insert(identity(&object));
                object.set(&mut zone.write());
            }
            Event::InitDone => {
                let mut zone = zone.write();
                for (namespace, name) in held.difference(&listed) {
                    K::remove(&mut zone, namespace, name);
                }
                held = std::mem::take(&mut listed);
                if std::mem::take(&mut first) {
                    synced.send_modify(|kinds| *kinds += 1);
                }
            }
            Event::Apply(object) => {
                held.insert(identity(&object));
                object.set(&mut zone.write());
            }
            Event::Delete(object) => {
                let (namespace, name) = identity(&object);
                K::remove(&mut zone.write(), &namespace, &name);
                held.remove(&(namespace, name));
            }
        }
    }
}

fn identity<K: kube::Resource>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}
