//! What the datapath's service tables hold, and the writes that bring them from there to
//! what they should hold: a handful for one endpoint's change, at any number of Services.
//!
//! Ids and slots are stable: a backend keeps its id for as long as any port lists it, and
//! a slot changes only when its backend goes. The order of the writes is such that a
//! packet in between finds a usable backend (see `ServiceWrite`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ahash::AHashMap;
use ipnet::IpNet;
use windlass_datapath::{
    ServiceSnapshot, ServiceWrite,
    types::{BackendValue, MemberKey, RangeKey, ServiceKey, ServiceValue, SlotKey, member},
};

use super::{
    compile::{DesiredPort, EndpointState, Policy, PortKey},
    maglev_tables::{HeldTable, MaglevTables},
    parse::ServiceName,
};

/// One set of endpoints as the tables hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct HeldPort {
    id: u32,
    frontends: BTreeMap<ServiceKey, ServiceValue>,
    /// Backend ids by slot.
    slots: Vec<u32>,
    /// Backend id -> state in `MEMBERS`.
    members: BTreeMap<u32, u32>,
    /// Every backend that this port keeps alive, members or not.
    backends: BTreeSet<u32>,
    /// Addresses of endpoints that are in a slot because they are ready.
    ready: BTreeSet<IpAddr>,
    source_ranges: BTreeSet<IpNet>,
    maglev: Option<HeldTable>,
}

#[derive(Clone, Copy, Debug)]
struct HeldBackend {
    id: u32,
    /// Ports that list it.
    references: usize,
}

#[derive(Debug, Default)]
pub struct Tables {
    /// Ordered, so that the ports of one Service lie side by side.
    ports: BTreeMap<PortKey, HeldPort>,
    backends: AHashMap<BackendValue, HeldBackend>,
    backend_by_id: AHashMap<u32, BackendValue>,
    /// Who a frontend belongs to: of two Services that claim one, the first keeps it.
    owners: AHashMap<ServiceKey, PortKey>,
    /// Found in the tables at the start and not claimed by a Service yet.
    unclaimed: AHashMap<u32, HeldPort>,
    unclaimed_frontends: AHashMap<ServiceKey, u32>,
    maglev: MaglevTables,
    next_service: u32,
    next_backend: u32,
}

/// The result of planning one port.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub writes: Vec<ServiceWrite>,
    /// Frontends that belong to another Service.
    pub contested: Vec<ServiceKey>,
}

impl Tables {
    /// The state that an earlier run left in the kernel.
    pub fn recover(snapshot: &ServiceSnapshot) -> Self {
        let mut tables = Self {
            // 0 stands for "no service" in a tracked connection.
            next_service: snapshot.next_service.max(1),
            next_backend: snapshot.next_backend.max(1),
            maglev: MaglevTables::new(snapshot.maglev_size, snapshot.maglev.len()),
            ..Self::default()
        };
        for (key, value) in &snapshot.services {
            let port = tables.unclaimed.entry(value.id).or_default();
            port.id = value.id;
            if value.maglev != 0 && port.maglev.is_none() {
                port.maglev = tables.maglev.adopt(value.maglev, &snapshot.maglev);
            }
            port.frontends.insert(*key, *value);
            tables.unclaimed_frontends.insert(*key, value.id);
        }
        for (key, state) in &snapshot.members {
            let port = tables.unclaimed.entry(key.service).or_default();
            port.id = key.service;
            port.members.insert(key.backend, *state);
            port.backends.insert(key.backend);
        }
        for (key, length) in &snapshot.source_ranges {
            let port = tables.unclaimed.entry(key.service).or_default();
            port.id = key.service;
            let range = IpNet::new(key.addr.to_ip(), *length);
            port.source_ranges.extend(range.ok());
        }
        let mut slots: BTreeMap<SlotKey, u32> = snapshot.slots.iter().copied().collect();
        while let Some((key, backend)) = slots.pop_first() {
            let port = tables.unclaimed.entry(key.service).or_default();
            port.id = key.service;
            // A run that died between two writes may have left a hole; what lies behind
            // it is still to be deleted, so it must be known. 0 is nobody's id.
            port.slots.resize(key.slot as usize, 0);
            port.slots.push(backend);
        }
        for (id, backend) in &snapshot.backends {
            tables.backends.insert(
                *backend,
                HeldBackend {
                    id: *id,
                    references: 0,
                },
            );
            tables.backend_by_id.insert(*id, *backend);
            tables.next_backend = tables.next_backend.max(id.wrapping_add(1));
        }
        for (id, port) in &tables.unclaimed {
            tables.next_service = tables.next_service.max(id.wrapping_add(1));
            for backend in &port.backends {
                if let Some(value) = tables.backend_by_id.get(backend)
                    && let Some(held) = tables.backends.get_mut(value)
                {
                    held.references += 1;
                }
            }
        }
        tables
    }

    /// The next free ids, to be recorded before the writes of a plan are applied.
    pub fn cursor(&self) -> (u32, u32) {
        (self.next_service, self.next_backend)
    }

    /// Whether new connections may be sent to an address because it is ready.
    pub fn is_ready_target(&self, address: IpAddr) -> bool {
        self.ports
            .values()
            .any(|port| port.ready.contains(&address))
    }

    /// Ports of one Service that are held.
    pub fn ports_of(&self, service: &ServiceName) -> Vec<PortKey> {
        let first = PortKey {
            service: service.clone(),
            port: String::new(),
            protocol: 0,
            is_v4: false,
            policy: Policy::Cluster,
        };
        self.ports
            .range(first..)
            .map(|(key, _)| key)
            .take_while(|key| key.service == *service)
            .cloned()
            .collect()
    }

    /// The writes that make one port what it should be; the tables here are that already.
    /// If the writes fail, the caller must [`Self::recover`] from what the kernel holds.
    pub fn plan(&mut self, desired: &DesiredPort) -> Plan {
        let mut contested = Vec::new();
        let mut frontends = Vec::new();
        for key in desired.frontends.keys() {
            match self.owners.get(key) {
                // A change of policy moves an address from one set of a Service to another.
                Some(owner) if owner.service != desired.key.service => contested.push(*key),
                _ => frontends.push(*key),
            }
        }
        let mut held = self.take(&desired.key, &frontends);
        let mut writes = Writes::default();

        let backends = self.backends_of(&mut held, desired, &mut writes);
        let active: BTreeSet<u32> = backends
            .iter()
            .filter(|(_, state)| **state >= EndpointState::Fallback)
            .map(|(id, _)| *id)
            .collect();
        plan_slots(&mut held, &active, &mut writes);
        plan_members(&mut held, &backends, &mut writes);
        plan_ranges(&mut held, &desired.source_ranges, &mut writes);
        self.plan_maglev(&mut held, desired.hashed, &mut writes);
        self.plan_frontends(&mut held, desired, frontends, &mut writes);
        self.release(&mut held, &backends.keys().copied().collect(), &mut writes);

        held.ready = desired
            .endpoints
            .iter()
            .filter(|(_, state)| **state == EndpointState::Ready)
            .map(|(backend, _)| backend.addr.to_ip())
            .collect();
        self.ports.insert(desired.key.clone(), held);
        Plan {
            writes: writes.in_order(),
            contested,
        }
    }

    /// The writes that remove a port.
    pub fn plan_removal(&mut self, key: &PortKey) -> Vec<ServiceWrite> {
        match self.ports.remove(key) {
            Some(held) => self.remove_port(Some(key), held),
            None => Vec::new(),
        }
    }

    /// The writes that remove what an earlier run left and no Service has claimed. To be
    /// asked for once every Service is known, and has been planned.
    pub fn plan_removal_of_unclaimed(&mut self) -> Vec<ServiceWrite> {
        let unclaimed: Vec<_> = self.unclaimed.drain().map(|(_, held)| held).collect();
        let mut writes: Vec<_> = unclaimed
            .into_iter()
            .flat_map(|held| self.remove_port(None, held))
            .collect();
        self.unclaimed_frontends.clear();
        let unreferenced: Vec<_> = self
            .backends
            .iter()
            .filter(|(_, held)| held.references == 0)
            .map(|(value, held)| (*value, held.id))
            .collect();
        for (value, id) in unreferenced {
            self.backends.remove(&value);
            self.backend_by_id.remove(&id);
            writes.push(ServiceWrite::DeleteBackend { id });
        }
        writes
    }

    /// The held state of a port: known, left by an earlier run, or new.
    fn take(&mut self, key: &PortKey, frontends: &[ServiceKey]) -> HeldPort {
        if let Some(held) = self.ports.remove(key) {
            return held;
        }
        let left = frontends
            .iter()
            .find_map(|key| self.unclaimed_frontends.get(key))
            .copied();
        if let Some(held) = left.and_then(|id| self.unclaimed.remove(&id)) {
            return held;
        }
        let id = self.next_service;
        self.next_service = self.next_service.wrapping_add(1).max(1);
        HeldPort {
            id,
            ..HeldPort::default()
        }
    }

    /// Ids of the desired endpoints, given where there is none yet.
    fn backends_of(
        &mut self,
        held: &mut HeldPort,
        desired: &DesiredPort,
        writes: &mut Writes,
    ) -> BTreeMap<u32, EndpointState> {
        let mut ids = BTreeMap::new();
        for (value, state) in &desired.endpoints {
            let backend = self.backends.entry(*value).or_insert_with(|| {
                let id = self.next_backend;
                self.next_backend = self.next_backend.wrapping_add(1).max(1);
                self.backend_by_id.insert(id, *value);
                writes.backends.push(ServiceWrite::PutBackend {
                    id,
                    backend: *value,
                });
                HeldBackend { id, references: 0 }
            });
            if held.backends.insert(backend.id) {
                backend.references += 1;
            }
            ids.insert(backend.id, *state);
        }
        ids
    }

    fn plan_frontends(
        &mut self,
        held: &mut HeldPort,
        desired: &DesiredPort,
        frontends: Vec<ServiceKey>,
        writes: &mut Writes,
    ) {
        let base = ServiceValue {
            id: held.id,
            count: held.slots.len() as u32,
            affinity_seconds: desired.affinity_seconds,
            flags: 0,
            maglev: held.maglev.as_ref().map_or(0, HeldTable::reference),
        };
        let value = |key: ServiceKey| {
            let flags = desired.frontends.get(&key).copied().unwrap_or_default();
            (key, ServiceValue { flags, ..base })
        };
        let wanted: BTreeMap<_, _> = frontends.into_iter().map(value).collect();
        let gone = held
            .frontends
            .keys()
            .filter(|key| !wanted.contains_key(key));
        for key in gone {
            self.give_up(Some(&desired.key), *key, writes);
        }
        for (key, value) in &wanted {
            if held.frontends.get(key) != Some(value) || self.owners.get(key) != Some(&desired.key)
            {
                let (key, value) = (*key, *value);
                writes
                    .services
                    .push(ServiceWrite::PutService { key, value });
            }
            self.owners.insert(*key, desired.key.clone());
        }
        held.frontends = wanted;
    }

    /// A port leaves a frontend, unless another one of its Service has taken it over.
    fn give_up(&mut self, port: Option<&PortKey>, key: ServiceKey, writes: &mut Writes) {
        if self
            .owners
            .get(&key)
            .is_some_and(|owner| Some(owner) != port)
        {
            return;
        }
        self.owners.remove(&key);
        writes.services.push(ServiceWrite::DeleteService { key });
    }

    /// The table by which clients outside are spread, made of what is in the slots.
    fn plan_maglev(&mut self, held: &mut HeldPort, wanted: bool, writes: &mut Writes) {
        let mut seated: Vec<(BackendValue, u32)> = Vec::new();
        if wanted {
            let named = |id: &u32| Some((*self.backend_by_id.get(id)?, *id));
            seated.extend(held.slots.iter().filter_map(named));
        }
        let table = &mut held.maglev;
        self.maglev.plan(table, &seated, &mut |index, backend| {
            writes
                .slots
                .push(ServiceWrite::PutMaglev { index, backend });
        });
    }

    /// Lets go of the backends that a port no longer lists.
    fn release(&mut self, held: &mut HeldPort, keep: &BTreeSet<u32>, writes: &mut Writes) {
        let gone: Vec<_> = held.backends.difference(keep).copied().collect();
        for id in gone {
            held.backends.remove(&id);
            let Some(value) = self.backend_by_id.get(&id) else {
                continue;
            };
            let Some(backend) = self.backends.get_mut(value) else {
                continue;
            };
            backend.references -= 1;
            if backend.references == 0 {
                self.backends.remove(value);
                self.backend_by_id.remove(&id);
                writes.unused.push(ServiceWrite::DeleteBackend { id });
            }
        }
    }

    fn remove_port(&mut self, port: Option<&PortKey>, mut held: HeldPort) -> Vec<ServiceWrite> {
        let mut writes = Writes::default();
        for key in held.frontends.keys() {
            self.give_up(port, *key, &mut writes);
        }
        self.plan_maglev(&mut held, false, &mut writes);
        plan_slots(&mut held, &BTreeSet::new(), &mut writes);
        plan_ranges(&mut held, &BTreeSet::new(), &mut writes);
        plan_members(&mut held, &BTreeMap::new(), &mut writes);
        self.release(&mut held, &BTreeSet::new(), &mut writes);
        writes.in_order()
    }
}

/// Fills the holes that departed backends leave with new ones, then with those from the
/// end, and appends what remains: as few slots as possible change.
fn plan_slots(held: &mut HeldPort, active: &BTreeSet<u32>, writes: &mut Writes) {
    let before = held.slots.clone();
    let seated: BTreeSet<u32> = before.iter().copied().collect();
    let mut arriving = active.difference(&seated).copied();
    // A run that died while it moved a backend left it in two slots.
    let mut seen = BTreeSet::new();
    let slots = &mut held.slots;
    let mut slot = 0;
    while slot < slots.len() {
        if active.contains(&slots[slot]) && seen.insert(slots[slot]) {
            slot += 1;
        } else if let Some(backend) = arriving.next() {
            seen.insert(backend);
            slots[slot] = backend;
            slot += 1;
        } else {
            // The last one takes the place, and is looked at in its turn.
            slots.swap_remove(slot);
        }
    }
    slots.extend(arriving);

    let key = |slot: usize| SlotKey {
        service: held.id,
        slot: slot as u32,
    };
    for (slot, backend) in slots.iter().enumerate() {
        if before.get(slot) != Some(backend) {
            writes.slots.push(ServiceWrite::PutSlot {
                key: key(slot),
                backend: *backend,
            });
        }
    }
    for slot in slots.len()..before.len() {
        writes
            .surplus
            .push(ServiceWrite::DeleteSlot { key: key(slot) });
    }
}

/// New ranges come before the frontends that ask for them, old ones go after.
fn plan_ranges(held: &mut HeldPort, wanted: &BTreeSet<IpNet>, writes: &mut Writes) {
    let key = |range: &IpNet| RangeKey {
        service: held.id,
        addr: range.addr().into(),
    };
    for range in wanted.difference(&held.source_ranges) {
        let (key, length) = (key(range), range.prefix_len());
        writes.members.push(ServiceWrite::PutRange { key, length });
    }
    for range in held.source_ranges.difference(wanted) {
        let (key, length) = (key(range), range.prefix_len());
        writes
            .unused
            .push(ServiceWrite::DeleteRange { key, length });
    }
    held.source_ranges = wanted.clone();
}

fn plan_members(held: &mut HeldPort, backends: &BTreeMap<u32, EndpointState>, writes: &mut Writes) {
    let service = held.id;
    let wanted: BTreeMap<u32, u32> = backends
        .iter()
        .filter_map(|(id, state)| match state {
            EndpointState::Ready | EndpointState::Fallback => Some((*id, member::ACTIVE)),
            EndpointState::Draining => Some((*id, member::DRAINING)),
            EndpointState::Known => None,
        })
        .collect();
    for (backend, state) in &wanted {
        if held.members.get(backend) != Some(state) {
            let key = MemberKey {
                service,
                backend: *backend,
            };
            writes
                .members
                .push(ServiceWrite::PutMember { key, state: *state });
        }
    }
    for backend in held
        .members
        .keys()
        .filter(|backend| !wanted.contains_key(backend))
    {
        let key = MemberKey {
            service,
            backend: *backend,
        };
        writes.unused.push(ServiceWrite::DeleteMember { key });
    }
    held.members = wanted;
}

/// Writes by kind, to be put into the order that keeps packets in between right.
#[derive(Default)]
struct Writes {
    backends: Vec<ServiceWrite>,
    members: Vec<ServiceWrite>,
    slots: Vec<ServiceWrite>,
    services: Vec<ServiceWrite>,
    surplus: Vec<ServiceWrite>,
    unused: Vec<ServiceWrite>,
}

impl Writes {
    fn in_order(self) -> Vec<ServiceWrite> {
        [
            self.backends,
            self.members,
            self.slots,
            self.services,
            self.surplus,
            self.unused,
        ]
        .concat()
    }
}

#[cfg(test)]
mod tests;
