//! Whose an address is: pods, Services and nodes, as the cluster knows them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use parking_lot::RwLock;
use tokio::sync::watch;
use windlass_proto::agent::v1::Party;

/// Kinds that give names.
const KINDS: usize = 3;

/// An object by its kind, namespace and name.
type Key = (&'static str, String, String);

#[derive(Default)]
pub struct Names {
    by_address: HashMap<IpAddr, Party>,
    by_node_port: HashMap<u16, Party>,
    /// What to forget with an object.
    held: HashMap<Key, (Vec<IpAddr>, Vec<u16>)>,
}

impl Names {
    /// The party at an address; known by the address alone when nobody else is there.
    pub fn party(&self, address: IpAddr, port: u16) -> Party {
        let mut party = self.by_address.get(&address).cloned().unwrap_or_default();
        if party.pod.is_empty()
            && party.service.is_empty()
            && !party.node.is_empty()
            && let Some(service) = self.by_node_port.get(&port)
        {
            party.namespace.clone_from(&service.namespace);
            party.service.clone_from(&service.service);
        }
        party.address = address.to_string();
        party.port = u32::from(port);
        party
    }

    fn set(&mut self, key: Key, named: Named) {
        self.forget(&key);
        for address in &named.addresses {
            self.by_address.insert(*address, named.party.clone());
        }
        for port in &named.node_ports {
            self.by_node_port.insert(*port, named.party.clone());
        }
        self.held.insert(key, (named.addresses, named.node_ports));
    }

    fn forget(&mut self, key: &Key) {
        let Some((addresses, ports)) = self.held.remove(key) else {
            return;
        };
        let is_its = |party: &Party| match key.0 {
            "Pod" => party.pod == key.2 && party.namespace == key.1,
            "Service" => party.service == key.2 && party.namespace == key.1,
            _ => party.node == key.2,
        };
        for address in addresses {
            // It may be somebody else's by now.
            if self.by_address.get(&address).is_some_and(is_its) {
                self.by_address.remove(&address);
            }
        }
        for port in ports {
            if self.by_node_port.get(&port).is_some_and(is_its) {
                self.by_node_port.remove(&port);
            }
        }
    }

    /// Follows the cluster for as long as it is polled; `synced` counts the kinds that are
    /// complete.
    pub(crate) async fn follow(
        client: Client,
        names: Arc<RwLock<Self>>,
        synced: watch::Sender<usize>,
    ) {
        tokio::join!(
            follow_kind::<Pod>(client.clone(), &names, &synced),
            follow_kind::<Service>(client.clone(), &names, &synced),
            follow_kind::<Node>(client, &names, &synced),
        );
    }

    pub(crate) fn is_complete(synced: usize) -> bool {
        synced == KINDS
    }
}

/// What an object gives its name to.
struct Named {
    party: Party,
    addresses: Vec<IpAddr>,
    node_ports: Vec<u16>,
}

trait Source:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static
{
    const KIND: &'static str;
    fn named(&self) -> Named;
}

impl Source for Pod {
    const KIND: &'static str = "Pod";

    fn named(&self) -> Named {
        let spec = self.spec.as_ref();
        // Those on the host's network have the node's address, which is the node's.
        let own = spec.is_none_or(|spec| spec.host_network != Some(true));
        let status = self.status.as_ref().filter(|status| {
            own && !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
        });
        let ips = status
            .into_iter()
            .flat_map(|status| status.pod_ips.iter().flatten());
        Named {
            party: Party {
                namespace: self.namespace().unwrap_or_default(),
                pod: self.name_any(),
                node: spec
                    .and_then(|spec| spec.node_name.clone())
                    .unwrap_or_default(),
                ..Party::default()
            },
            addresses: ips.filter_map(|ip| ip.ip.parse().ok()).collect(),
            node_ports: Vec::new(),
        }
    }
}

impl Source for Service {
    const KIND: &'static str = "Service";

    fn named(&self) -> Named {
        let spec = self.spec.as_ref();
        let ips = spec.into_iter().flat_map(|spec| {
            let all = spec.cluster_ips.iter().chain(&spec.external_ips);
            all.flatten()
        });
        let status = self
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        let balancers = status
            .into_iter()
            .flat_map(|status| status.ingress.iter().flatten());
        let ports = spec
            .into_iter()
            .flat_map(|spec| spec.ports.iter().flatten());
        Named {
            party: Party {
                namespace: self.namespace().unwrap_or_default(),
                service: self.name_any(),
                ..Party::default()
            },
            addresses: ips
                .chain(balancers.filter_map(|ingress| ingress.ip.as_ref()))
                .filter_map(|ip| ip.parse().ok())
                .collect(),
            node_ports: ports
                .filter_map(|port| u16::try_from(port.node_port?).ok())
                .collect(),
        }
    }
}

impl Source for Node {
    const KIND: &'static str = "Node";

    fn named(&self) -> Named {
        let status = self.status.as_ref();
        let addresses = status
            .into_iter()
            .flat_map(|status| status.addresses.iter().flatten());
        Named {
            party: Party {
                node: self.name_any(),
                ..Party::default()
            },
            addresses: addresses
                .filter_map(|address| address.address.parse().ok())
                .collect(),
            node_ports: Vec::new(),
        }
    }
}

async fn follow_kind<K: Source>(
    client: Client,
    names: &RwLock<Names>,
    synced: &watch::Sender<usize>,
) {
    let key = |object: &K| {
        (
            K::KIND,
            object.namespace().unwrap_or_default(),
            object.name_any(),
        )
    };
    let mut events = watcher(Api::<K>::all(client), watcher::Config::default())
        .default_backoff()
        .boxed();
    let mut told = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                names.write().set(key(&object), object.named());
            }
            Ok(watcher::Event::Delete(object)) => names.write().forget(&key(&object)),
            Ok(watcher::Event::InitDone) => {
                if !std::mem::replace(&mut told, true) {
                    synced.send_modify(|kinds| *kinds += 1);
                }
            }
            Ok(watcher::Event::Init) => {}
            Err(error) => tracing::debug!(%error, kind = K::KIND, "watch for names interrupted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ip: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "a", "name": name},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"podIPs": [{"ip": ip}]},
        }))
        .unwrap()
    }

    fn set<K: Source>(names: &mut Names, object: &K) -> Key {
        let key = (
            K::KIND,
            object.namespace().unwrap_or_default(),
            object.name_any(),
        );
        names.set(key.clone(), object.named());
        key
    }

    #[test]
    fn an_address_that_passed_on_to_another_pod_keeps_its_new_name() {
        let mut names = Names::default();
        let old = set(&mut names, &pod("old", "10.0.0.5"));
        set(&mut names, &pod("new", "10.0.0.5"));
        names.forget(&old);
        let party = names.party("10.0.0.5".parse().unwrap(), 80);
        assert_eq!((party.pod.as_str(), party.node.as_str()), ("new", "n1"));
        let stranger = names.party("192.0.2.9".parse().unwrap(), 1);
        assert_eq!(
            (stranger.pod.as_str(), stranger.address.as_str()),
            ("", "192.0.2.9")
        );
    }

    #[test]
    fn a_node_port_names_its_service_and_the_node() {
        let mut names = Names::default();
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        }))
        .unwrap();
        let service: Service = serde_json::from_value(json!({
            "metadata": {"namespace": "a", "name": "web"},
            "spec": {"clusterIPs": ["10.96.0.7"], "ports": [{"port": 80, "nodePort": 30_080}]},
        }))
        .unwrap();
        set(&mut names, &node);
        set(&mut names, &service);
        let party = names.party("192.0.2.1".parse().unwrap(), 30_080);
        assert_eq!((party.service.as_str(), party.node.as_str()), ("web", "n1"));
        assert_eq!(names.party("192.0.2.1".parse().unwrap(), 22).service, "");
        assert_eq!(names.party("10.96.0.7".parse().unwrap(), 80).service, "web");
    }
}
