//! The table of connections, entry by entry: the kernel keeps those of both ways between two ends together
//! (see `windlass_ebpf_types::Ways`).

use aya::Ebpf;
use windlass_ebpf_types::{Connection, Tuple, Ways};

use super::Table;
use crate::{error::Result, raw::Raw};

pub(super) struct Connections(Table<Raw<Tuple>, Raw<Ways>>);

/// Of the table, as of some moment of the visit for each.
#[derive(Default)]
pub(super) struct Elements {
    pub(super) count: usize,
    /// The ends of those that two processors have left with nothing in them, each while the other way was still there.
    pub(super) empty: Vec<Tuple>,
}

impl Connections {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self(Table::take(ebpf, "CONNTRACK")?))
    }

    /// How many elements there is room for; a connection that is translated takes two, any other one.
    pub(super) fn capacity(&self) -> Result<usize> {
        Ok(self.0.capacity()? as usize)
    }

    pub(super) fn get(&self, tuple: &Tuple) -> Result<Option<Connection>> {
        let ways = self.0.get(&Raw(tuple.ends()))?;
        Ok(ways
            .map(|Raw(ways)| ways.0[tuple.way()])
            .filter(Connection::is_there))
    }

    /// Writes down what is known of packets with this tuple, unless something was. Whether it was nothing.
    pub(super) fn put_new(&mut self, tuple: &Tuple, entry: Connection) -> Result<bool> {
        let key = Raw(tuple.ends());
        let held = self.0.get(&key)?;
        let mut ways = held.map_or(Ways([Connection::NONE; 2]), |Raw(ways)| ways);
        let is_new = !ways.0[tuple.way()].is_there();
        if is_new {
            ways.0[tuple.way()] = entry;
            self.0.put(key, Raw(ways))?;
        }
        Ok(is_new)
    }

    /// Looks at every entry.
    pub(super) fn visit(&self, mut visit: impl FnMut(Tuple, Connection)) -> Result<Elements> {
        let mut seen = Elements::default();
        self.0.visit(|Raw(ends), Raw(ways)| {
            seen.count += 1;
            if ways.is_empty() {
                seen.empty.push(ends);
            }
            for (tuple, entry) in ways.entries(&ends) {
                visit(tuple, entry);
            }
        })?;
        Ok(seen)
    }

    /// The other way stays, and goes on by itself: what its packets change in this instant may be lost, as it may where
    /// two processors change an entry. Whether room was made.
    pub(super) fn remove(&mut self, tuple: &Tuple) -> Result<bool> {
        let key = Raw(tuple.ends());
        let Some(Raw(mut ways)) = self.0.get(&key)? else {
            return Ok(false);
        };
        ways.0[tuple.way()] = Connection::NONE;
        let goes = ways.is_empty();
        if goes {
            self.0.remove(&key)?;
        } else {
            self.0.put(key, Raw(ways))?;
        }
        Ok(goes)
    }

    /// Removes an element if nothing is in it. Whether room was made.
    pub(super) fn remove_empty(&mut self, ends: &Tuple) -> Result<bool> {
        let key = Raw(*ends);
        let goes = self.0.get(&key)?.is_some_and(|Raw(ways)| ways.is_empty());
        if goes {
            self.0.remove(&key)?;
        }
        Ok(goes)
    }
}
