//! What the zone says to a question.

use std::collections::HashSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::names::{dashed_address, reverse_address};
use super::{EndpointEntry, Key, Port, ServiceEntry, Slice, Zone};

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
