//! Host ports: a pod's container port that answers on the node's own addresses.
//!
//! Kubernetes hands them to the network plugin (CNI's `portMappings`), which calls
//! [`HostPorts::replace`] with all of this node's. In the datapath they are services of one
//! endpoint each, dialled as NodePorts are: from outside, from pods and from the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tokio::sync::watch;
use windlass_datapath::types::{Addr, BackendValue, ServiceKey};

use crate::{AttachmentKey, PodInterface};

use super::{
    compile::{DesiredPort, EndpointState, Policy, PortKey},
    parse::ServiceName,
};

/// One port of one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub namespace: String,
    /// The pod's name, or anything else that tells two of one namespace apart.
    pub pod: String,
    /// The pod's addresses, of both families if it has both.
    pub addresses: Vec<IpAddr>,
    /// The one address that it answers on; `None` or an unspecified one: all of the node's.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    /// One of [`windlass_datapath::types::protocol`].
    pub protocol: u8,
}

/// Who says which host ports there are; clones share one state.
#[derive(Clone, Debug)]
pub struct HostPorts(Arc<watch::Sender<Vec<HostPort>>>);

impl HostPorts {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }

    /// All host ports of this node's pods. To be called with what survived a restart before
    /// the controller runs, or those would be withdrawn for a moment.
    pub fn replace(&self, mut ports: Vec<HostPort>) {
        ports.sort();
        ports.dedup();
        self.0.send_if_modified(|held| {
            let changed = *held != ports;
            *held = ports;
            changed
        });
    }

    /// Keeps to what the pods' interfaces say, for as long as it is polled.
    pub async fn follow(&self, mut interfaces: watch::Receiver<Arc<Interfaces>>) {
        loop {
            let ports = of_interfaces(&interfaces.borrow_and_update());
            self.replace(ports);
            if interfaces.changed().await.is_err() {
                return;
            }
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Vec<HostPort>> {
        self.0.subscribe()
    }
}

type Interfaces = BTreeMap<AttachmentKey, PodInterface>;

/// The host ports of these pods.
pub fn of_interfaces(interfaces: &Interfaces) -> Vec<HostPort> {
    let of_one = |interface: &PodInterface| {
        let (pod, addresses) = (interface.pod.clone(), interface.link.addresses.clone());
        // A sandbox that replaces another of the same pod comes before that one is gone.
        let name = format!("{}/{}", pod.name, interface.key.container_id);
        let ports = interface.ports.clone().into_iter();
        ports.map(move |port| HostPort {
            namespace: pod.namespace.clone(),
            pod: name.clone(),
            addresses: addresses.clone(),
            host_ip: port.host_ip,
            host_port: port.host_port,
            container_port: port.container_port,
            protocol: port.protocol,
        })
    };
    interfaces.values().flat_map(of_one).collect()
}

/// Groups by pod, under a name that no Service can have.
pub(super) fn by_owner(ports: &[HostPort]) -> BTreeMap<ServiceName, Vec<HostPort>> {
    let mut owners: BTreeMap<ServiceName, Vec<HostPort>> = BTreeMap::new();
    for port in ports {
        let name = ServiceName::new(port.namespace.as_str(), format!("pod/{}", port.pod));
        owners.entry(name).or_default().push(port.clone());
    }
    owners
}

pub(super) fn compile(owner: &ServiceName, ports: &[HostPort]) -> Vec<DesiredPort> {
    let mut compiled = Vec::new();
    for port in ports {
        let host_ip = port.host_ip.filter(|ip| !ip.is_unspecified());
        for address in &port.addresses {
            let is_v4 = address.is_ipv4();
            // 0.0.0.0 is every IPv4 address only; so is `::` for IPv6.
            if port.host_ip.is_some_and(|ip| ip.is_ipv4() != is_v4) {
                continue;
            }
            let frontend = match host_ip {
                Some(ip) => ServiceKey::new(Addr::from(ip), port.host_port, port.protocol),
                None => ServiceKey::node_port(is_v4, port.host_port, port.protocol),
            };
            let backend =
                BackendValue::new(Addr::from(*address), port.container_port, port.protocol);
            let host = host_ip.map_or_else(|| "*".to_owned(), |ip| ip.to_string());
            compiled.push(DesiredPort {
                key: PortKey {
                    service: owner.clone(),
                    port: format!("{host}:{}", port.host_port).into(),
                    protocol: port.protocol,
                    is_v4,
                    policy: Policy::Cluster,
                },
                frontends: [(frontend, 0)].into(),
                endpoints: [(backend, EndpointState::Ready)].into(),
                ready_here: [*address].into(),
                affinity_seconds: 0,
                source_ranges: BTreeSet::new(),
                hashed: false,
            });
        }
    }
    compiled
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_datapath::types::protocol::{TCP, UDP};

    fn port(host_ip: Option<&str>, protocol: u8) -> HostPort {
        HostPort {
            namespace: "d".into(),
            pod: "web".into(),
            addresses: vec!["10.244.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: 8080,
            container_port: 80,
            protocol,
        }
    }

    fn frontends(port: &HostPort) -> Vec<ServiceKey> {
        let owners = by_owner(std::slice::from_ref(port));
        let (owner, ports) = owners.first_key_value().unwrap();
        let compiled = compile(owner, ports);
        compiled
            .iter()
            .flat_map(|port| port.frontends.keys().copied())
            .collect()
    }

    #[test]
    fn without_an_address_of_its_own_it_answers_on_all_of_both_families() {
        let all = [
            ServiceKey::node_port(true, 8080, TCP),
            ServiceKey::node_port(false, 8080, TCP),
        ];
        assert_eq!(frontends(&port(None, TCP)), all);
        assert_eq!(frontends(&port(Some("0.0.0.0"), TCP)), all[..1]);
        assert_eq!(frontends(&port(Some("::"), TCP)), all[1..]);
    }

    #[test]
    fn with_an_address_it_answers_there_and_only_for_its_family() {
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let expected = ServiceKey::new(Addr::from(ip), 8080, UDP);
        assert_eq!(frontends(&port(Some("192.0.2.1"), UDP)), [expected]);
    }

    #[test]
    fn one_port_on_two_addresses_is_two_things() {
        let ports = [port(Some("192.0.2.1"), TCP), port(Some("192.0.2.2"), TCP)];
        let owners = by_owner(&ports);
        let (owner, ports) = owners.first_key_value().unwrap();
        let keys: BTreeSet<_> = compile(owner, ports)
            .into_iter()
            .map(|port| port.key)
            .collect();
        assert_eq!(keys.len(), 2);
    }
}
