//! The service tables. The kernel only reads them; one writer at a time changes them.

use std::{mem::discriminant, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{
        Array, IterableMap, MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use windlass_ebpf_types::{BackendValue, MemberKey, RangeKey, ServiceKey, ServiceValue, SlotKey};

use super::{Table, is_missing, node::prefix_length, take};
use crate::{
    error::{Error, Result},
    raw::Raw,
    sys::MappedArray,
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
    /// `length` is the prefix's, of the address's family.
    PutRange {
        key: RangeKey,
        length: u8,
    },
    /// One entry of a Maglev table.
    PutMaglev {
        index: u32,
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
    DeleteRange {
        key: RangeKey,
        length: u8,
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
    /// With the prefix's length.
    pub source_ranges: Vec<(RangeKey, u8)>,
    /// All Maglev tables, each as long as the programs take them to be.
    pub maglev: Vec<u32>,
    pub maglev_size: u32,
    /// The next ids that were never given out.
    pub next_service: u32,
    pub next_backend: u32,
}

pub struct ServiceMaps {
    services: Table<Raw<ServiceKey>, Raw<ServiceValue>>,
    slots: Table<Raw<SlotKey>, u32>,
    members: Table<Raw<MemberKey>, u32>,
    backends: Table<u32, Raw<BackendValue>>,
    source_ranges: LpmTrie<MapData, Raw<RangeKey>, u32>,
    maglev: Array<MapData, u32>,
    maglev_size: u32,
    cursor: Array<MapData, u32>,
    /// What the cursor says, once it has been written.
    recorded: Option<[u32; 2]>,
}

/// From so many writes of one kind on, one call for all of them is worth its preparation.
const BATCH_FROM: usize = 8;

impl ServiceMaps {
    pub(crate) fn take(ebpf: &mut Ebpf, maglev_size: u32) -> Result<Self> {
        Ok(Self {
            services: Table::take(ebpf, "SERVICES")?,
            slots: Table::take(ebpf, "SLOTS")?,
            members: Table::take(ebpf, "MEMBERS")?,
            backends: Table::take(ebpf, "BACKENDS")?,
            source_ranges: take(ebpf, "SOURCE_RANGES")?,
            maglev: take(ebpf, "MAGLEV")?,
            maglev_size,
            cursor: take(ebpf, "ID_CURSOR")?,
            recorded: None,
        })
    }

    /// Mapped only while it is used: the kernel counts all of it as this process's memory.
    fn mapped_maglev(&self) -> Result<MappedArray> {
        let map = IterableMap::map(&self.maglev);
        // A map that was there already keeps its size, whatever is asked for now.
        let info = map.info();
        let length = info
            .map_err(|error| Error::map("ask about", "MAGLEV", error))?
            .max_entries();
        MappedArray::new(map.fd().as_fd(), length).map_err(|source| Error::Link {
            doing: "map the memory",
            target: "map MAGLEV".to_owned(),
            source,
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
            source_ranges: self
                .source_ranges
                .keys()
                .map(|key| {
                    let key = key?;
                    let range = key.data().0;
                    let family = if range.addr.is_v4() { 96 } else { 0 };
                    let length = key.prefix_len().saturating_sub(32 + family);
                    Ok((range, u8::try_from(length).unwrap_or(u8::MAX)))
                })
                .collect::<Result<_, _>>()
                .map_err(|error| Error::map("read", "SOURCE_RANGES", error))?,
            maglev: self.mapped_maglev()?.read(),
            maglev_size: self.maglev_size,
            next_service: self.cursor(0)?,
            next_backend: self.cursor(1)?,
        })
    }

    /// Writes in the given order and stops at the first failure, after which the tables
    /// are still consistent (see [`ServiceWrite`]) but hold only a part of the change.
    pub fn apply(&mut self, writes: &[ServiceWrite]) -> Result<()> {
        let mut maglev = None;
        let alike = |a: &ServiceWrite, b: &ServiceWrite| discriminant(a) == discriminant(b);
        for run in writes.chunk_by(alike) {
            if run.len() < BATCH_FROM || !self.put_run(run)? {
                for write in run {
                    self.apply_one(write, &mut maglev)?;
                }
            }
        }
        Ok(())
    }

    /// Writes elements of one kind by one call; `false` when that is not possible for them.
    fn put_run(&mut self, run: &[ServiceWrite]) -> Result<bool> {
        macro_rules! put_run {
            ($table:ident, $pattern:pat => $pair:expr) => {{
                let pair = |write: &ServiceWrite| match *write {
                    $pattern => Some($pair),
                    _ => None,
                };
                let (keys, values): (Vec<_>, Vec<_>) = run.iter().filter_map(pair).unzip();
                self.$table.put_all(&keys, &values)?;
            }};
        }
        match run[0] {
            ServiceWrite::PutBackend { .. } => {
                put_run!(backends, ServiceWrite::PutBackend { id, backend } => (id, Raw(backend)));
            }
            ServiceWrite::PutMember { .. } => {
                put_run!(members, ServiceWrite::PutMember { key, state } => (Raw(key), state));
            }
            ServiceWrite::PutSlot { .. } => {
                put_run!(slots, ServiceWrite::PutSlot { key, backend } => (Raw(key), backend));
            }
            ServiceWrite::PutService { .. } => {
                put_run!(services, ServiceWrite::PutService { key, value } => (Raw(key), Raw(value)));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn apply_one(&mut self, write: &ServiceWrite, maglev: &mut Option<MappedArray>) -> Result<()> {
        match *write {
            ServiceWrite::PutBackend { id, backend } => self.backends.put(id, Raw(backend)),
            ServiceWrite::PutMember { key, state } => self.members.put(Raw(key), state),
            ServiceWrite::PutSlot { key, backend } => self.slots.put(Raw(key), backend),
            ServiceWrite::PutRange { key, length } => self
                .source_ranges
                .insert(&range_key(key, length), 1, 0)
                .map_err(|error| Error::map("write to", "SOURCE_RANGES", error)),
            ServiceWrite::DeleteRange { key, length } => self
                .source_ranges
                .remove(&range_key(key, length))
                .or_else(|error| match is_missing(&error) {
                    true => Ok(()),
                    false => Err(Error::map("remove from", "SOURCE_RANGES", error)),
                }),
            ServiceWrite::PutMaglev { index, backend } => {
                let mapped = match maglev {
                    Some(mapped) => mapped,
                    None => maglev.insert(self.mapped_maglev()?),
                };
                mapped.set(index, backend);
                Ok(())
            }
            ServiceWrite::PutService { key, value } => self.services.put(Raw(key), Raw(value)),
            ServiceWrite::DeleteService { key } => self.services.remove(&Raw(key)),
            ServiceWrite::DeleteSlot { key } => self.slots.remove(&Raw(key)),
            ServiceWrite::DeleteMember { key } => self.members.remove(&Raw(key)),
            ServiceWrite::DeleteBackend { id } => self.backends.remove(&id),
        }
    }

    /// What the tables have room for, by the names of the maps.
    pub fn capacities(&self) -> Result<[(&'static str, u32); 4]> {
        Ok([
            ("SERVICES", self.services.capacity()?),
            ("SLOTS", self.slots.capacity()?),
            ("MEMBERS", self.members.capacity()?),
            ("BACKENDS", self.backends.capacity()?),
        ])
    }

    /// Records the next free ids. To be called before an id from below them is written.
    pub fn set_cursor(&mut self, next_service: u32, next_backend: u32) -> Result<()> {
        let next = [next_service, next_backend];
        if self.recorded == Some(next) {
            return Ok(());
        }
        self.recorded = None;
        for (index, value) in (0..).zip(next) {
            self.cursor
                .set(index, value, 0)
                .map_err(|error| Error::map("write to", "ID_CURSOR", error))?;
        }
        self.recorded = Some(next);
        Ok(())
    }

    pub(crate) fn is_service(&self, key: ServiceKey) -> Result<bool> {
        Ok(self.services.get(&Raw(key))?.is_some())
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

fn range_key(key: RangeKey, length: u8) -> Key<Raw<RangeKey>> {
    Key::new(32 + prefix_length(key.addr.to_ip(), length), Raw(key))
}
