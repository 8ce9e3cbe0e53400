//! What every class says to every identity: an element only where it is not what the class says to
//! everybody. One class's or identity's coming and going costs what it has to do with.

use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use windlass_datapath::{
    PolicyPortPrefix,
    types::{PolicyDecision, PolicyVerdict, VerdictKey},
};

use super::{
    class::{Class, Identity, Judgement},
    edits::Edits,
    identities::Identities,
    index::{self, Index},
};

#[derive(Debug, Default)]
pub(super) struct Verdicts {
    classes: AHashMap<u64, Arc<Class>>,
    /// Classes that ask for a peer, and those that ask for a port by its name.
    by_peer: Index<u64>,
    by_port: Index<String>,
    /// By class and identity; identity 0 is everybody.
    said: AHashMap<u64, AHashMap<u64, PolicyVerdict>>,
    /// Tables of ports, with how many verdicts name each.
    tables: AHashMap<u64, (usize, Vec<(PolicyPortPrefix, PolicyDecision)>)>,
}

impl Verdicts {
    pub(super) fn add_class(
        &mut self,
        id: u64,
        class: &Arc<Class>,
        identities: &Identities,
        edits: &mut Edits,
    ) {
        for peer in class.peers() {
            self.by_peer.entry(peer).or_default().insert(id);
        }
        for name in class.port_names() {
            let of_name = self.by_port.entry(name.to_owned());
            of_name.or_default().insert(id);
        }
        self.classes.insert(id, class.clone());
        let everybody = class.judge(&Identity::default());
        self.say(id, 0, everybody, edits);
        for (identity_id, identity) in identities.concerned_by(class) {
            self.judge(id, class, identity_id, identity, edits);
        }
    }

    pub(super) fn remove_class(&mut self, id: u64, edits: &mut Edits) {
        let Some(class) = self.classes.remove(&id) else {
            return;
        };
        for peer in class.peers() {
            index::remove(&mut self.by_peer, &peer, id);
        }
        for name in class.port_names() {
            index::remove(&mut self.by_port, name, id);
        }
        for (identity, verdict) in self.said.remove(&id).unwrap_or_default() {
            self.unsay(id, identity, verdict, edits);
        }
    }

    pub(super) fn add_identity(&mut self, id: u64, identity: &Identity, edits: &mut Edits) {
        for class_id in self.concerned_by(identity) {
            let class = self.classes[&class_id].clone();
            self.judge(class_id, &class, id, identity, edits);
        }
    }

    pub(super) fn remove_identity(&mut self, id: u64, identity: &Identity, edits: &mut Edits) {
        for class in self.concerned_by(identity) {
            let said = self.said.get_mut(&class).and_then(|said| said.remove(&id));
            if let Some(verdict) = said {
                self.unsay(class, id, verdict, edits);
            }
        }
    }

    /// The classes that may say something else to an identity than to everybody.
    fn concerned_by(&self, identity: &Identity) -> AHashSet<u64> {
        let peers = identity.peers.iter();
        let by_peer = peers.filter_map(|peer| self.by_peer.get(peer));
        let ports = identity.ports.iter();
        let by_port = ports.filter_map(|port| self.by_port.get(&port.name));
        by_peer.chain(by_port).flatten().copied().collect()
    }

    fn judge(
        &mut self,
        class_id: u64,
        class: &Class,
        id: u64,
        identity: &Identity,
        edits: &mut Edits,
    ) {
        let judgement = class.judge(identity);
        if self.said[&class_id].get(&0) != Some(&judgement.verdict) {
            self.say(class_id, id, judgement, edits);
        }
    }

    fn say(&mut self, class: u64, identity: u64, judgement: Judgement, edits: &mut Edits) {
        let verdict = judgement.verdict;
        if verdict.ports != 0 {
            let table = self.tables.entry(verdict.ports);
            let (uses, ports) = table.or_insert((0, judgement.ports));
            *uses += 1;
            // Also when others named it before: it may have been about to go.
            edits
                .ports
                .extend(ports.iter().map(|(key, value)| (*key, Some(*value))));
        }
        self.said
            .entry(class)
            .or_default()
            .insert(identity, verdict);
        edits
            .verdicts
            .insert(VerdictKey { class, identity }, Some(verdict));
    }

    /// Contents make ids, so a class never says something new to an identity: what was said only goes.
    fn unsay(&mut self, class: u64, identity: u64, verdict: PolicyVerdict, edits: &mut Edits) {
        edits.verdicts.insert(VerdictKey { class, identity }, None);
        if let Some((uses, ports)) = self.tables.get_mut(&verdict.ports) {
            *uses -= 1;
            if *uses == 0 {
                edits
                    .ports
                    .extend(ports.iter().map(|(key, _)| (*key, None)));
                self.tables.remove(&verdict.ports);
            }
        }
    }
}
