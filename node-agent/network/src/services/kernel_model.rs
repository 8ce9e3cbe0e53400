//! The kernel's side of the service tables, for tests: what it holds, and what the programs
//! (`ebpf/programs/src/lb.rs`) make of it for a client that dials.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use windlass_datapath::{
    ServiceSnapshot, ServiceWrite,
    types::{
        Addr, BackendValue, MemberKey, RangeKey, ServiceKey, ServiceValue, SlotKey, member,
        service_flags,
    },
};

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    Pod,
    Host,
    Outside,
}

/// What becomes of a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No service is there.
    NotOurs,
    /// Answered with a reset or ICMP.
    Refused,
    /// Not answered.
    Dropped,
    /// Served by any of these.
    Served(BTreeSet<(IpAddr, u16)>),
}

/// What the kernel holds.
#[derive(Clone, Default)]
pub(super) struct Kernel {
    pub(super) services: HashMap<ServiceKey, ServiceValue>,
    pub(super) slots: HashMap<SlotKey, u32>,
    pub(super) members: HashMap<MemberKey, u32>,
    pub(super) backends: HashMap<u32, BackendValue>,
    pub(super) ranges: BTreeSet<(RangeKey, u8)>,
    pub(super) maglev: Vec<u32>,
    pub(super) cursor: (u32, u32),
    /// Which backend a client has by a set of endpoints, and since when.
    pub(super) affinity: HashMap<(IpAddr, u32), (u32, u32)>,
}

/// Room for ten tables.
const MAGLEV_SIZE: u32 = 7;
const MAGLEV_ENTRIES: usize = 70;

impl Kernel {
    pub(super) fn apply(&mut self, write: &ServiceWrite) {
        match *write {
            ServiceWrite::PutBackend { id, backend } => drop(self.backends.insert(id, backend)),
            ServiceWrite::PutMember { key, state } => drop(self.members.insert(key, state)),
            ServiceWrite::PutSlot { key, backend } => drop(self.slots.insert(key, backend)),
            ServiceWrite::PutService { key, value } => drop(self.services.insert(key, value)),
            ServiceWrite::PutRange { key, length } => drop(self.ranges.insert((key, length))),
            ServiceWrite::DeleteRange { key, length } => drop(self.ranges.remove(&(key, length))),
            ServiceWrite::PutMaglev { index, backend } => {
                self.maglev.resize(MAGLEV_ENTRIES, 0);
                self.maglev[index as usize] = backend;
            }
            ServiceWrite::DeleteService { key } => drop(self.services.remove(&key)),
            ServiceWrite::DeleteSlot { key } => drop(self.slots.remove(&key)),
            ServiceWrite::DeleteMember { key } => drop(self.members.remove(&key)),
            ServiceWrite::DeleteBackend { id } => drop(self.backends.remove(&id)),
        }
    }

    /// What `lb::choose` in the programs does, for every random number.
    pub(super) fn check(&self) {
        for (key, service) in &self.services {
            for slot in 0..service.count {
                let backend = self.slots.get(&SlotKey {
                    service: service.id,
                    slot,
                });
                let found = backend.is_some_and(|id| self.backends.contains_key(id));
                assert!(found, "slot {slot} of {key:?} leads nowhere");
            }
        }
    }

    pub(super) fn snapshot(&self) -> ServiceSnapshot {
        ServiceSnapshot {
            services: self.services.iter().map(|(k, v)| (*k, *v)).collect(),
            slots: self.slots.iter().map(|(k, v)| (*k, *v)).collect(),
            members: self.members.iter().map(|(k, v)| (*k, *v)).collect(),
            backends: self.backends.iter().map(|(k, v)| (*k, *v)).collect(),
            source_ranges: self.ranges.iter().copied().collect(),
            maglev: {
                let mut maglev = self.maglev.clone();
                maglev.resize(MAGLEV_ENTRIES, 0);
                maglev
            },
            maglev_size: MAGLEV_SIZE,
            next_service: self.cursor.0,
            next_backend: self.cursor.1,
        }
    }

    /// Frontend -> (addresses that get new connections, addresses that only drain).
    pub(super) fn meaning(
        &self,
    ) -> BTreeMap<ServiceKey, (BTreeSet<BackendValue>, BTreeSet<BackendValue>)> {
        self.services
            .iter()
            .filter(|(key, _)| !key.is_other_ports())
            .map(|(key, service)| {
                let slots: BTreeSet<_> = (0..service.count)
                    .map(|slot| {
                        self.backends[&self.slots[&SlotKey {
                            service: service.id,
                            slot,
                        }]]
                    })
                    .collect();
                assert_eq!(
                    slots.len(),
                    service.count as usize,
                    "a backend in two slots"
                );
                assert_eq!(
                    service.maglev != 0,
                    service.count != 0,
                    "every set that serves has a table"
                );
                if service.maglev != 0 {
                    let first = service.maglev as usize - 1;
                    let table = &self.maglev[first..first + MAGLEV_SIZE as usize];
                    let hashed: BTreeSet<_> = table.iter().map(|id| self.backends[id]).collect();
                    assert!(hashed.is_subset(&slots), "a table names who is in no slot");
                    let full = hashed.len() == slots.len().min(MAGLEV_SIZE as usize);
                    assert!(full, "a backend has no share");
                }
                let with = |wanted| {
                    self.members
                        .iter()
                        .filter(move |(member, state)| {
                            member.service == service.id && **state == wanted
                        })
                        .map(|(member, _)| self.backends[&member.backend])
                        .collect::<BTreeSet<_>>()
                };
                assert_eq!(
                    with(member::ACTIVE),
                    slots,
                    "slots and active members agree"
                );
                (*key, (slots, with(member::DRAINING)))
            })
            .collect()
    }
}

/// Who dials what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dial {
    pub(super) client: Client,
    pub(super) source: IpAddr,
    pub(super) address: IpAddr,
    /// One of the node's, on which NodePorts answer.
    pub(super) is_node_address: bool,
    pub(super) port: u16,
    pub(super) protocol: u8,
}

impl Kernel {
    /// What `lb::find`, `lb::admits` and `lb::choose` say, for every random number.
    pub(super) fn dial(&self, dial: &Dial) -> Verdict {
        let service = match self.find(dial) {
            Ok(service) => service,
            Err(verdict) => return verdict,
        };
        let at = |slot| {
            self.address_of(
                self.slots[&SlotKey {
                    service: service.id,
                    slot,
                }],
            )
        };
        Verdict::Served((0..service.count).map(at).collect())
    }

    /// The same with session affinity, for one random number and at a time: who serves, if anybody does.
    pub(super) fn connect(&mut self, dial: &Dial, random: u32, now: u32) -> Option<(IpAddr, u16)> {
        let service = self.find(dial).ok()?;
        let key = (dial.source, service.id);
        let slot = SlotKey {
            service: service.id,
            slot: random % service.count,
        };
        let mut backend = self.slots[&slot];
        if service.affinity_seconds != 0 {
            let held = self.affinity.get(&key).filter(|(held, since)| {
                let member = MemberKey {
                    service: service.id,
                    backend: *held,
                };
                now - since <= service.affinity_seconds
                    && self.members.get(&member) == Some(&member::ACTIVE)
            });
            backend = held.map_or(backend, |(held, _)| *held);
            self.affinity.insert(key, (backend, now));
        }
        Some(self.address_of(backend))
    }

    fn address_of(&self, backend: u32) -> (IpAddr, u16) {
        let backend = self.backends[&backend];
        (backend.addr.to_ip(), u16::from_be(backend.port))
    }

    /// The set of endpoints that serves, or why there is none.
    fn find(&self, dial: &Dial) -> Result<ServiceValue, Verdict> {
        let Dial {
            address,
            port,
            protocol,
            ..
        } = *dial;
        let key = ServiceKey::new(Addr::from(address), port, protocol);
        let any = ServiceKey::node_port(address.is_ipv4(), port, protocol);
        let found = self.services.get(&key).map(|value| (key, value));
        let wild = self.services.get(&any).filter(|_| dial.is_node_address);
        let Some((key, value)) = found.or(wild.map(|value| (any, value))) else {
            let others = ServiceKey::other_ports(Addr::from(address));
            let balanced = dial.client == Client::Outside
                && !dial.is_node_address
                && self.services.contains_key(&others.outside());
            return Err(match balanced || self.services.contains_key(&others) {
                true => Verdict::Refused,
                false => Verdict::NotOurs,
            });
        };
        let mut service = *value;
        if dial.client == Client::Outside && service.flags & service_flags::OUTSIDE_APART != 0 {
            service = *self.services.get(&key.outside()).unwrap_or(value);
        }
        if service.flags & service_flags::SOURCE_RANGES != 0
            && !self.admits(service.id, dial.source)
        {
            return Err(Verdict::Dropped);
        }
        if service.count == 0 {
            return Err(match service.flags & service_flags::DROP_EMPTY {
                0 => Verdict::Refused,
                _ => Verdict::Dropped,
            });
        }
        Ok(service)
    }

    fn admits(&self, service: u32, source: IpAddr) -> bool {
        let mut ranges = self.ranges.iter().filter(|(key, _)| key.service == service);
        ranges.any(|(key, length)| {
            let range = IpNet::new(key.addr.to_ip(), *length).expect("a prefix of its family");
            range.contains(&source)
        })
    }
}
