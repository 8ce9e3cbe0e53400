//! The backends, found by their ids and by where they live.
//!
//! There are hundreds of thousands in a large cluster, so each is held once: what finds one by its value
//! is a table of ids.

use ahash::{AHashMap, RandomState};
use hashbrown::HashTable;
use windlass_datapath::types::BackendValue;

#[derive(Clone, Copy, Debug)]
pub(super) struct HeldBackend {
    pub(super) value: BackendValue,
    /// Ports that list it.
    pub(super) references: u32,
}

#[derive(Debug, Default)]
pub(super) struct Backends {
    by_id: AHashMap<u32, HeldBackend>,
    ids: HashTable<u32>,
    hasher: RandomState,
}

impl Backends {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &HeldBackend)> {
        self.by_id.iter().map(|(id, held)| (*id, held))
    }

    pub(super) fn value(&self, id: u32) -> Option<BackendValue> {
        self.by_id.get(&id).map(|held| held.value)
    }

    pub(super) fn id_of(&self, value: &BackendValue) -> Option<u32> {
        let is_it = |id: &u32| self.value(*id).as_ref() == Some(value);
        self.ids.find(self.hasher.hash_one(value), is_it).copied()
    }

    /// `id` must be a new one, and so must `value`.
    pub(super) fn insert(&mut self, id: u32, value: BackendValue) {
        let references = 0;
        self.by_id.insert(id, HeldBackend { value, references });
        let (by_id, hasher) = (&self.by_id, &self.hasher);
        let hash = |id: &u32| by_id.get(id).map_or(0, |held| hasher.hash_one(held.value));
        self.ids.insert_unique(hasher.hash_one(value), id, hash);
    }

    /// One port more lists it.
    pub(super) fn refer(&mut self, id: u32) {
        if let Some(held) = self.by_id.get_mut(&id) {
            held.references += 1;
        }
    }

    /// One port less. Returns whether that was the last one, and the backend is gone.
    pub(super) fn release(&mut self, id: u32) -> bool {
        let Some(held) = self.by_id.get_mut(&id) else {
            return false;
        };
        held.references -= 1;
        let unused = held.references == 0;
        if unused {
            self.remove(id);
        }
        unused
    }

    pub(super) fn remove(&mut self, id: u32) {
        let Some(held) = self.by_id.remove(&id) else {
            return;
        };
        let hash = self.hasher.hash_one(held.value);
        if let Ok(place) = self.ids.find_entry(hash, |other| *other == id) {
            place.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_datapath::types::{Addr, protocol::TCP};

    #[test]
    fn a_backend_is_found_both_ways_until_its_last_port_lets_go() {
        let value = |number: u16| BackendValue::new(Addr::v4([10, 0, 0, 1]), number, TCP);
        let mut backends = Backends::default();
        for id in 1..=100u16 {
            backends.insert(id.into(), value(id));
            backends.refer(id.into());
        }
        backends.refer(7);
        assert!(!backends.release(7) && backends.release(8));
        assert_eq!(backends.len(), 99);
        assert_eq!(backends.id_of(&value(7)), Some(7));
        assert_eq!((backends.id_of(&value(8)), backends.value(8)), (None, None));
        backends.insert(101, value(8));
        assert_eq!(backends.id_of(&value(8)), Some(101));
        assert!(!backends.release(8), "nobody's id any more");
    }
}
