//! Keeps track of what the datapath's policy tables hold, and says what must be written there when
//! something changes in the cluster. A change costs what it has to do with, whatever the cluster's size.

use std::{collections::BTreeMap, net::IpAddr};

use ahash::{AHashMap, AHashSet};
use windlass_datapath::{
    PolicySnapshot, PolicyWrite,
    types::{Addr, PolicyPod},
};

use super::{
    changes::Changes,
    classes::{Assigned, Classes, Decider, OfPod},
    cluster::Cluster,
    edits::{Edits, Held},
    peers::PeerTable,
    verdicts::Verdicts,
};

#[derive(Debug, Default)]
pub struct Tables {
    held: Held,
    /// What an earlier run left: it goes unless the first plan wants it.
    leftovers: Option<Edits>,
    classes: Classes,
    /// The classes that local pods have.
    present: AHashMap<u64, Assigned>,
    peers: PeerTable,
    verdicts: Verdicts,
}

/// Brings the tables from one state to the next.
#[derive(Debug, Default)]
pub struct Plan {
    pub writes: Vec<PolicyWrite>,
}

impl Tables {
    /// The state that an earlier run left in the kernel.
    pub fn recover(snapshot: &PolicySnapshot) -> Self {
        let held = Held::from(snapshot);
        Self {
            leftovers: Some(Edits::of_an_earlier_run(&held)),
            held,
            ..Self::default()
        }
    }

    /// Addresses of pods that some policy has to do with.
    pub fn enforced(&self) -> u32 {
        self.held.state.enforced
    }

    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Who is behind the numbers that drops carry.
    pub(crate) fn deciders(&self) -> &BTreeMap<u32, Decider> {
        self.classes.deciders()
    }

    /// What changed is found out by looking at everything.
    pub fn plan(&mut self, cluster: &Cluster<'_>) -> Plan {
        self.plan_changes(cluster, &Changes::everything())
    }

    /// The writes for what changed since the last plan; the first one needs all changes.
    pub fn plan_changes(&mut self, cluster: &Cluster<'_>, changes: &Changes) -> Plan {
        let mut edits = self.leftovers.take().unwrap_or_default();
        let mut writes = Vec::new();
        let of_pods = self.classes.assign(cluster, changes);
        let wanted: AHashMap<u64, &Assigned> = of_pods
            .iter()
            .flat_map(OfPod::both)
            .map(|it| (it.id, it))
            .collect();
        let came: Vec<&Assigned> = wanted
            .values()
            .filter(|it| !self.present.contains_key(&it.id))
            .copied()
            .collect();
        let gone: Vec<u64> = self
            .present
            .keys()
            .filter(|id| !wanted.contains_key(id))
            .copied()
            .collect();

        // While pods change their classes, the tables answer for the old ones too, and identities
        // say what both ask for.
        self.peers.follow(cluster, changes);
        for class in &came {
            self.peers.ask(&class.class, &class.peers);
        }
        self.settle(&mut edits);
        for class in &came {
            let identities = &self.peers.identities;
            self.verdicts
                .add_class(class.id, &class.class, identities, &mut edits);
            self.present.insert(class.id, (*class).clone());
        }
        self.assign(cluster, &of_pods, &mut edits);
        edits.apply(&mut self.held, &mut writes);

        // When all have changed, what only the old ones asked for goes.
        if !gone.is_empty() {
            let mut edits = Edits::default();
            for id in gone {
                if let Some(class) = self.present.remove(&id) {
                    self.verdicts.remove_class(id, &mut edits);
                    self.peers.forget(&class.class, &class.peers);
                }
            }
            self.settle(&mut edits);
            edits.apply(&mut self.held, &mut writes);
        }
        Plan { writes }
    }

    /// Identities follow what is asked for, and verdicts the identities.
    fn settle(&mut self, edits: &mut Edits) {
        self.peers.refresh(edits);
        let (came, gone) = self.peers.identities.settle();
        for id in came {
            if let Some(identity) = self.peers.identities.get(id) {
                self.verdicts.add_identity(id, identity, edits);
            }
        }
        for (id, identity) in gone {
            self.verdicts.remove_identity(id, &identity, edits);
        }
    }

    fn assign(&self, cluster: &Cluster<'_>, of_pods: &[OfPod], edits: &mut Edits) {
        // Their verdicts may go; then nothing passes, which harms nobody who is not leaving.
        let orphans = cluster
            .orphans
            .iter()
            .map(|address: &IpAddr| Addr::from(*address));
        let mut staying: AHashSet<Addr> = orphans.collect();
        for (pod, classes) in cluster.local.iter().zip(of_pods) {
            let value = classes.value();
            if value != PolicyPod::default() {
                for address in pod.addresses.iter().map(|address| Addr::from(*address)) {
                    edits.pods.insert(address, Some(value));
                    staying.insert(address);
                }
            }
        }
        for address in self.held.pods.keys().filter(|it| !staying.contains(it)) {
            edits.pods.insert(*address, None);
        }
    }
}
