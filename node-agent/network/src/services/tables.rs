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
use windlass_datapath::{
    ServiceWrite,
    types::{BackendValue, ServiceKey, ServiceValue},
};

pub(super) use self::writes::Writes;
use self::{
    backends::{Backends, Unlisted},
    held::HeldPort,
};
use super::{
    compile::{DesiredPort, EndpointState, Policy, PortKey},
    maglev_tables::{HeldTable, MaglevTables},
    parse::ServiceName,
};

mod backends;
mod held;
mod recover;
mod writes;

#[derive(Debug, Default)]
pub struct Tables {
    /// Ordered, so that the ports of one Service lie side by side.
    ports: BTreeMap<PortKey, HeldPort>,
    backends: Backends,
    /// The id of the port that a frontend belongs to: of two Services that claim one, the first keeps it.
    owners: AHashMap<ServiceKey, u32>,
    /// In how many ports an address of this node is a ready endpoint.
    ready_here: AHashMap<IpAddr, u32>,
    /// Found in the tables at the start and not claimed by a Service yet.
    unclaimed: AHashMap<u32, HeldPort>,
    unclaimed_frontends: AHashMap<ServiceKey, u32>,
    maglev: MaglevTables,
    /// Ids of ports that are no more, since somebody asked.
    retired: Vec<u32>,
    /// Somebody knows which pods there are: an endpoint that leaves its Service need not have gone.
    asks_for_pods: bool,
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
    /// The next free ids, to be recorded before the writes of a plan are applied.
    pub fn cursor(&self) -> (u32, u32) {
        (self.next_service, self.next_backend)
    }

    /// Elements in the kernel's maps, by their names; those that an earlier run left and nobody has claimed yet
    /// are not counted.
    pub(super) fn sizes(&self) -> [(&'static str, usize); 4] {
        let sum = |of: fn(&HeldPort) -> usize| self.ports.values().map(of).sum();
        [
            ("SERVICES", self.owners.len()),
            ("SLOTS", sum(|port| port.slots.len())),
            ("MEMBERS", sum(HeldPort::members)),
            ("BACKENDS", self.backends.len()),
        ]
    }

    /// The ports by their ids.
    pub(super) fn ids(&self) -> impl Iterator<Item = (u32, &PortKey)> {
        self.ports.iter().map(|(key, held)| (held.id, key))
    }

    /// Ids of ports that are no more, since the last call.
    pub(super) fn take_retired(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.retired)
    }

    /// Somebody will say which pods there are (see [`Self::forget_departed`]).
    pub(crate) fn ask_for_pods(&mut self) {
        self.asks_for_pods = true;
    }

    /// Backends that no port lists, with their addresses: what they have goes on.
    pub fn unlisted(&self) -> Vec<(u32, IpAddr)> {
        self.backends.unlisted().collect()
    }

    /// The writes that remove unlisted backends whose pods have gone; `lives` says whether one has an address, if that
    /// is known.
    pub fn forget_departed(&mut self, lives: impl Fn(IpAddr) -> Option<bool>) -> Vec<ServiceWrite> {
        let departed = self.backends.departed(lives);
        self.forget_unlisted(departed)
    }

    /// The writes that remove those of these backends that no port lists.
    pub(crate) fn forget_unlisted(
        &mut self,
        ids: impl IntoIterator<Item = u32>,
    ) -> Vec<ServiceWrite> {
        let mut writes = Vec::new();
        for id in ids {
            if self.backends.is_unlisted(id) {
                self.backends.remove(id);
                writes.push(ServiceWrite::DeleteBackend { id });
            }
        }
        writes
    }

    /// Whether new connections may be sent to an address of this node because it is ready.
    pub(crate) fn is_ready_target(&self, address: IpAddr) -> bool {
        self.ready_here.contains_key(&address)
    }

    /// Ports of one Service that are held.
    pub fn ports_of(&self, service: &ServiceName) -> Vec<PortKey> {
        self.held_by(service).map(|(key, _)| key.clone()).collect()
    }

    fn held_by(&self, service: &ServiceName) -> impl Iterator<Item = (&PortKey, &HeldPort)> {
        let first = PortKey {
            service: service.clone(),
            port: "".into(),
            protocol: 0,
            is_v4: false,
            policy: Policy::Cluster,
        };
        self.ports
            .range(first..)
            .take_while(move |(key, _)| key.service == *service)
    }

    /// Adds the writes that make one port what it should be; the tables here are that
    /// already. If the writes fail, the caller must [`Self::recover`] from what the kernel
    /// holds. Returns the frontends that belong to another Service.
    pub(super) fn plan_port(
        &mut self,
        desired: &DesiredPort,
        writes: &mut Writes,
    ) -> Vec<ServiceKey> {
        let mut contested = Vec::new();
        let mut frontends = Vec::new();
        // A change of policy moves an address from one set of a Service to another.
        let own: Vec<u32> = self
            .held_by(&desired.key.service)
            .map(|(_, held)| held.id)
            .collect();
        for key in desired.frontends.keys() {
            match self.owners.get(key) {
                Some(owner) if !own.contains(owner) => contested.push(*key),
                _ => frontends.push(*key),
            }
        }
        let mut held = self.take(&desired.key, &frontends);
        let backends = self.backends_of(&held, desired, writes);
        let active: BTreeSet<u32> = backends
            .iter()
            .filter(|(_, state)| **state >= EndpointState::Fallback)
            .map(|(id, _)| *id)
            .collect();
        held.plan_slots(&active, writes);
        let gone = held.plan_members(&backends, writes);
        held.plan_ranges(&desired.source_ranges, writes);
        self.plan_maglev(&mut held, desired.hashed, writes);
        self.plan_frontends(&mut held, desired, &frontends, writes);
        let dismissed = self.asks_for_pods.then_some(Unlisted::Dismissed);
        self.release(&gone, writes, |left| {
            // By another port it is still there.
            let mut listed = desired.endpoints.keys();
            match listed.any(|it| it.addr == left.addr) {
                true => Some(Unlisted::ServiceGone),
                false => dismissed,
            }
        });
        self.set_ready(&mut held, &desired.ready_here);
        self.ports.insert(desired.key.clone(), held);
        contested
    }

    /// The same as a plan of its own.
    pub fn plan(&mut self, desired: &DesiredPort) -> Plan {
        let mut writes = Writes::default();
        self.maglev.begin();
        let contested = self.plan_port(desired, &mut writes);
        Plan {
            writes: writes.in_order(),
            contested,
        }
    }

    /// To be called before the first port of a plan. What one plan gives back, only a later
    /// one gives out again: the writes of different ports are mixed.
    pub(super) fn begin(&mut self) {
        self.maglev.begin();
    }

    /// Adds the writes that remove a port, before all others.
    pub(super) fn remove_first(&mut self, key: &PortKey, writes: &mut Writes) {
        let mut all = self.plan_removal(key);
        writes.removals.append(&mut all);
    }

    /// Adds the writes that remove a port, after all others.
    pub(super) fn remove_last(&mut self, key: &PortKey, writes: &mut Writes) {
        let mut all = self.plan_removal(key);
        writes.unused.append(&mut all);
    }

    /// The writes that remove a port.
    pub fn plan_removal(&mut self, key: &PortKey) -> Vec<ServiceWrite> {
        match self.ports.remove(key) {
            Some(held) => self.remove_port(held),
            None => Vec::new(),
        }
    }

    /// The writes that remove what an earlier run left and no Service has claimed. To be
    /// asked for once every Service is known, and has been planned.
    pub fn plan_removal_of_unclaimed(&mut self) -> Vec<ServiceWrite> {
        let unclaimed: Vec<_> = self.unclaimed.drain().map(|(_, held)| held).collect();
        let mut writes: Vec<_> = unclaimed
            .into_iter()
            .flat_map(|held| self.remove_port(held))
            .collect();
        self.unclaimed_frontends.clear();
        let unreferenced: Vec<_> = self
            .backends
            .iter()
            .filter(|(id, held)| held.references == 0 && !self.backends.is_unlisted(*id))
            .map(|(id, _)| id)
            .collect();
        for id in unreferenced {
            self.backends.remove(id);
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
            .filter(|key| !key.is_other_ports())
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
        held: &HeldPort,
        desired: &DesiredPort,
        writes: &mut Writes,
    ) -> BTreeMap<u32, EndpointState> {
        let mut ids = BTreeMap::new();
        for (value, state) in &desired.endpoints {
            let id = self.backends.id_of(value).unwrap_or_else(|| {
                let (id, backend) = (self.next_backend, *value);
                self.next_backend = self.next_backend.wrapping_add(1).max(1);
                self.backends.insert(id, backend);
                writes
                    .backends
                    .push(ServiceWrite::PutBackend { id, backend });
                id
            });
            if !held.holds(id) {
                self.backends.refer(id);
            }
            if let Some(backend) = self.backends.list(id) {
                writes
                    .backends
                    .push(ServiceWrite::PutBackend { id, backend });
            }
            ids.insert(id, *state);
        }
        ids
    }

    fn plan_frontends(
        &mut self,
        held: &mut HeldPort,
        desired: &DesiredPort,
        frontends: &[ServiceKey],
        writes: &mut Writes,
    ) {
        let base = ServiceValue {
            id: held.id,
            count: held.slots.len() as u32,
            affinity_seconds: desired.affinity_seconds,
            flags: 0,
            maglev: held.maglev.as_deref().map_or(0, HeldTable::reference),
        };
        // In the order of a map's keys, that is: sorted.
        let value = |key: &ServiceKey| {
            let flags = desired.frontends.get(key).copied().unwrap_or_default();
            let value = match key.is_other_ports() {
                false => ServiceValue { flags, ..base },
                // The same whoever serves.
                true => ServiceValue {
                    id: held.id,
                    ..ServiceValue::default()
                },
            };
            (*key, value)
        };
        let wanted: Box<[_]> = frontends.iter().map(value).collect();
        let find = |all: &[(ServiceKey, ServiceValue)], key: &ServiceKey| {
            let found = all.binary_search_by_key(key, |(key, _)| *key);
            found.ok().map(|at| all[at].1)
        };
        for (key, _) in &held.frontends {
            if find(&wanted, key).is_none() {
                self.give_up(held.id, *key, writes);
            }
        }
        for (key, value) in &wanted {
            let is_owner = self.owners.get(key) == Some(&held.id);
            if !is_owner || find(&held.frontends, key) != Some(*value) {
                writes.put_service(*key, *value);
            }
            if !is_owner {
                self.owners.insert(*key, held.id);
            }
        }
        held.frontends = wanted;
    }

    /// A port leaves a frontend, unless another one of its Service has taken it over.
    fn give_up(&mut self, port: u32, key: ServiceKey, writes: &mut Writes) {
        if self.owners.get(&key).is_some_and(|owner| *owner != port) {
            return;
        }
        self.owners.remove(&key);
        writes.delete_service(key);
    }

    /// The table by which clients outside are spread, made of what is in the slots.
    fn plan_maglev(&mut self, held: &mut HeldPort, wanted: bool, writes: &mut Writes) {
        let mut seated: Vec<(BackendValue, u32)> = Vec::new();
        if wanted {
            let named = |id: &u32| Some((self.backends.value(*id)?, *id));
            seated.extend(held.slots.iter().filter_map(named));
        }
        let table = &mut held.maglev;
        self.maglev.plan(table, &seated, &mut |index, backend| {
            writes
                .slots
                .push(ServiceWrite::PutMaglev { index, backend });
        });
    }

    /// Lets go of the backends that a port no longer lists; of those that no other does `keeps` says whether, and why,
    /// their connections go on. The kernel knows that before it no longer knows whose they were.
    fn release(
        &mut self,
        gone: &[u32],
        writes: &mut Writes,
        keeps: impl Fn(&BackendValue) -> Option<Unlisted>,
    ) {
        for id in gone.iter().copied() {
            if !self.backends.release(id) {
                continue;
            }
            let why = self.backends.value(id).and_then(|value| keeps(&value));
            match why.and_then(|why| self.backends.keep(id, why)) {
                Some(backend) => writes
                    .backends
                    .push(ServiceWrite::PutBackend { id, backend }),
                None => {
                    self.backends.remove(id);
                    writes.unused.push(ServiceWrite::DeleteBackend { id });
                }
            }
        }
    }

    fn set_ready(&mut self, held: &mut HeldPort, ready: &BTreeSet<IpAddr>) {
        for address in ready {
            *self.ready_here.entry(*address).or_default() += 1;
        }
        for address in &held.ready_here {
            if let Some(count) = self.ready_here.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.ready_here.remove(address);
                }
            }
        }
        held.ready_here = ready.iter().copied().collect();
    }

    fn remove_port(&mut self, mut held: HeldPort) -> Vec<ServiceWrite> {
        let mut writes = Writes::default();
        self.retired.push(held.id);
        for (key, _) in &held.frontends {
            self.give_up(held.id, *key, &mut writes);
        }
        self.plan_maglev(&mut held, false, &mut writes);
        held.plan_slots(&BTreeSet::new(), &mut writes);
        held.plan_ranges(&BTreeSet::new(), &mut writes);
        let gone = held.plan_members(&BTreeMap::new(), &mut writes);
        self.release(&gone, &mut writes, |_| Some(Unlisted::ServiceGone));
        self.set_ready(&mut held, &BTreeSet::new());
        writes.in_order()
    }
}

#[cfg(test)]
mod tests;
