//! The cluster's zone: which records the Services and EndpointSlices of the moment make.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// How long clients may keep an answer, in seconds: short, because endpoints move.
pub const TTL: u32 = 5;
/// The version of the specification, served as `dns-version.<zone>`.
const SPECIFICATION: &str = "1.1.0";

/// What the zone says to a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Records(Vec<Record>),
    /// An ExternalName Service: the alias, and the name that the server looks up to complete it.
    Alias(Box<(Record, Name)>),
    /// The name exists, but has no record of that type.
    NoData,
    /// The name does not exist.
    NoName,
    /// Not a name of the cluster.
    Foreign,
}

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
        })
    }

    /// Takes over a Service's present state.
    pub fn set_service(&mut self, service: &Service) {
        let Some(key) = key(&service.metadata) else {
            return;
        };
        self.remove_service(&key.0, &key.1);
        let Some(spec) = &service.spec else { return };
        let external = (spec.type_.as_deref() == Some("ExternalName"))
            .then(|| spec.external_name.as_deref().and_then(absolute))
            .flatten();
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
        for endpoint in &endpoints {
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

    /// What the zone says about `name`.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let lower = name.to_ascii().to_ascii_lowercase();
        if let Some(address) = reverse_address(&lower) {
            return self.reverse_answer(name, address, kind);
        }
        if *name == self.origin {
            return self.origin_answer(name, kind);
        }
        let Some(relative) = lower.strip_suffix(&self.suffix) else {
            return Answer::Foreign;
        };
        let labels: Vec<&str> = relative.split('.').collect();
        match labels.as_slice() {
            ["dns-version"] => {
                let version = RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]));
                pick(vec![Record::from_rdata(name.clone(), TTL, version)], kind)
            }
            ["svc"] => Answer::NoData,
            [namespace, "svc"] => self.namespace_answer(namespace),
            [service, namespace, "svc"] => self.service_answer(name, service, namespace, kind),
            [port, protocol, service, namespace, "svc"]
                if port.starts_with('_') && protocol.starts_with('_') =>
            {
                self.port_answer(name, [port, protocol, service, namespace], kind)
            }
            [hostname, service, namespace, "svc"] => {
                self.endpoint_answer(name, hostname, service, namespace, kind)
            }
            [dashed, _namespace, "pod"] => match dashed_address(dashed) {
                Some(address) => pick(vec![address_record(name, address)], kind),
                None => Answer::NoName,
            },
            _ => Answer::NoName,
        }
    }

    /// The start-of-authority record that negative answers carry.
    pub fn authority(&self) -> Record {
        let nameserver = self
            .name(&["ns", "dns"])
            .unwrap_or_else(|| self.origin.clone());
        let mailbox = self
            .name(&["hostmaster"])
            .unwrap_or_else(|| self.origin.clone());
        let retry = i32::try_from(TTL).unwrap_or(i32::MAX);
        let soa = SOA::new(nameserver, mailbox, 1, 7200, retry, 86_400, TTL);
        Record::from_rdata(self.origin.clone(), TTL, RData::SOA(soa))
    }

    fn origin_answer(&self, name: &Name, kind: RecordType) -> Answer {
        let mut records = vec![self.authority()];
        if let Some(nameserver) = self.name(&["ns", "dns"]) {
            records.push(Record::from_rdata(
                name.clone(),
                TTL,
                RData::NS(NS(nameserver)),
            ));
        }
        pick(records, kind)
    }

    fn namespace_answer(&self, namespace: &str) -> Answer {
        let known = self.services.keys().any(|(ns, _)| ns == namespace);
        if known {
            Answer::NoData
        } else {
            Answer::NoName
        }
    }

    fn service_answer(
        &self,
        name: &Name,
        service: &str,
        namespace: &str,
        kind: RecordType,
    ) -> Answer {
        let key = (namespace.to_owned(), service.to_owned());
        let Some(entry) = self.services.get(&key) else {
            return Answer::NoName;
        };
        if let Some(target) = &entry.external_name {
            let alias = RData::CNAME(CNAME(target.clone()));
            let record = Record::from_rdata(name.clone(), TTL, alias);
            return Answer::Alias(Box::new((record, target.clone())));
        }
        let mut records: Vec<Record> = entry
            .addresses
            .iter()
            .map(|address| address_record(name, *address))
            .collect();
        if entry.headless {
            let endpoints = self.endpoints(&key, entry);
            let addresses: HashSet<IpAddr> = endpoints
                .flat_map(|(e, _)| e.addresses.iter().copied())
                .collect();
            records.extend(
                addresses
                    .iter()
                    .map(|address| address_record(name, *address)),
            );
        }
        if kind == RecordType::SRV {
            records = self.service_ports(name, &key, entry, |_| true);
        }
        pick(records, kind)
    }

    fn port_answer(&self, name: &Name, labels: [&str; 4], kind: RecordType) -> Answer {
        let [port, protocol, service, namespace] = labels;
        let key = (namespace.to_owned(), service.to_owned());
        let Some(entry) = self.services.get(&key) else {
            return Answer::NoName;
        };
        let records = self.service_ports(name, &key, entry, |candidate| {
            candidate.name == port[1..] && candidate.protocol == protocol[1..]
        });
        if records.is_empty() {
            Answer::NoName
        } else {
            pick(records, kind)
        }
    }

    fn endpoint_answer(
        &self,
        name: &Name,
        hostname: &str,
        service: &str,
        namespace: &str,
        kind: RecordType,
    ) -> Answer {
        let key = (namespace.to_owned(), service.to_owned());
        let Some(entry) = self.services.get(&key).filter(|e| e.headless) else {
            return Answer::NoName;
        };
        let records: Vec<Record> = self
            .endpoints(&key, entry)
            .flat_map(|(endpoint, _)| {
                endpoint
                    .addresses
                    .iter()
                    .filter(|address| endpoint.label(**address) == hostname)
                    .map(|address| address_record(name, *address))
            })
            .collect();
        if records.is_empty() {
            Answer::NoName
        } else {
            pick(records, kind)
        }
    }

    fn reverse_answer(&self, name: &Name, address: IpAddr, kind: RecordType) -> Answer {
        let Some(names) = self.reverse.get(&address) else {
            return Answer::Foreign;
        };
        let records = names
            .values()
            .map(|target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target.clone()))));
        pick(records.collect(), kind)
    }

    /// SRV records of the ports that `wanted` picks: to the Service's own name, or, for a headless one, to
    /// the name of each endpoint.
    fn service_ports(
        &self,
        name: &Name,
        key: &Key,
        entry: &ServiceEntry,
        wanted: impl Fn(&Port) -> bool,
    ) -> Vec<Record> {
        let record = |port: &Port, target: Name| {
            Record::from_rdata(
                name.clone(),
                TTL,
                RData::SRV(SRV::new(0, 100, port.number, target)),
            )
        };
        if !entry.headless {
            let Some(target) = self.name(&[&key.1, &key.0, "svc"]) else {
                return Vec::new();
            };
            let ports = entry.ports.iter().filter(|port| wanted(port));
            return ports.map(|port| record(port, target.clone())).collect();
        }
        let mut records = Vec::new();
        for (endpoint, slice) in self.endpoints(key, entry) {
            for address in &endpoint.addresses {
                let label = endpoint.label(*address);
                let Some(target) = self.name(&[&label, &key.1, &key.0, "svc"]) else {
                    continue;
                };
                let ports = slice.ports.iter().filter(|port| wanted(port));
                records.extend(ports.map(|port| record(port, target.clone())));
            }
        }
        records
    }

    /// The endpoints that a headless Service publishes.
    fn endpoints<'z>(
        &'z self,
        key: &'z Key,
        entry: &'z ServiceEntry,
    ) -> impl Iterator<Item = (&'z EndpointEntry, &'z Slice)> {
        let names = self.by_service.get(key).into_iter().flatten();
        names
            .filter_map(|name| self.slices.get(&(key.0.clone(), name.clone())))
            .flat_map(|slice| {
                slice
                    .endpoints
                    .iter()
                    .map(move |endpoint| (endpoint, slice))
            })
            .filter(|(endpoint, _)| endpoint.ready || entry.publish_not_ready)
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

impl EndpointEntry {
    /// The endpoint's name below its Service: its hostname, or the address with dashes, as CoreDNS has it.
    fn label(&self, address: IpAddr) -> String {
        self.hostname
            .clone()
            .unwrap_or_else(|| address.to_string().replace(['.', ':'], "-"))
    }
}

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<Key> {
    Some((meta.namespace.clone()?, meta.name.clone()?))
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn address_record(name: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

/// Those records that answer a question for `kind`.
fn pick(mut records: Vec<Record>, kind: RecordType) -> Answer {
    if kind != RecordType::ANY {
        records.retain(|record| record.record_type() == kind);
    }
    if records.is_empty() {
        Answer::NoData
    } else {
        Answer::Records(records)
    }
}

/// `10-244-0-7` or `fd00--7`.
fn dashed_address(label: &str) -> Option<IpAddr> {
    let v4 = label
        .replace('-', ".")
        .parse::<Ipv4Addr>()
        .map(IpAddr::from);
    v4.or_else(|_| {
        label
            .replace('-', ":")
            .parse::<Ipv6Addr>()
            .map(IpAddr::from)
    })
    .ok()
}

/// The address of a reverse name: `7.0.244.10.in-addr.arpa.`, or nibbles below `ip6.arpa.`.
fn reverse_address(lower: &str) -> Option<IpAddr> {
    if let Some(octets) = lower.strip_suffix(".in-addr.arpa.") {
        let reversed: Vec<&str> = octets.split('.').rev().collect();
        return reversed
            .join(".")
            .parse::<Ipv4Addr>()
            .ok()
            .map(IpAddr::from);
    }
    let nibbles = lower.strip_suffix(".ip6.arpa.")?;
    let digits: String = nibbles.split('.').rev().collect();
    let complete = digits.len() == 32 && nibbles.split('.').all(|nibble| nibble.len() == 1);
    let number = u128::from_str_radix(&digits, 16)
        .ok()
        .filter(|_| complete)?;
    Some(IpAddr::from(Ipv6Addr::from(number)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn zone() -> Zone {
        let mut zone = Zone::new("cluster.local").unwrap();
        let mut service = |value| zone.set_service(&serde_json::from_value(value).unwrap());
        service(
            json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}),
        );
        service(
            json!({"metadata": {"name": "db", "namespace": "shop"}, "spec": {
            "clusterIP": "None", "clusterIPs": ["None"],
            "ports": [{"name": "pg", "port": 5432, "protocol": "TCP"}]}}),
        );
        service(
            json!({"metadata": {"name": "ext", "namespace": "shop"}, "spec": {
            "type": "ExternalName", "externalName": "example.org"}}),
        );
        zone.set_slice(&serde_json::from_value(json!({
            "metadata": {"name": "db-1", "namespace": "shop",
                         "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.244.0.2"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.3"], "conditions": {"ready": true}},
                {"addresses": ["10.244.0.4"], "conditions": {"ready": false}}],
            "ports": [{"name": "pg", "port": 5433, "protocol": "TCP"}],
        })).unwrap());
        zone
    }

    fn ask(name: &str, kind: RecordType) -> Vec<String> {
        match zone().answer(&Name::from_ascii(name).unwrap(), kind) {
            Answer::Records(records) => {
                let mut texts: Vec<_> = records.iter().map(|r| r.data.to_string()).collect();
                texts.sort();
                texts
            }
            Answer::Alias(alias) => vec![format!("alias {}", alias.1)],
            other => vec![format!("{other:?}")],
        }
    }

    #[test]
    fn every_form_of_the_specification_has_its_answer() {
        use RecordType::{A, AAAA, PTR, SRV, TXT};
        let table: &[(&str, RecordType, &[&str])] = &[
            ("web.shop.svc.cluster.local.", A, &["10.96.0.7"]),
            ("WEB.Shop.svc.cluster.local.", AAAA, &["fd00::7"]),
            ("web.shop.svc.cluster.local.", TXT, &["NoData"]),
            ("none.shop.svc.cluster.local.", A, &["NoName"]),
            ("web.none.svc.cluster.local.", A, &["NoName"]),
            ("shop.svc.cluster.local.", A, &["NoData"]),
            ("none.svc.cluster.local.", A, &["NoName"]),
            (
                "db.shop.svc.cluster.local.",
                A,
                &["10.244.0.2", "10.244.0.3"],
            ),
            ("db-0.db.shop.svc.cluster.local.", A, &["10.244.0.2"]),
            ("10-244-0-3.db.shop.svc.cluster.local.", A, &["10.244.0.3"]),
            ("10-244-0-4.db.shop.svc.cluster.local.", A, &["NoName"]),
            ("ext.shop.svc.cluster.local.", A, &["alias example.org."]),
            (
                "_http._tcp.web.shop.svc.cluster.local.",
                SRV,
                &["0 100 80 web.shop.svc.cluster.local."],
            ),
            ("_http._udp.web.shop.svc.cluster.local.", SRV, &["NoName"]),
            (
                "_pg._tcp.db.shop.svc.cluster.local.",
                SRV,
                &[
                    "0 100 5433 10-244-0-3.db.shop.svc.cluster.local.",
                    "0 100 5433 db-0.db.shop.svc.cluster.local.",
                ],
            ),
            (
                "7.0.96.10.in-addr.arpa.",
                PTR,
                &["web.shop.svc.cluster.local."],
            ),
            (
                "2.0.244.10.in-addr.arpa.",
                PTR,
                &["db-0.db.shop.svc.cluster.local."],
            ),
            ("9.9.9.9.in-addr.arpa.", PTR, &["Foreign"]),
            ("10-244-0-9.any.pod.cluster.local.", A, &["10.244.0.9"]),
            ("dns-version.cluster.local.", TXT, &["1.1.0"]),
            ("example.org.", A, &["Foreign"]),
        ];
        for (name, kind, expected) in table {
            assert_eq!(ask(name, *kind), *expected, "{name} {kind}");
        }
    }

    #[test]
    fn what_is_removed_is_no_longer_answered() {
        let mut zone = zone();
        zone.remove_service("shop", "web");
        zone.remove_slice("shop", "db-1");
        let ask = |name: &str, kind| zone.answer(&Name::from_ascii(name).unwrap(), kind);
        assert_eq!(
            ask("web.shop.svc.cluster.local.", RecordType::A),
            Answer::NoName
        );
        assert_eq!(
            ask("db.shop.svc.cluster.local.", RecordType::A),
            Answer::NoData
        );
        assert_eq!(
            ask("7.0.96.10.in-addr.arpa.", RecordType::PTR),
            Answer::Foreign
        );
        assert_eq!(
            ask("2.0.244.10.in-addr.arpa.", RecordType::PTR),
            Answer::Foreign
        );
    }
}
