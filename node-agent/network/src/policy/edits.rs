//! What the tables must hold, where that may differ from what they do, and the writes for it.
//!
//! Order matters, since packets pass meanwhile: what is named is there before what names it. An
//! address changes its identity, and a pod its class, in one write each; every verdict that can be
//! asked for in between was written before.

use std::hash::Hash;

use ahash::AHashMap;
use windlass_datapath::{
    PolicyPortPrefix, PolicySnapshot, PolicyWrite,
    types::{
        Addr, PolicyDecision, PolicyNetwork, PolicyPeer, PolicyPod, PolicyState, PolicyVerdict,
        VerdictKey,
    },
};

/// None: the element goes.
type Wanted<K, V> = AHashMap<K, Option<V>>;

#[derive(Debug, Default)]
pub(super) struct Edits {
    pub pods: Wanted<Addr, PolicyPod>,
    pub peers: Wanted<Addr, PolicyPeer>,
    pub networks: Wanted<PolicyNetwork, PolicyPeer>,
    pub verdicts: Wanted<VerdictKey, PolicyVerdict>,
    pub ports: Wanted<PolicyPortPrefix, PolicyDecision>,
}

/// What the tables hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub pods: AHashMap<Addr, PolicyPod>,
    pub peers: AHashMap<Addr, PolicyPeer>,
    pub networks: AHashMap<PolicyNetwork, PolicyPeer>,
    pub verdicts: AHashMap<VerdictKey, PolicyVerdict>,
    pub ports: AHashMap<PolicyPortPrefix, PolicyDecision>,
    pub state: PolicyState,
}

impl From<&PolicySnapshot> for Held {
    fn from(snapshot: &PolicySnapshot) -> Self {
        Self {
            pods: snapshot.pods.iter().copied().collect(),
            peers: snapshot.peers.iter().copied().collect(),
            networks: snapshot.networks.iter().copied().collect(),
            verdicts: snapshot.verdicts.iter().copied().collect(),
            ports: snapshot.ports.iter().copied().collect(),
            state: snapshot.state,
        }
    }
}

impl Edits {
    /// Everything goes that is not wanted from here on; pods stay as they are.
    pub(super) fn of_an_earlier_run(held: &Held) -> Self {
        fn going<K: Copy + Eq + Hash, V>(held: &AHashMap<K, V>) -> Wanted<K, V> {
            held.keys().map(|key| (*key, None)).collect()
        }
        Self {
            pods: Wanted::default(),
            peers: going(&held.peers),
            networks: going(&held.networks),
            verdicts: going(&held.verdicts),
            ports: going(&held.ports),
        }
    }

    /// Brings what is held to what is wanted.
    pub(super) fn apply(self, held: &mut Held, writes: &mut Vec<PolicyWrite>) {
        let before = writes.len();
        put(&mut held.ports, &self.ports, writes, PolicyWrite::PutPort);
        put(
            &mut held.verdicts,
            &self.verdicts,
            writes,
            PolicyWrite::PutVerdict,
        );
        put(
            &mut held.networks,
            &self.networks,
            writes,
            PolicyWrite::PutNetwork,
        );
        put(&mut held.peers, &self.peers, writes, PolicyWrite::PutPeer);
        put(&mut held.pods, &self.pods, writes, PolicyWrite::PutPod);
        remove(&mut held.pods, &self.pods, writes, PolicyWrite::DeletePod);
        remove(
            &mut held.peers,
            &self.peers,
            writes,
            PolicyWrite::DeletePeer,
        );
        remove(
            &mut held.networks,
            &self.networks,
            writes,
            PolicyWrite::DeleteNetwork,
        );
        let enforced = u32::try_from(held.pods.len()).unwrap_or(u32::MAX);
        if writes.len() > before || held.state.enforced != enforced {
            held.state = PolicyState {
                // Known connections are judged again. 0 is what no table ever had.
                revision: held.state.revision.wrapping_add(1).max(1),
                enforced,
            };
            writes.push(PolicyWrite::PutState(held.state));
        }
        remove(
            &mut held.verdicts,
            &self.verdicts,
            writes,
            PolicyWrite::DeleteVerdict,
        );
        remove(
            &mut held.ports,
            &self.ports,
            writes,
            PolicyWrite::DeletePort,
        );
    }
}

fn put<K: Copy + Eq + Hash, V: Copy + PartialEq>(
    held: &mut AHashMap<K, V>,
    wanted: &Wanted<K, V>,
    writes: &mut Vec<PolicyWrite>,
    write: impl Fn(K, V) -> PolicyWrite,
) {
    for (key, value) in wanted {
        if let Some(value) = value
            && held.get(key) != Some(value)
        {
            held.insert(*key, *value);
            writes.push(write(*key, *value));
        }
    }
}

fn remove<K: Copy + Eq + Hash, V>(
    held: &mut AHashMap<K, V>,
    wanted: &Wanted<K, V>,
    writes: &mut Vec<PolicyWrite>,
    write: impl Fn(K) -> PolicyWrite,
) {
    for (key, value) in wanted {
        if value.is_none() && held.remove(key).is_some() {
            writes.push(write(*key));
        }
    }
}
