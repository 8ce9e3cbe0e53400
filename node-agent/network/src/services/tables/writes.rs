//! Writes by kind, put into the order that keeps packets in between right.
//!
//! Those of many ports go in together: then long runs of one kind stand beside each other,
//! which the datapath hands to the kernel by the thousand.

use std::collections::BTreeSet;

use windlass_datapath::{
    ServiceWrite,
    types::{ServiceKey, ServiceValue},
};

#[derive(Default)]
pub(in crate::services) struct Writes {
    /// What went before anything else was planned: whole ports, each in its own order.
    pub(super) removals: Vec<ServiceWrite>,
    pub(super) backends: Vec<ServiceWrite>,
    pub(super) members: Vec<ServiceWrite>,
    pub(super) slots: Vec<ServiceWrite>,
    services: Vec<ServiceWrite>,
    /// Frontends that a port has left and no other has taken: one that changes its port is written over, and at no moment
    /// away.
    freed: BTreeSet<ServiceKey>,
    pub(super) surplus: Vec<ServiceWrite>,
    pub(super) unused: Vec<ServiceWrite>,
}

impl Writes {
    pub(super) fn put_service(&mut self, key: ServiceKey, value: ServiceValue) {
        self.freed.remove(&key);
        self.services.push(ServiceWrite::PutService { key, value });
    }

    pub(super) fn delete_service(&mut self, key: ServiceKey) {
        self.freed.insert(key);
    }

    pub(in crate::services) fn in_order(mut self) -> Vec<ServiceWrite> {
        let mut all = std::mem::take(&mut self.removals);
        let freed = self.freed.into_iter();
        let freed = freed.map(|key| ServiceWrite::DeleteService { key });
        for mut kind in [
            self.backends,
            self.members,
            self.slots,
            self.services,
            freed.collect(),
            self.surplus,
            self.unused,
        ] {
            all.append(&mut kind);
        }
        all
    }

    /// Whether an address has been given up, so that another Service may have it.
    pub(in crate::services) fn frees_a_frontend(&self) -> bool {
        // The latter: whole ports that were left behind.
        let mut ports = self.removals.iter().chain(&self.unused);
        !self.freed.is_empty()
            || ports.any(|write| matches!(write, ServiceWrite::DeleteService { .. }))
    }
}
