//! The identities that addresses and networks have, with how many have each.

use ahash::{AHashMap, AHashSet};

use super::{
    class::{Class, Identity},
    index::{self, Index},
};

#[derive(Debug, Default)]
pub(super) struct Identities {
    by_id: AHashMap<u64, (Identity, usize)>,
    /// Identities that match a peer of a rule, and those that have a port of a name.
    by_peer: Index<u64>,
    by_port: Index<String>,
    came: Vec<u64>,
    /// Those that nobody had at some time since the last look.
    unused: AHashSet<u64>,
}

impl Identities {
    /// Counts one more that has it.
    pub(super) fn take(&mut self, identity: Identity) -> u64 {
        let id = identity.id();
        if id == 0 {
            return id;
        }
        if let Some((_, uses)) = self.by_id.get_mut(&id) {
            *uses += 1;
            return id;
        }
        for peer in &identity.peers {
            self.by_peer.entry(*peer).or_default().insert(id);
        }
        for port in &identity.ports {
            let of_name = self.by_port.entry(port.name.clone());
            of_name.or_default().insert(id);
        }
        self.by_id.insert(id, (identity, 1));
        self.came.push(id);
        id
    }

    pub(super) fn release(&mut self, id: u64) {
        if let Some((_, uses)) = self.by_id.get_mut(&id) {
            *uses -= 1;
            if *uses == 0 {
                self.unused.insert(id);
            }
        }
    }

    /// Those that are new since the last look, and forgets those that nobody has: the second.
    pub(super) fn settle(&mut self) -> (Vec<u64>, Vec<(u64, Identity)>) {
        let mut gone = Vec::new();
        for id in std::mem::take(&mut self.unused) {
            // Somebody may have it again.
            if self.by_id.get(&id).is_none_or(|(_, uses)| *uses > 0) {
                continue;
            }
            let Some((identity, _)) = self.by_id.remove(&id) else {
                continue;
            };
            for peer in &identity.peers {
                index::remove(&mut self.by_peer, peer, id);
            }
            for port in &identity.ports {
                index::remove(&mut self.by_port, &port.name, id);
            }
            gone.push((id, identity));
        }
        let mut came = std::mem::take(&mut self.came);
        came.retain(|id| self.by_id.contains_key(id));
        (came, gone)
    }

    pub(super) fn get(&self, id: u64) -> Option<&Identity> {
        self.by_id.get(&id).map(|(identity, _)| identity)
    }

    /// The identities to which a class may say something else than to everybody.
    pub(super) fn concerned_by(&self, class: &Class) -> impl Iterator<Item = (u64, &Identity)> {
        let by_peer = class.peers().filter_map(|peer| self.by_peer.get(&peer));
        let by_port = class.port_names().filter_map(|name| self.by_port.get(name));
        let ids: AHashSet<u64> = by_peer.chain(by_port).flatten().copied().collect();
        ids.into_iter().filter_map(|id| Some((id, self.get(id)?)))
    }
}
