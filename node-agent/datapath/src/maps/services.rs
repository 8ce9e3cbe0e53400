//! The service tables. The kernel only reads them; one writer at a time changes them.

use std::collections::HashSet;

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use windlass_ebpf_types::{BackendValue, MemberKey, ServiceKey, ServiceValue, SlotKey};

use super::{Table, take};
use crate::{
    error::{Error, Result},
    raw::Raw,
};

/// One element write. Their order is the caller's, and it matters: a backend before the
/// slot that names it, a slot before the count that includes it, and the reverse to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceWrite {
    PutBackend {
        id: u32,
        backend: BackendValue,
    },
    /// `state` is one of [`windlass_ebpf_types::member`].
    PutMember {
        key: MemberKey,
        state: u32,
    },
    PutSlot {
        key: SlotKey,
        backend: u32,
    },
    PutService {
        key: ServiceKey,
        value: ServiceValue,
    },
    DeleteService {
        key: ServiceKey,
    },
    DeleteSlot {
        key: SlotKey,
    },
    DeleteMember {
        key: MemberKey,
    },
    DeleteBackend {
        id: u32,
    },
}

/// What the tables hold: the starting point of a restarted agent.
#[derive(Clone, Debug, Default)]
pub struct ServiceSnapshot {
    pub services: Vec<(ServiceKey, ServiceValue)>,
    pub slots: Vec<(SlotKey, u32)>,
    pub members: Vec<(MemberKey, u32)>,
    pub backends: Vec<(u32, BackendValue)>,
    /// The next ids that were never given out.
    pub next_service: u32,
    pub next_backend: u32,
}

pub struct ServiceMaps {
    services: Table<Raw<ServiceKey>, Raw<ServiceValue>>,
    slots: Table<Raw<SlotKey>, u32>,
    members: Table<Raw<MemberKey>, u32>,
    backends: Table<u32, Raw<BackendValue>>,
    cursor: Array<MapData, u32>,
}

impl ServiceMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            services: Table::take(ebpf, "SERVICES")?,
            slots: Table::take(ebpf, "SLOTS")?,
            members: Table::take(ebpf, "MEMBERS")?,
            backends: Table::take(ebpf, "BACKENDS")?,
            cursor: take(ebpf, "ID_CURSOR")?,
        })
    }

    pub fn snapshot(&self) -> Result<ServiceSnapshot> {
        Ok(ServiceSnapshot {
            services: self
                .services
                .entries()?
                .into_iter()
                .map(|(k, v)| (k.0, v.0))
                .collect(),
            slots: self
                .slots
                .entries()?
                .into_iter()
                .map(|(k, v)| (k.0, v))
                .collect(),
            members: self
                .members
                .entries()?
                .into_iter()
                .map(|(k, v)| (k.0, v))
                .collect(),
            backends: self
                .backends
                .entries()?
                .into_iter()
                .map(|(k, v)| (k, v.0))
                .collect(),
            next_service: self.cursor(0)?,
            next_backend: self.cursor(1)?,
        })
    }

    /// Writes in the given order and stops at the first failure, after which the tables
    /// are still consistent (see [`ServiceWrite`]) but hold only a part of the change.
    pub fn apply(&mut self, writes: &[ServiceWrite]) -> Result<()> {
        for write in writes {
            match *write {
                ServiceWrite::PutBackend { id, backend } => self.backends.put(id, Raw(backend)),
                ServiceWrite::PutMember { key, state } => self.members.put(Raw(key), state),
                ServiceWrite::PutSlot { key, backend } => self.slots.put(Raw(key), backend),
                ServiceWrite::PutService { key, value } => self.services.put(Raw(key), Raw(value)),
                ServiceWrite::DeleteService { key } => self.services.remove(&Raw(key)),
                ServiceWrite::DeleteSlot { key } => self.slots.remove(&Raw(key)),
                ServiceWrite::DeleteMember { key } => self.members.remove(&Raw(key)),
                ServiceWrite::DeleteBackend { id } => self.backends.remove(&id),
            }?;
        }
        Ok(())
    }

    /// Records the next free ids. To be called before an id from below them is written.
    pub fn set_cursor(&mut self, next_service: u32, next_backend: u32) -> Result<()> {
        for (index, value) in [(0, next_service), (1, next_backend)] {
            self.cursor
                .set(index, value, 0)
                .map_err(|error| Error::map("write to", "ID_CURSOR", error))?;
        }
        Ok(())
    }

    pub(crate) fn backend_ids(&self) -> Result<HashSet<u32>> {
        let mut ids = HashSet::new();
        self.backends.visit(|id, _| {
            ids.insert(id);
        })?;
        Ok(ids)
    }

    pub(crate) fn member_keys(&self) -> Result<HashSet<MemberKey>> {
        let mut keys = HashSet::new();
        self.members.visit(|Raw(key), _| {
            keys.insert(key);
        })?;
        Ok(keys)
    }

    pub(crate) fn is_member(&self, key: MemberKey) -> Result<bool> {
        Ok(self.members.get(&Raw(key))?.is_some())
    }

    pub(crate) fn is_backend(&self, id: u32) -> Result<bool> {
        Ok(self.backends.get(&id)?.is_some())
    }

    fn cursor(&self, index: u32) -> Result<u32> {
        self.cursor
            .get(&index, 0)
            .map_err(|error| Error::map("read", "ID_CURSOR", error))
    }
}
