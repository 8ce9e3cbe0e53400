//! The cluster's zone: which records the Services, EndpointSlices and namespaces of the moment make.
//!
//! Here is what is known; `answer` says what a question gets for it.

mod answer;
mod names;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

pub use self::answer::{Answer, TTL};
use self::names::absolute;

/// Namespace and name.
type Key = (String, String);

/// The records of one cluster domain.
pub struct Zone {
    origin: Name,
    /// The origin in lower case with a leading dot: what every name of the zone ends with.
    suffix: String,
    services: HashMap<Key, ServiceEntry>,
    /// By namespace and slice name.
    slices: HashMap<Key, Slice>,
    /// Which slices a Service has.
    by_service: HashMap<Key, HashSet<String>>,
    reverse: HashMap<IpAddr, BTreeMap<Key, Name>>,
    /// Empty as long as they are not known.
    namespaces: HashSet<String>,
}

struct ServiceEntry {
    addresses: Vec<IpAddr>,
    headless: bool,
    publish_not_ready: bool,
    external_name: Option<Name>,
    ports: Vec<Port>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Port {
    name: String,
    /// `tcp`, `udp` or `sctp`.
    protocol: String,
    number: u16,
}

struct Slice {
    service: String,
    endpoints: Vec<EndpointEntry>,
    ports: Vec<Port>,
}

struct EndpointEntry {
    addresses: Vec<IpAddr>,
    hostname: Option<String>,
    ready: bool,
}

impl Zone {
    /// An empty zone for a cluster domain such as `cluster.local`.
    ///
    /// # Errors
    /// When the domain is not a DNS name.
    pub fn new(domain: &str) -> Result<Self, hickory_proto::ProtoError> {
        let mut origin = Name::from_ascii(domain)?.to_lowercase();
        origin.set_fqdn(true);
        Ok(Self {
            suffix: format!(".{}", origin.to_ascii()),
            origin,
            services: HashMap::new(),
            slices: HashMap::new(),
            by_service: HashMap::new(),
            reverse: HashMap::new(),
            namespaces: HashSet::new(),
        })
    }

    pub fn add_namespace(&mut self, name: &str) {
        if !self.namespaces.contains(name) {
            self.namespaces.insert(name.to_owned());
        }
    }

    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Takes over a Service's present state.
    pub fn set_service(&mut self, service: &Service) {
        let Some(key) = key(&service.metadata) else {
            return;
        };
        self.remove_service(&key.0, &key.1);
        let Some(spec) = &service.spec else { return };
        let is_alias = spec.type_.as_deref() == Some("ExternalName");
        let external = spec.external_name.as_deref().filter(|_| is_alias);
        let external = external.and_then(absolute);
        if is_alias && external.is_none() {
            return;
        }
        let ips = spec.cluster_ips.as_deref().unwrap_or_default();
        let addresses: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.parse().ok()).collect();
        if let Some(name) = self.name(&[&key.1, &key.0, "svc"]) {
            for address in &addresses {
                self.reverse
                    .entry(*address)
                    .or_default()
                    .insert(key.clone(), name.clone());
            }
        }
        let ports = spec.ports.iter().flatten().map(|port| Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port
                .protocol
                .as_deref()
                .unwrap_or("TCP")
                .to_ascii_lowercase(),
            number: u16::try_from(port.port).unwrap_or_default(),
        });
        self.services.insert(
            key,
            ServiceEntry {
                headless: external.is_none() && spec.cluster_ip.as_deref() == Some("None"),
                addresses,
                publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
                external_name: external,
                ports: ports.collect(),
            },
        );
    }

    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(old) = self.services.remove(&key) {
            self.forget_reverse(&old.addresses, &key);
        }
    }

    /// Takes over an EndpointSlice's present state.
    pub fn set_slice(&mut self, slice: &EndpointSlice) {
        let Some((namespace, name)) = key(&slice.metadata) else {
            return;
        };
        self.remove_slice(&namespace, &name);
        let labels = slice.metadata.labels.as_ref();
        let Some(service) = labels.and_then(|l| l.get("kubernetes.io/service-name")) else {
            return;
        };
        let endpoints: Vec<_> = slice
            .endpoints
            .iter()
            .map(|endpoint| EndpointEntry {
                addresses: endpoint
                    .addresses
                    .iter()
                    .filter_map(|a| a.parse().ok())
                    .collect(),
                hostname: endpoint.hostname.clone(),
                ready: endpoint
                    .conditions
                    .as_ref()
                    .and_then(|c| c.ready)
                    .unwrap_or(true),
            })
            .collect();
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.ready) {
            // PTR records of pods exist for those with a hostname of their own (specification, 2.4.2).
            let Some(hostname) = &endpoint.hostname else {
                continue;
            };
            let Some(full) = self.name(&[hostname, service, &namespace, "svc"]) else {
                continue;
            };
            for address in &endpoint.addresses {
                let owner = (namespace.clone(), format!("{name}/{hostname}"));
                self.reverse
                    .entry(*address)
                    .or_default()
                    .insert(owner, full.clone());
            }
        }
        let ports = slice.ports.iter().flatten().map(|port| Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port
                .protocol
                .as_deref()
                .unwrap_or("TCP")
                .to_ascii_lowercase(),
            number: port
                .port
                .and_then(|p| u16::try_from(p).ok())
                .unwrap_or_default(),
        });
        let entry = Slice {
            service: service.clone(),
            endpoints,
            ports: ports.collect(),
        };
        let owner = (namespace.clone(), service.clone());
        self.by_service
            .entry(owner)
            .or_default()
            .insert(name.clone());
        self.slices.insert((namespace, name), entry);
    }

    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let Some(old) = self.slices.remove(&key) else {
            return;
        };
        for endpoint in &old.endpoints {
            if let Some(hostname) = &endpoint.hostname {
                let owner = (namespace.to_owned(), format!("{name}/{hostname}"));
                self.forget_reverse(&endpoint.addresses, &owner);
            }
        }
        let owner = (namespace.to_owned(), old.service);
        if let Some(slices) = self.by_service.get_mut(&owner) {
            slices.remove(name);
            if slices.is_empty() {
                self.by_service.remove(&owner);
            }
        }
    }

    fn forget_reverse(&mut self, addresses: &[IpAddr], owner: &Key) {
        for address in addresses {
            if let Some(names) = self.reverse.get_mut(address) {
                names.remove(owner);
                if names.is_empty() {
                    self.reverse.remove(address);
                }
            }
        }
    }

    /// A name below the origin; `None` where a label is not valid in DNS.
    fn name(&self, labels: &[&str]) -> Option<Name> {
        let relative = Name::from_labels(labels.iter().map(|l| l.as_bytes())).ok()?;
        relative.append_domain(&self.origin).ok()
    }
}

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<Key> {
    Some((meta.namespace.clone()?, meta.name.clone()?))
}
