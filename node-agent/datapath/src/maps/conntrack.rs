//! The connection table as user space sees it: listing, and collecting what is over.

use std::collections::{
    BTreeMap, HashMap, HashSet,
    hash_map::Entry::{Occupied, Vacant},
};

use aya::Ebpf;
use parking_lot::Mutex;
use windlass_ebpf_types::{
    Addr, Connection, MemberKey, ServiceKey, SocketKey, SocketVip, Tuple, connection, protocol,
    timeout_seconds,
};

use super::{ServiceMaps, Table, connections::Connections};
use crate::{
    error::Result,
    netfilter,
    raw::Raw,
    sockets::{GoneBackends, StaleSockets},
    sys,
};

/// What a collection found, in entries (two to a connection) where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// Left in the table.
    pub live: usize,
    /// Deleted because their time was over.
    pub expired: usize,
    /// Deleted because their backend is gone.
    pub backend_gone: usize,
    /// Elements of the table that are taken: two by a connection that is translated, one by any other.
    pub used: usize,
    /// How many elements the table has room for.
    pub capacity: usize,
}

pub(crate) struct ConntrackMaps {
    connections: Connections,
    capacity: usize,
    /// Unanswered connections by who opened them.
    half_open: Table<Raw<Addr>, u32>,
    /// What the socket hooks remember.
    sockets: Table<Raw<SocketKey>, Raw<SocketVip>>,
    /// Connections by service and backend, where that decides who gets the next one.
    balance: Table<Raw<MemberKey>, u32>,
    /// How many are open by service, as of the last collection.
    open: BTreeMap<u32, u32>,
}

impl ConntrackMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let connections = Connections::take(ebpf)?;
        Ok(Self {
            capacity: connections.capacity()?,
            connections,
            half_open: Table::take(ebpf, "HALF_OPEN")?,
            sockets: Table::take(ebpf, "SOCKET_REVERSE")?,
            balance: Table::take(ebpf, "BALANCE")?,
            open: BTreeMap::new(),
        })
    }

    pub(crate) fn entries(&self) -> Result<Vec<(Tuple, Connection)>> {
        let mut entries = Vec::new();
        self.connections
            .visit(|tuple, entry| entries.push((tuple, entry)))?;
        Ok(entries)
    }

    /// Connections, as they were dialled, that somebody else translates. How many were not known yet.
    pub(crate) fn leave(&mut self, dialled: &[Tuple]) -> Result<usize> {
        let mut left = 0;
        for tuple in dialled {
            let [(there, original), (back, reply)] = netfilter::entries(*tuple);
            if self.connections.put_new(&there, original)? {
                self.connections.put_new(&back, reply)?;
                left += 1;
            }
        }
        Ok(left)
    }

    /// Puts right what the programs count of unanswered connections: they miss those that
    /// time out, and each other's counts now and then. The key of a pod is its address, and
    /// all others are counted together, under the unspecified one.
    fn recount(&mut self, mut by_source: HashMap<Addr, u32>) -> Result<()> {
        let held = self.half_open.entries()?;
        for (Raw(opener), _) in &held {
            if *opener == Addr::UNSPECIFIED {
                continue;
            }
            match by_source.remove(opener) {
                Some(count) => self.half_open.put(Raw(*opener), count)?,
                None => self.half_open.remove(&Raw(*opener))?,
            }
        }
        let outside = by_source.values().sum();
        self.half_open.put(Raw(Addr::UNSPECIFIED), outside)
    }

    /// Whose connections are to be counted, at none yet.
    fn balanced(&self) -> Result<HashMap<MemberKey, u32>> {
        let held = self.balance.entries()?.into_iter();
        Ok(held
            .filter(|(Raw(key), _)| *key != MemberKey::turn_of(key.service))
            .map(|(Raw(key), _)| (key, 0))
            .collect())
    }

    /// Whose turn it was in services that are no more.
    pub(crate) fn forget_turns(&mut self, services: &[u32]) -> Result<()> {
        let mut turns = services.iter().map(|service| MemberKey::turn_of(*service));
        turns.try_for_each(|turn| self.balance.remove(&Raw(turn)))
    }

    /// How many connections of each service were open when the table was looked at last: those that are
    /// translated packet by packet, and sockets that a hook has connected.
    pub(crate) fn open(&self) -> Vec<(u32, u32)> {
        self.open.iter().map(|(id, count)| (*id, *count)).collect()
    }

    /// The sockets that were connected to what is gone.
    pub(crate) fn sockets_of(&self, gone: &GoneBackends) -> Result<StaleSockets> {
        let mut stale = StaleSockets::default();
        self.sockets.visit(|Raw(key), Raw(vip)| {
            if gone.includes(&key, &vip) {
                stale.insert(vip.namespace, key.into());
            }
        })?;
        Ok(stale)
    }

    /// Which of these backends connections or connected sockets still name.
    pub(crate) fn in_use(&self, backends: &HashSet<u32>) -> Result<HashSet<u32>> {
        let mut used = HashSet::new();
        let mut note = |backend| {
            if backends.contains(&backend) {
                used.insert(backend);
            }
        };
        self.sockets.visit(|_, Raw(vip)| note(vip.backend))?;
        self.connections.visit(|_, entry| note(entry.backend))?;
        Ok(used)
    }

    /// Two passes: the first looks at every entry and keeps only those that may have to go,
    /// the second asks again about each. What is asked of the service tables is asked once
    /// for each backend that a connection names: they may hold many times more.
    pub(crate) fn collect(&mut self, services: &Mutex<ServiceMaps>) -> Result<CollectReport> {
        let now = sys::monotonic_seconds();
        let mut report = CollectReport {
            capacity: self.capacity,
            ..CollectReport::default()
        };
        let mut gone = Vec::new();
        let mut idle = Vec::new();
        let mut half_open: HashMap<Addr, u32> = HashMap::new();
        let mut backends = NamedBackends::default();
        let mut failure = None;
        let mut loads = self.balanced()?;
        let mut open: BTreeMap<u32, u32> = BTreeMap::new();
        self.sockets
            .visit(|_, Raw(vip)| *open.entry(vip.service).or_default() += 1)?;
        let elements = self.connections.visit(|key, entry| {
            let exists = match backends.precedes_service(services, &key, &entry) {
                Ok(true) => Ok(false),
                _ => backends.exists(services, &key, &entry),
            };
            if !exists.unwrap_or_else(|error| {
                failure.get_or_insert(error);
                true
            }) {
                gone.push((key, entry));
            } else if is_over(&key, &entry, entry.flags, entry.last_seen, now) {
                idle.push((key, entry));
            } else {
                report.live += 1;
                let member = MemberKey {
                    service: entry.service,
                    backend: entry.backend,
                };
                if is_open(&entry) {
                    if entry.service != 0 {
                        *open.entry(entry.service).or_default() += 1;
                    }
                    if let Some(load) = loads.get_mut(&member) {
                        *load += 1;
                    }
                }
                if is_half_open(&key, &entry) {
                    *half_open.entry(key.src).or_default() += 1;
                }
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        report.used = elements.count;
        for ends in &elements.empty {
            report.used -= usize::from(self.connections.remove_empty(ends)?);
        }
        self.open = open;
        self.recount(half_open)?;
        for (member, load) in loads {
            match load {
                0 => self.balance.remove(&Raw(member))?,
                load => self.balance.put(Raw(member), load)?,
            }
        }
        for (key, entry) in gone {
            // A member may have come back since it was asked about.
            let mut again = NamedBackends::default();
            if again.exists(services, &key, &entry)?
                && !again.precedes_service(services, &key, &entry)?
            {
                report.live += 1;
            } else {
                report.backend_gone += 1;
                report.used -= usize::from(self.connections.remove(&key)?);
            }
        }
        for (key, entry) in idle {
            let partner = self.connections.get(&entry.partner(&key))?;
            // A packet may have come since the first pass: that one wins.
            let current = self.connections.get(&key)?;
            let untouched = current.is_some_and(|current| current.last_seen == entry.last_seen);
            if untouched && is_pair_over(&key, &entry, partner.as_ref(), now) {
                report.expired += 1;
                report.used -= usize::from(self.connections.remove(&key)?);
            } else {
                report.live += 1;
            }
        }
        Ok(report)
    }
}

fn is_open(entry: &Connection) -> bool {
    entry.flags & connection::ORIGINAL != 0 && !connection::is_closed(entry.flags)
}

/// Waits for an answer, as the programs count it.
fn is_half_open(key: &Tuple, entry: &Connection) -> bool {
    let flags = entry.flags;
    let answered = match key.protocol {
        protocol::TCP => connection::CONFIRMED,
        _ => connection::REPLIED,
    };
    flags & connection::ORIGINAL != 0 && flags & answered == 0 && !connection::is_closed(flags)
}

/// Whether the backends that connections name are still there. One that an entry names was
/// written before the entry, and its id is never given again: what is missing has gone.
#[derive(Default)]
struct NamedBackends {
    backends: HashMap<u32, bool>,
    members: HashMap<MemberKey, bool>,
    services: HashMap<ServiceKey, bool>,
}

impl NamedBackends {
    /// A pod's datagrams for what was nobody's address when the first of them left: they go out as they are for as
    /// long as they come, although a Service has the address now.
    fn precedes_service(
        &mut self,
        services: &Mutex<ServiceMaps>,
        key: &Tuple,
        entry: &Connection,
    ) -> Result<bool> {
        const LEFT: u32 = connection::ORIGINAL | connection::MASQUERADED;
        if key.protocol != protocol::UDP || entry.service != 0 || entry.flags & LEFT != LEFT {
            return Ok(false);
        }
        let dialled = ServiceKey::new(key.dst, u16::from_be(key.dport), key.protocol);
        match self.services.entry(dialled) {
            Occupied(known) => Ok(*known.get()),
            Vacant(place) => Ok(*place.insert(services.lock().is_service(dialled)?)),
        }
    }

    /// UDP follows its backend's membership, since nothing else ends a conversation; TCP goes
    /// on for as long as the backend is listed at all.
    fn exists(
        &mut self,
        services: &Mutex<ServiceMaps>,
        key: &Tuple,
        entry: &Connection,
    ) -> Result<bool> {
        let Connection {
            service, backend, ..
        } = *entry;
        if service == 0 || backend == 0 {
            return Ok(true);
        }
        if key.protocol == protocol::UDP {
            let key = MemberKey { service, backend };
            match self.members.entry(key) {
                Occupied(known) => Ok(*known.get()),
                Vacant(place) => Ok(*place.insert(services.lock().is_member(key)?)),
            }
        } else {
            match self.backends.entry(backend) {
                Occupied(known) => Ok(*known.get()),
                Vacant(place) => Ok(*place.insert(services.lock().is_backend(backend)?)),
            }
        }
    }
}

/// Both directions live and die together, by the later of their last packets.
fn is_pair_over(key: &Tuple, entry: &Connection, partner: Option<&Connection>, now: u32) -> bool {
    let (flags, last_seen) = match partner {
        Some(partner) => (
            entry.flags | partner.flags,
            entry.last_seen.max(partner.last_seen),
        ),
        // Half a pair translates only one way: it is of no use once nobody is making it.
        None => (entry.flags | connection::FINS, entry.last_seen),
    };
    is_over(key, entry, flags, last_seen, now)
}

/// `flags` and `last_seen` of both directions.
fn is_over(key: &Tuple, entry: &Connection, flags: u32, last_seen: u32, now: u32) -> bool {
    let lasted = last_seen.saturating_sub(entry.created);
    // The kernel's coarse clock may be a tick ahead of ours.
    now.saturating_sub(last_seen) > timeout_seconds(key.protocol, flags, lasted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection_of(protocol: u8, flags: u32, last_seen: u32) -> (Tuple, Connection) {
        let key = Tuple {
            src: Addr::v4([10, 0, 0, 1]),
            dst: Addr::v4([10, 96, 0, 1]),
            sport: 1,
            dport: 2,
            protocol,
            pad: [0; 3],
        };
        let entry = Connection {
            to: key,
            flags,
            last_seen,
            service: 1,
            backend: 1,
            ifindex: 0,
            created: 0,
            policy: 0,
        };
        (key, entry)
    }

    #[test]
    fn a_pair_lives_by_its_later_packet() {
        let (key, old) = connection_of(protocol::UDP, connection::ORIGINAL, 100);
        let (_, young) = connection_of(protocol::UDP, connection::REPLIED, 1_000);
        assert!(!is_pair_over(&key, &old, Some(&young), 1_100));
        assert!(!is_pair_over(&key, &young, Some(&old), 1_100));
        assert!(is_pair_over(&key, &old, Some(&young), 1_121));
        assert!(is_pair_over(&key, &young, Some(&old), 1_121));
    }

    #[test]
    fn half_a_pair_goes_after_the_closing_time() {
        let (key, entry) = connection_of(
            protocol::TCP,
            connection::REPLIED | connection::CONFIRMED,
            100,
        );
        assert!(!is_pair_over(&key, &entry, None, 110));
        assert!(is_pair_over(&key, &entry, None, 111));
    }

    #[test]
    fn a_clock_behind_the_kernels_expires_nothing() {
        let (key, entry) = connection_of(protocol::TCP, connection::RESETS, 100);
        assert!(!is_pair_over(&key, &entry, Some(&entry), 99));
    }
}
