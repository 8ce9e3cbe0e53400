//! One set of endpoints as the tables hold it, and the writes that make its slots, members
//! and ranges what they should be.
//!
//! Sorted vectors rather than trees: there are tens of thousands of these, most of a few
//! entries, and a tree's smallest node has room for eleven.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use windlass_datapath::{
    ServiceWrite,
    types::{MemberKey, RangeKey, ServiceKey, ServiceValue, SlotKey, member},
};

use super::{super::compile::EndpointState, super::maglev_tables::HeldTable, writes::Writes};

/// A backend that a port keeps alive without sending anything to it.
pub(super) const NO_MEMBER: u32 = 0;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HeldPort {
    pub(super) id: u32,
    /// Sorted by key.
    pub(super) frontends: Box<[(ServiceKey, ServiceValue)]>,
    /// Backend ids by slot.
    pub(super) slots: Box<[u32]>,
    /// Every backend that this port keeps alive, with its state in `MEMBERS` or
    /// [`NO_MEMBER`]; sorted by id.
    pub(super) backends: Box<[(u32, u32)]>,
    /// Addresses of this node's endpoints that are in a slot because they are ready.
    pub(super) ready_here: Box<[IpAddr]>,
    pub(super) source_ranges: Box<[IpNet]>,
    pub(super) maglev: Option<Box<HeldTable>>,
}

impl HeldPort {
    pub(super) fn holds(&self, backend: u32) -> bool {
        self.state_of(backend).is_some()
    }

    pub(super) fn members(&self) -> usize {
        let states = self.backends.iter().map(|(_, state)| *state);
        states.filter(|state| *state != NO_MEMBER).count()
    }

    fn state_of(&self, backend: u32) -> Option<u32> {
        let found = self.backends.binary_search_by_key(&backend, |(id, _)| *id);
        found.ok().map(|at| self.backends[at].1)
    }

    /// Fills the holes that departed backends leave with new ones, then with those from the
    /// end, and appends what remains: as few slots as possible change.
    pub(super) fn plan_slots(&mut self, active: &BTreeSet<u32>, writes: &mut Writes) {
        let seated: BTreeSet<u32> = self.slots.iter().copied().collect();
        let mut arriving = active.difference(&seated).copied();
        // A run that died while it moved a backend left it in two slots.
        let mut seen = BTreeSet::new();
        let mut slots = self.slots.to_vec();
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
            service: self.id,
            slot: slot as u32,
        };
        for (slot, backend) in slots.iter().enumerate() {
            if self.slots.get(slot) != Some(backend) {
                writes.slots.push(ServiceWrite::PutSlot {
                    key: key(slot),
                    backend: *backend,
                });
            }
        }
        for slot in slots.len()..self.slots.len() {
            let key = key(slot);
            writes.surplus.push(ServiceWrite::DeleteSlot { key });
        }
        self.slots = slots.into();
    }

    /// New ranges come before the frontends that ask for them, old ones go after.
    pub(super) fn plan_ranges(&mut self, wanted: &BTreeSet<IpNet>, writes: &mut Writes) {
        let key = |range: &IpNet| RangeKey {
            service: self.id,
            addr: range.addr().into(),
        };
        for range in wanted {
            if !self.source_ranges.contains(range) {
                let (key, length) = (key(range), range.prefix_len());
                writes.members.push(ServiceWrite::PutRange { key, length });
            }
        }
        for range in &self.source_ranges {
            if !wanted.contains(range) {
                let (key, length) = (key(range), range.prefix_len());
                let gone = ServiceWrite::DeleteRange { key, length };
                writes.unused.push(gone);
            }
        }
        self.source_ranges = wanted.iter().copied().collect();
    }

    /// Returns the backends that it lets go of.
    pub(super) fn plan_members(
        &mut self,
        backends: &BTreeMap<u32, EndpointState>,
        writes: &mut Writes,
    ) -> Vec<u32> {
        let key = |backend| MemberKey {
            service: self.id,
            backend,
        };
        let mut wanted = Vec::with_capacity(backends.len());
        for (backend, state) in backends {
            let state = match state {
                EndpointState::Ready | EndpointState::Fallback => member::ACTIVE,
                EndpointState::Draining => member::DRAINING,
                EndpointState::Known => NO_MEMBER,
            };
            wanted.push((*backend, state));
            let held = self.state_of(*backend).unwrap_or(NO_MEMBER);
            let key = key(*backend);
            if state == NO_MEMBER && held != NO_MEMBER {
                writes.unused.push(ServiceWrite::DeleteMember { key });
            } else if state != held {
                writes.members.push(ServiceWrite::PutMember { key, state });
            }
        }
        let mut gone = Vec::new();
        for (backend, held) in &self.backends {
            if backends.contains_key(backend) {
                continue;
            }
            gone.push(*backend);
            if *held != NO_MEMBER {
                let key = key(*backend);
                writes.unused.push(ServiceWrite::DeleteMember { key });
            }
        }
        self.backends = wanted.into();
        gone
    }
}
