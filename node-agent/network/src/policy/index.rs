//! Which numbers belong to a key.

use std::{borrow::Borrow, hash::Hash};

use ahash::{AHashMap, AHashSet};

pub(super) type Index<K> = AHashMap<K, AHashSet<u64>>;

/// A key without numbers is none.
pub(super) fn remove<K, Q>(index: &mut Index<K>, key: &Q, number: u64)
where
    K: Borrow<Q> + Eq + Hash,
    Q: Eq + Hash + ?Sized,
{
    if let Some(numbers) = index.get_mut(key) {
        numbers.remove(&number);
        if numbers.is_empty() {
            index.remove(key);
        }
    }
}
