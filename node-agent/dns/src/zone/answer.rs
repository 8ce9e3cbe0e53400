//! What the zone says to a question.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::names::{dashed_address, reverse_address};
use super::{EndpointEntry, Key, Port, ServiceEntry, Slice, Zone};

/// How long clients may keep an answer, in seconds: short, because endpoints move.
pub const TTL: u32 = 5;
/// The version of the specification, served as `dns-version.<zone>`.
const SPECIFICATION: &str = "1.1.0";
/// Of records with more targets than these nobody gets the addresses too: they would not fit, and looking for one passes
/// every endpoint of its Service.
const MOST_TARGETS: usize = 32;
/// Whose addresses the zone's name server has.
const SERVER: (&str, &str) = ("kube-system", "kube-dns");

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

impl Zone {
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
            ["svc" | "pod" | "dns"] => Answer::NoData,
            ["ns", "dns"] => pick(self.server_addresses(name), kind),
            [namespace, "svc" | "pod"] => self.namespace_answer(namespace),
            [service, namespace, "svc"] => self.service_answer(name, service, namespace, kind),
            [port, protocol, service, namespace, "svc"]
                if port.starts_with('_') && protocol.starts_with('_') =>
            {
                self.port_answer(name, [port, protocol, service, namespace], kind)
            }
            [hostname, service, namespace, "svc"] => {
                self.endpoint_answer(name, hostname, service, namespace, kind)
            }
            [dashed, namespace, "pod"] => match dashed_address(dashed) {
                Some(address) if self.has_namespace(namespace) => {
                    pick(vec![address_record(name, address)], kind)
                }
                _ => Answer::NoName,
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
        let soa = SOA::new(nameserver, mailbox, 1, 7200, 1800, 86_400, TTL);
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

    /// The addresses behind the targets of these records, so that whoever asked need not ask again.
    pub fn additional(&self, records: &[Record]) -> Vec<Record> {
        let targets = records.iter().filter_map(|record| match &record.data {
            RData::SRV(service) => Some(&service.target),
            RData::NS(server) => Some(&server.0),
            _ => None,
        });
        let targets: BTreeSet<&Name> = targets.collect();
        if targets.len() > MOST_TARGETS {
            return Vec::new();
        }
        let addresses = targets.into_iter().flat_map(|target| {
            [RecordType::A, RecordType::AAAA].map(|kind| self.answer(target, kind))
        });
        let records = addresses.map(|answer| match answer {
            Answer::Records(records) => records,
            _ => Vec::new(),
        });
        records.flatten().collect()
    }

    fn server_addresses(&self, name: &Name) -> Vec<Record> {
        let key = (SERVER.0.to_owned(), SERVER.1.to_owned());
        let addresses = self.services.get(&key).map(|entry| &entry.addresses);
        let addresses = addresses.into_iter().flatten();
        addresses
            .map(|address| address_record(name, *address))
            .collect()
    }

    fn namespace_answer(&self, namespace: &str) -> Answer {
        if self.has_namespace(namespace) {
            Answer::NoData
        } else {
            Answer::NoName
        }
    }

    /// As long as no namespace is known, which is so where the agent may not list them, any name may be one.
    fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(namespace)
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
            // The specification (2.4.1): without a ready endpoint it has no name.
            if addresses.is_empty() {
                return Answer::NoName;
            }
            records.extend(
                addresses
                    .iter()
                    .map(|address| address_record(name, *address)),
            );
        }
        if kind == RecordType::SRV {
            records = self.service_ports(name, &key, entry, None, |_| true);
        }
        pick(records, kind)
    }

    fn port_answer(&self, name: &Name, labels: [&str; 4], kind: RecordType) -> Answer {
        let [port, protocol, service, namespace] = labels;
        let key = (namespace.to_owned(), service.to_owned());
        let Some(entry) = self.services.get(&key) else {
            return Answer::NoName;
        };
        let records = self.service_ports(name, &key, entry, None, |candidate| {
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
        let Some(entry) = self.services.get(&key) else {
            return Answer::NoName;
        };
        let mut records: Vec<Record> = self
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
            return Answer::NoName;
        }
        if kind == RecordType::SRV {
            records = self.service_ports(name, &key, entry, Some(hostname), |_| true);
        }
        pick(records, kind)
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

    /// SRV records of the ports that `wanted` picks: to the Service's own name, or, for a headless one and for
    /// an endpoint's own name (`of`), to the name of each endpoint.
    fn service_ports(
        &self,
        name: &Name,
        key: &Key,
        entry: &ServiceEntry,
        of: Option<&str>,
        wanted: impl Fn(&Port) -> bool,
    ) -> Vec<Record> {
        // An endpoint of both families is in two slices, under one name if it has a hostname.
        let mut found: BTreeSet<(Name, u16)> = BTreeSet::new();
        let mut shares = 0;
        if entry.headless || of.is_some() {
            for (endpoint, slice) in self.endpoints(key, entry) {
                for address in &endpoint.addresses {
                    let label = endpoint.label(*address);
                    if of.is_some_and(|of| of != label) {
                        continue;
                    }
                    let Some(target) = self.name(&[&label, &key.1, &key.0, "svc"]) else {
                        continue;
                    };
                    for port in slice.ports.iter().filter(|port| wanted(port)) {
                        found.insert((target.clone(), port.number));
                        shares += 1;
                    }
                }
            }
        } else if let Some(target) = self.name(&[&key.1, &key.0, "svc"]) {
            for port in entry.ports.iter().filter(|port| wanted(port)) {
                found.insert((target.clone(), port.number));
                shares += entry.addresses.len();
            }
        }
        // Equal shares of a hundred for each address and port, as CoreDNS deals them.
        let weight = u16::try_from(100 / shares.max(1)).unwrap_or(1).max(1);
        let records = found.into_iter().map(|(target, port)| {
            let service = RData::SRV(SRV::new(0, weight, port, target));
            Record::from_rdata(name.clone(), TTL, service)
        });
        records.collect()
    }

    /// The endpoints that a Service publishes by name.
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
}

impl EndpointEntry {
    /// The endpoint's name below its Service: its hostname, or the address with dashes, as CoreDNS has it.
    fn label(&self, address: IpAddr) -> String {
        self.hostname
            .clone()
            .unwrap_or_else(|| address.to_string().replace(['.', ':'], "-"))
    }
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
