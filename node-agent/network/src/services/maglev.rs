//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4): a table from which every node
//! reads the same backend for a flow, made from the backends alone, and in which few
//! entries change when one of them goes.

use windlass_datapath::types::BackendValue;

/// Fills a table of `size` entries, a prime, with positions in `backends`; empty when there
/// are none. The order of `backends` does not matter, only who they are.
pub(super) fn table(backends: &[BackendValue], size: u32) -> Vec<u32> {
    if backends.is_empty() || size < 2 {
        return Vec::new();
    }
    let mut order: Vec<usize> = (0..backends.len()).collect();
    order.sort_unstable_by_key(|index| backends[*index]);
    let mut walks: Vec<Walk> = order
        .iter()
        .map(|index| Walk::new(&backends[*index], size))
        .collect();
    let mut entries = vec![u32::MAX; size as usize];
    let mut left = size;
    loop {
        for (walk, index) in walks.iter_mut().zip(&order) {
            // A prime size makes every walk visit every entry.
            while entries[walk.position as usize] != u32::MAX {
                walk.step(size);
            }
            entries[walk.position as usize] = *index as u32;
            left -= 1;
            if left == 0 {
                return entries;
            }
        }
    }
}

/// One backend's order of preference for the entries.
struct Walk {
    position: u32,
    skip: u32,
}

impl Walk {
    fn new(backend: &BackendValue, size: u32) -> Self {
        let size = u64::from(size);
        let name = hash(backend);
        // Two independent numbers out of one hash, whose halves are.
        Self {
            position: ((name >> 32) % size) as u32,
            skip: ((name & 0xffff_ffff) % (size - 1)) as u32 + 1,
        }
    }

    fn step(&mut self, size: u32) {
        self.position = (self.position + self.skip) % size;
    }
}

/// FNV-1a, finished by a multiply-xorshift so that neighbouring addresses differ in all
/// bits. Part of the contract between nodes: all of them must agree on it.
fn hash(backend: &BackendValue) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let octets = backend.addr.octets().into_iter();
    let port = backend.port.to_ne_bytes().into_iter();
    for octet in octets.chain(port).chain([backend.protocol]) {
        hash = (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_datapath::types::{Addr, protocol::TCP};

    const SIZE: u32 = 1_021;

    fn backends(numbers: impl IntoIterator<Item = u8>) -> Vec<BackendValue> {
        let backend = |number| BackendValue::new(Addr::v4([10, 0, 0, number]), 8080, TCP);
        numbers.into_iter().map(backend).collect()
    }

    fn resolved(backends: &[BackendValue]) -> Vec<BackendValue> {
        let entries = table(backends, SIZE);
        entries
            .iter()
            .map(|index| backends[*index as usize])
            .collect()
    }

    #[test]
    fn every_backend_gets_its_fair_share() {
        let backends = backends(1..=10);
        let entries = table(&backends, SIZE);
        assert_eq!(entries.len(), SIZE as usize);
        for index in 0..10 {
            let share = entries.iter().filter(|entry| **entry == index).count();
            assert!((100..=104).contains(&share), "{index} has {share}");
        }
    }

    #[test]
    fn the_order_of_the_backends_does_not_matter() {
        assert_eq!(
            resolved(&backends(1..=10)),
            resolved(&backends((1..=10).rev()))
        );
    }

    #[test]
    fn when_a_backend_goes_hardly_any_other_flow_moves() {
        let before = resolved(&backends(1..=10));
        let mut moved = 0;
        for gone in 1..=10 {
            let after = resolved(&backends((1..=10).filter(|number| *number != gone)));
            let gone = backends([gone])[0];
            moved += before
                .iter()
                .zip(&after)
                .filter(|(before, after)| **before != gone && before != after)
                .count();
        }
        // The paper's own figure for tables a hundred times the backends is about 2 %.
        let average = moved as f64 / 10.0 / f64::from(SIZE);
        assert!(average < 0.03, "{average} of the other flows moved");
    }

    #[test]
    fn no_backends_make_no_table_and_more_than_entries_make_a_full_one() {
        assert_eq!(table(&[], SIZE), [0u32; 0]);
        assert_eq!(table(&backends(1..=20), 7).len(), 7);
    }
}
