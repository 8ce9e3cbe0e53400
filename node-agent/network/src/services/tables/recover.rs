//! The state that an earlier run left in the kernel: found, and not yet claimed by a Service.

use std::net::IpAddr;

use ahash::AHashMap;
use ipnet::IpNet;
use windlass_datapath::{
    ServiceSnapshot,
    types::{ServiceKey, ServiceValue, SlotKey},
};

use super::{Tables, held::HeldPort};
use crate::services::maglev_tables::MaglevTables;

/// A port as it is found, piece by piece.
#[derive(Default)]
struct Found {
    port: HeldPort,
    frontends: Vec<(ServiceKey, ServiceValue)>,
    backends: Vec<(u32, u32)>,
    slots: Vec<u32>,
    source_ranges: Vec<IpNet>,
}

impl Found {
    fn finish(mut self, id: u32) -> HeldPort {
        self.frontends.sort_unstable_by_key(|(key, _)| *key);
        self.backends.sort_unstable_by_key(|(backend, _)| *backend);
        self.source_ranges.sort_unstable();
        HeldPort {
            id,
            frontends: self.frontends.into(),
            backends: self.backends.into(),
            slots: self.slots.into(),
            source_ranges: self.source_ranges.into(),
            ready_here: <Box<[IpAddr]>>::default(),
            ..self.port
        }
    }
}

impl Tables {
    pub fn recover(snapshot: &ServiceSnapshot) -> Self {
        let mut tables = Self {
            // 0 stands for "no service" in a tracked connection.
            next_service: snapshot.next_service.max(1),
            next_backend: snapshot.next_backend.max(1),
            maglev: MaglevTables::new(snapshot.maglev_size, snapshot.maglev.len()),
            ..Self::default()
        };
        let mut found: AHashMap<u32, Found> = AHashMap::new();
        for (key, value) in &snapshot.services {
            let one = found.entry(value.id).or_default();
            if value.maglev != 0 && one.port.maglev.is_none() {
                let table = tables.maglev.adopt(value.maglev, &snapshot.maglev);
                one.port.maglev = table.map(Box::new);
            }
            one.frontends.push((*key, *value));
            tables.unclaimed_frontends.insert(*key, value.id);
        }
        for (key, state) in &snapshot.members {
            let one = found.entry(key.service).or_default();
            one.backends.push((key.backend, *state));
        }
        for (key, length) in &snapshot.source_ranges {
            let range = IpNet::new(key.addr.to_ip(), *length);
            let one = found.entry(key.service).or_default();
            one.source_ranges.extend(range.ok());
        }
        let mut slots: Vec<(SlotKey, u32)> = snapshot.slots.clone();
        slots.sort_unstable();
        for (key, backend) in slots {
            let one = found.entry(key.service).or_default();
            // A run that died between two writes may have left a hole; what lies behind
            // it is still to be deleted, so it must be known. 0 is nobody's id.
            one.slots.resize(key.slot as usize, 0);
            one.slots.push(backend);
        }
        for (id, value) in &snapshot.backends {
            tables.backends.insert(*id, *value);
            tables.next_backend = tables.next_backend.max(id.wrapping_add(1));
        }
        for (id, one) in found {
            tables.next_service = tables.next_service.max(id.wrapping_add(1));
            let port = one.finish(id);
            for (backend, _) in &port.backends {
                tables.backends.refer(*backend);
            }
            tables.unclaimed.insert(id, port);
        }
        tables
    }
}
