//! The objects of one kind as a watch last told of them, in their compact form.

use std::{collections::HashMap, hash::Hash};

use kube::runtime::watcher::Event;

/// A list is taken over as a whole when it is complete: an object that is missing in a
/// half-received one has not been deleted.
pub(crate) struct Source<K, V> {
    current: HashMap<K, V>,
    incoming: Option<HashMap<K, V>>,
    synced: bool,
}

impl<K: Clone + Eq + Hash, V: PartialEq> Source<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            current: HashMap::new(),
            incoming: None,
            synced: false,
        }
    }

    /// Whether a complete list has arrived since the start.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced
    }

    pub(crate) fn current(&self) -> &HashMap<K, V> {
        &self.current
    }

    pub(crate) fn begin_list(&mut self) {
        self.incoming = Some(HashMap::new());
    }

    pub(crate) fn list(&mut self, key: K, value: V) {
        self.incoming.get_or_insert_default().insert(key, value);
    }

    /// Returns what differs from before.
    pub(crate) fn end_list(&mut self) -> Vec<K> {
        self.synced = true;
        let new = self.incoming.take().unwrap_or_default();
        let old = std::mem::replace(&mut self.current, new);
        let changed = self
            .current
            .iter()
            .filter(|(key, value)| old.get(key) != Some(value))
            .map(|(key, _)| key.clone());
        let gone = old
            .keys()
            .filter(|key| !self.current.contains_key(key))
            .cloned();
        changed.chain(gone).collect()
    }

    /// Returns whether that changes anything.
    pub(crate) fn apply(&mut self, key: K, value: V) -> bool {
        if self.current.get(&key) == Some(&value) {
            return false;
        }
        self.current.insert(key, value);
        true
    }

    pub(crate) fn remove(&mut self, key: &K) -> bool {
        self.current.remove(key).is_some()
    }

    /// Takes an event over whole; `read` gives an object's key, and what is kept of it if
    /// anything is. Returns the keys of what is not as before.
    pub(crate) fn take_keys<T>(
        &mut self,
        event: Event<T>,
        read: impl Fn(&T) -> (K, Option<V>),
    ) -> Vec<K> {
        let (key, changed) = match event {
            Event::Init => {
                self.begin_list();
                return Vec::new();
            }
            Event::InitApply(object) => {
                if let (key, Some(value)) = read(&object) {
                    self.list(key, value);
                }
                return Vec::new();
            }
            Event::InitDone => return self.end_list(),
            Event::Apply(object) => match read(&object) {
                (key, Some(value)) => (key.clone(), self.apply(key, value)),
                (key, None) => {
                    let removed = self.remove(&key);
                    (key, removed)
                }
            },
            Event::Delete(object) => {
                let (key, _) = read(&object);
                let removed = self.remove(&key);
                (key, removed)
            }
        };
        changed.then_some(key).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_list_reports_only_what_differs() {
        let mut source = Source::new();
        source.begin_list();
        for (key, value) in [("a", 1), ("b", 1), ("c", 1)] {
            source.list(key, value);
        }
        assert!(!source.is_synced());
        assert_eq!(source.end_list().len(), 3);
        source.begin_list();
        for (key, value) in [("a", 1), ("b", 2), ("d", 1)] {
            source.list(key, value);
        }
        assert_eq!(
            source.current().len(),
            3,
            "the old state stands until the list is complete"
        );
        let mut changed = source.end_list();
        changed.sort_unstable();
        assert_eq!(changed, ["b", "c", "d"]);
        assert!(!source.apply("a", 1) && source.apply("a", 2) && source.remove(&"a"));
    }
}
