//! What the datapath's policy tables hold, and the writes that bring them from there to what they
//! should hold.
//!
//! Order matters, since packets pass meanwhile: what is named is there before what names it. An
//! address changes its identity, and a pod its class, in one write each; every verdict that can be
//! asked for in between was written before.

use std::hash::Hash;

use ahash::AHashMap;
use windlass_datapath::{
    PolicySnapshot, PolicyWrite,
    types::{Addr, PolicyState},
};

use super::{
    cluster::Cluster,
    compile::{Classes, Compiled, Decider, Desired, Memo, compile},
};

#[derive(Debug, Default)]
pub struct Tables {
    held: Desired,
    state: PolicyState,
    /// What pods have in the kernel, as far as this process has seen it.
    classes: Classes,
    memo: Memo,
}

/// Brings the tables from one state to the next.
#[derive(Debug, Default)]
pub struct Plan {
    pub writes: Vec<PolicyWrite>,
    pub deciders: std::collections::BTreeMap<u32, Decider>,
}

impl Tables {
    /// The state that an earlier run left in the kernel.
    pub fn recover(snapshot: &PolicySnapshot) -> Self {
        Self {
            held: Desired {
                pods: snapshot.pods.iter().copied().collect(),
                peers: snapshot.peers.iter().copied().collect(),
                networks: snapshot.networks.iter().copied().collect(),
                verdicts: snapshot.verdicts.iter().copied().collect(),
                ports: snapshot.ports.iter().copied().collect(),
            },
            state: snapshot.state,
            ..Self::default()
        }
    }

    /// Addresses of pods that some policy has to do with.
    pub fn enforced(&self) -> u32 {
        self.state.enforced
    }

    pub fn plan(&mut self, cluster: &Cluster<'_>) -> Plan {
        // While pods change their classes, the tables answer for the old ones too, and identities
        // say what both ask for. When all have changed, what only the old ones asked for goes.
        let first = self.compile(cluster, &self.classes.clone());
        let mut writes = Vec::new();
        self.go_to(&first.desired, &mut writes);
        let Compiled {
            classes, deciders, ..
        } = if first.classes.lack_any_of(&self.classes) {
            let second = self.compile(cluster, &Classes::default());
            self.go_to(&second.desired, &mut writes);
            second
        } else {
            first
        };
        self.classes = classes;
        Plan { writes, deciders }
    }

    fn compile(&mut self, cluster: &Cluster<'_>, keep: &Classes) -> Compiled {
        let mut compiled = compile(cluster, keep, &mut self.memo);
        let orphans = cluster.orphans.iter().map(|address| Addr::from(*address));
        let held = orphans.filter_map(|address| Some((address, *self.held.pods.get(&address)?)));
        // Their verdicts may go; then nothing passes, which harms nobody who is not leaving.
        compiled.desired.pods.extend(held);
        compiled
    }

    fn go_to(&mut self, desired: &Desired, writes: &mut Vec<PolicyWrite>) {
        let before = writes.len();
        put(
            &mut self.held.ports,
            &desired.ports,
            writes,
            PolicyWrite::PutPort,
        );
        put(
            &mut self.held.verdicts,
            &desired.verdicts,
            writes,
            PolicyWrite::PutVerdict,
        );
        put(
            &mut self.held.networks,
            &desired.networks,
            writes,
            PolicyWrite::PutNetwork,
        );
        put(
            &mut self.held.peers,
            &desired.peers,
            writes,
            PolicyWrite::PutPeer,
        );
        put(
            &mut self.held.pods,
            &desired.pods,
            writes,
            PolicyWrite::PutPod,
        );
        drop_rest(
            &mut self.held.pods,
            &desired.pods,
            writes,
            PolicyWrite::DeletePod,
        );
        drop_rest(
            &mut self.held.peers,
            &desired.peers,
            writes,
            PolicyWrite::DeletePeer,
        );
        drop_rest(
            &mut self.held.networks,
            &desired.networks,
            writes,
            PolicyWrite::DeleteNetwork,
        );
        let enforced = u32::try_from(desired.pods.len()).unwrap_or(u32::MAX);
        if writes.len() > before || self.state.enforced != enforced {
            self.state = PolicyState {
                // Known connections are judged again. 0 is what no table ever had.
                revision: self.state.revision.wrapping_add(1).max(1),
                enforced,
            };
            writes.push(PolicyWrite::PutState(self.state));
        }
        drop_rest(
            &mut self.held.verdicts,
            &desired.verdicts,
            writes,
            PolicyWrite::DeleteVerdict,
        );
        drop_rest(
            &mut self.held.ports,
            &desired.ports,
            writes,
            PolicyWrite::DeletePort,
        );
    }
}

fn put<K: Copy + Eq + Hash, V: Copy + PartialEq>(
    held: &mut AHashMap<K, V>,
    desired: &AHashMap<K, V>,
    writes: &mut Vec<PolicyWrite>,
    write: impl Fn(K, V) -> PolicyWrite,
) {
    for (key, value) in desired {
        if held.get(key) != Some(value) {
            held.insert(*key, *value);
            writes.push(write(*key, *value));
        }
    }
}

fn drop_rest<K: Copy + Eq + Hash, V>(
    held: &mut AHashMap<K, V>,
    desired: &AHashMap<K, V>,
    writes: &mut Vec<PolicyWrite>,
    write: impl Fn(K) -> PolicyWrite,
) {
    held.retain(|key, _| {
        let wanted = desired.contains_key(key);
        if !wanted {
            writes.push(write(*key));
        }
        wanted
    });
}
