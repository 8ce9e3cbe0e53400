//! The backends, found by their ids and by where they live.
//!
//! There are hundreds of thousands in a large cluster, so each is held once: what finds one by its value
//! is a table of ids.

use std::{collections::BTreeMap, net::IpAddr};

use ahash::{AHashMap, RandomState};
use hashbrown::HashTable;
use windlass_datapath::types::{BackendValue, backend_flags, protocol};

#[derive(Clone, Copy, Debug)]
pub(super) struct HeldBackend {
    pub(super) value: BackendValue,
    /// Ports that list it.
    pub(super) references: u32,
}

/// Why no port lists a backend that is kept for the connections that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::services) enum Unlisted {
    /// Its Service went, or the port, or the choice of endpoints: nothing was said about the endpoint itself.
    ServiceGone,
    /// Likewise, and a pod had its address when it was last asked.
    Living,
    /// The Service goes on without this endpoint: its pod has gone, unless it was chosen by other labels.
    Dismissed,
}

#[derive(Debug, Default)]
pub(super) struct Backends {
    by_id: AHashMap<u32, HeldBackend>,
    ids: HashTable<u32>,
    hasher: RandomState,
    unlisted: BTreeMap<u32, Unlisted>,
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

    /// `id` must be a new one, and so must `value`, which may be as the kernel has it.
    pub(super) fn insert(&mut self, id: u32, mut value: BackendValue) {
        if value.flags & backend_flags::UNLISTED != 0 {
            self.unlisted.insert(id, Unlisted::ServiceGone);
        }
        value.flags = 0;
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

    /// It is listed. Returns what the kernel is to hold if that is news to it.
    pub(super) fn list(&mut self, id: u32) -> Option<BackendValue> {
        self.unlisted.remove(&id).and_then(|_| self.value(id))
    }

    /// One port less. Returns whether that was the last one.
    pub(super) fn release(&mut self, id: u32) -> bool {
        let Some(held) = self.by_id.get_mut(&id) else {
            return false;
        };
        held.references -= 1;
        held.references == 0
    }

    /// Keeps a backend that no port lists. Returns what the kernel is to hold; none when it has nothing to go on: all but
    /// TCP follows the membership.
    pub(super) fn keep(&mut self, id: u32, why: Unlisted) -> Option<BackendValue> {
        let mut value = self.value(id)?;
        if value.protocol != protocol::TCP {
            return None;
        }
        self.unlisted.insert(id, why);
        value.flags = backend_flags::UNLISTED;
        Some(value)
    }

    /// What no port lists, with its address.
    pub(super) fn unlisted(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        let address = |id| self.value(id).map(|value| value.addr.to_ip());
        let known = move |id: &u32| Some((*id, address(*id)?));
        self.unlisted.keys().filter_map(known)
    }

    /// Which of the unlisted ones have gone, by whether a pod has their addresses.
    pub(super) fn departed(&mut self, lives: impl Fn(IpAddr) -> Option<bool>) -> Vec<u32> {
        let mut departed = Vec::new();
        for (id, why) in &mut self.unlisted {
            let Some(held) = self.by_id.get(id) else {
                continue;
            };
            match (lives(held.value.addr.to_ip()), *why) {
                (None, _) => {}
                (Some(true), _) => *why = Unlisted::Living,
                // An endpoint that is no pod; who knows.
                (Some(false), Unlisted::ServiceGone) => {}
                (Some(false), _) => departed.push(*id),
            }
        }
        departed
    }

    /// Kept although no port lists it.
    pub(super) fn is_unlisted(&self, id: u32) -> bool {
        let unused = |held: &HeldBackend| held.references == 0;
        self.unlisted.contains_key(&id) && self.by_id.get(&id).is_some_and(unused)
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.unlisted.remove(&id);
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
        backends.remove(8);
        assert_eq!(backends.len(), 99);
        assert_eq!(backends.id_of(&value(7)), Some(7));
        assert_eq!((backends.id_of(&value(8)), backends.value(8)), (None, None));
        backends.insert(101, value(8));
        assert_eq!(backends.id_of(&value(8)), Some(101));
        assert!(!backends.release(8), "nobody's id any more");
    }

    #[test]
    fn what_no_port_lists_stays_until_its_pod_goes() {
        let address = |number| Addr::v4([10, 0, 0, number]);
        let mut backends = Backends::default();
        for number in 1..=3 {
            backends.insert(number.into(), BackendValue::new(address(number), 80, TCP));
            backends.refer(number.into());
            backends.release(number.into());
        }
        let kept = backends.keep(1, Unlisted::ServiceGone).unwrap();
        assert_eq!(kept.flags, backend_flags::UNLISTED);
        backends.keep(2, Unlisted::Dismissed);
        backends.keep(3, Unlisted::ServiceGone);
        let lives = |living: &'static [u8]| {
            move |it| Some(living.iter().any(|number| address(*number).to_ip() == it))
        };
        assert_eq!(backends.departed(lives(&[1, 2])), [0; 0]);
        assert_eq!(
            backends.departed(lives(&[2])),
            [1],
            "of the third nothing is known"
        );
        backends.refer(3);
        assert!(!backends.is_unlisted(3));
        assert_eq!(backends.list(3).map(|value| value.flags), Some(0));
        assert_eq!(backends.list(3), None, "the kernel knows by then");
        backends.insert(4, kept);
        assert!(backends.is_unlisted(4) && backends.value(4).unwrap().flags == 0);
    }

    #[test]
    fn datagrams_have_nothing_to_go_on_with() {
        let mut backends = Backends::default();
        backends.insert(
            1,
            BackendValue::new(Addr::v4([10, 0, 0, 1]), 53, protocol::UDP),
        );
        assert_eq!(backends.keep(1, Unlisted::ServiceGone), None);
    }
}
