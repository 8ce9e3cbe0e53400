//! Writes by kind, put into the order that keeps packets in between right.
//!
//! Those of many ports go in together: then long runs of one kind stand beside each other,
//! which the datapath hands to the kernel by the thousand.

use windlass_datapath::ServiceWrite;

#[derive(Default)]
pub(in crate::services) struct Writes {
    /// What went before anything else was planned: whole ports, each in its own order.
    pub(super) removals: Vec<ServiceWrite>,
    pub(super) backends: Vec<ServiceWrite>,
    pub(super) members: Vec<ServiceWrite>,
    pub(super) slots: Vec<ServiceWrite>,
    pub(super) services: Vec<ServiceWrite>,
    pub(super) surplus: Vec<ServiceWrite>,
    pub(super) unused: Vec<ServiceWrite>,
}

impl Writes {
    pub(in crate::services) fn in_order(mut self) -> Vec<ServiceWrite> {
        let mut all = std::mem::take(&mut self.removals);
        for mut kind in [
            self.backends,
            self.members,
            self.slots,
            self.services,
            self.surplus,
            self.unused,
        ] {
            all.append(&mut kind);
        }
        all
    }

    /// Whether an address has been given up, so that another Service may have it.
    pub(in crate::services) fn frees_a_frontend(&self) -> bool {
        self.removals
            .iter()
            .chain(&self.services)
            // Whole ports that were left behind.
            .chain(&self.unused)
            .any(|write| matches!(write, ServiceWrite::DeleteService { .. }))
    }
}
