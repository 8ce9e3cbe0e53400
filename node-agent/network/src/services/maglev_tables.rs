//! Where the Maglev tables lie in the one flat array that the datapath reads, and what has
//! to be written to it.

use std::collections::BTreeSet;

use windlass_datapath::types::BackendValue;

use super::maglev;

/// The places of the array, each as long as one table.
#[derive(Debug, Default)]
pub(super) struct MaglevTables {
    size: u32,
    /// Places that were given back.
    free: BTreeSet<u32>,
    /// Places that the plan in hand gave back: until its writes are done, clients read them.
    given_back: Vec<u32>,
    /// It has been said that there is no room.
    full: bool,
    /// Places from here on were never given out.
    next: u32,
    places: u32,
}

/// One service's table as the array holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeldTable {
    place: u32,
    size: u32,
    /// Backend ids; 0 is nobody's.
    entries: Vec<u32>,
}

impl HeldTable {
    /// What a service says about its table: its first index, plus one.
    pub(super) fn reference(&self) -> u32 {
        self.place * self.size + 1
    }
}

impl MaglevTables {
    /// For an array of `capacity` entries; without a size there are no tables.
    pub(super) fn new(size: u32, capacity: usize) -> Self {
        let capacity = u32::try_from(capacity).unwrap_or(u32::MAX);
        Self {
            size,
            free: BTreeSet::new(),
            given_back: Vec::new(),
            full: false,
            next: 0,
            places: capacity.checked_div(size).unwrap_or(0),
        }
    }

    /// A new plan: the writes of the last one are done.
    pub(super) fn begin(&mut self) {
        self.free.extend(self.given_back.drain(..));
    }

    /// The table that an earlier run left; `None` when it was made for another size.
    pub(super) fn adopt(&mut self, reference: u32, array: &[u32]) -> Option<HeldTable> {
        let first = reference.checked_sub(1)?;
        let place = first.checked_div(self.size)?;
        if first % self.size != 0 || place >= self.places {
            return None;
        }
        self.free.extend(self.next..place);
        if !self.free.remove(&place) && place < self.next {
            return None;
        }
        self.next = self.next.max(place + 1);
        let entries = array.get(first as usize..(first + self.size) as usize)?;
        Some(HeldTable {
            place,
            size: self.size,
            entries: entries.to_vec(),
        })
    }

    /// Makes a table spread over `backends`, each with its id; without any it is given back.
    /// `write` is called with each entry of the array that changes.
    pub(super) fn plan(
        &mut self,
        held: &mut Option<Box<HeldTable>>,
        backends: &[(BackendValue, u32)],
        write: &mut dyn FnMut(u32, u32),
    ) {
        if backends.is_empty() {
            if let Some(table) = held.take() {
                self.given_back.push(table.place);
            }
            return;
        }
        if held.is_none() {
            *held = self.take_place().map(Box::new);
        }
        let Some(table) = held else { return };
        let values: Vec<BackendValue> = backends.iter().map(|(value, _)| *value).collect();
        let wanted = maglev::table(&values, self.size);
        let first = table.place * self.size;
        for (index, (entry, position)) in (first..).zip(table.entries.iter_mut().zip(wanted)) {
            let id = backends.get(position as usize).map_or(0, |(_, id)| *id);
            if *entry != id {
                *entry = id;
                write(index, id);
            }
        }
    }

    fn take_place(&mut self) -> Option<HeldTable> {
        let place = match self.free.pop_first() {
            Some(place) => place,
            None if self.next < self.places => {
                self.next += 1;
                self.next - 1
            }
            None if std::mem::replace(&mut self.full, true) => return None,
            None => {
                tracing::warn!(
                    places = self.places,
                    "no room for another maglev table: its clients are spread at random"
                );
                return None;
            }
        };
        Some(HeldTable {
            place,
            size: self.size,
            // Whatever the place held before is another service's.
            entries: vec![u32::MAX; self.size as usize],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_datapath::types::{Addr, protocol::TCP};

    fn backend(number: u8) -> (BackendValue, u32) {
        let value = BackendValue::new(Addr::v4([10, 0, 0, number]), 80, TCP);
        (value, u32::from(number))
    }

    #[test]
    fn a_table_is_written_once_and_then_only_where_it_changes() {
        let mut tables = MaglevTables::new(7, 20);
        let mut array = vec![0; 20];
        let mut held = None;
        let mut writes = 0;
        let mut plan = |held: &mut Option<Box<HeldTable>>, backends: &[_]| {
            writes = 0;
            tables.begin();
            tables.plan(held, backends, &mut |index, id| {
                array[index as usize] = id;
                writes += 1;
            });
            writes
        };
        assert_eq!(plan(&mut held, &[backend(1)]), 7);
        assert_eq!(plan(&mut held, &[backend(1)]), 0);
        let changed = plan(&mut held, &[backend(1), backend(2)]);
        assert!((1..7).contains(&changed), "{changed}");
        let mut second = None;
        plan(&mut second, &[backend(3)]);
        assert_eq!(second.as_deref().map(HeldTable::reference), Some(8));
        let mut third = None;
        assert_eq!(
            plan(&mut third, &[backend(4)]),
            0,
            "20 entries hold two tables of 7"
        );
        assert_eq!(third, None);
        plan(&mut held, &[]);
        assert_eq!(held, None);
        assert_eq!(
            plan(&mut third, &[backend(4)]),
            7,
            "the place was given back"
        );
        assert!(array[..7].iter().all(|id| *id == 4) && array[7..14].iter().all(|id| *id == 3));

        let mut recovered = MaglevTables::new(7, 20);
        assert_eq!(recovered.adopt(8, &array), second.as_deref().cloned());
        assert_eq!(recovered.adopt(8, &array), None, "a place has one owner");
        assert_eq!(
            recovered.adopt(1, &array),
            third.as_deref().cloned(),
            "in whatever order they are found"
        );
        assert_eq!(
            MaglevTables::new(5, 20).adopt(8, &array),
            None,
            "made for another size"
        );
    }
}
