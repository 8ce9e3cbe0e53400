//! The policy tables. The kernel only reads them; one writer at a time changes them.

use aya::{
    Ebpf,
    maps::{
        Array, MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use windlass_ebpf_types::{
    Addr, PolicyDecision, PolicyNetwork, PolicyPeer, PolicyPod, PolicyPortKey, PolicyState,
    PolicyVerdict, VerdictKey,
};

use super::{Table, is_missing, take};
use crate::{
    error::{Error, Result},
    raw::Raw,
};

/// A prefix in the table of ports: `length` bits of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyPortPrefix {
    pub key: PolicyPortKey,
    pub length: u32,
}

/// One element write. Their order is the caller's, and it matters: what is named before what
/// names it, and the reverse to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyWrite {
    PutPort(PolicyPortPrefix, PolicyDecision),
    PutVerdict(VerdictKey, PolicyVerdict),
    PutPeer(Addr, PolicyPeer),
    PutNetwork(PolicyNetwork, PolicyPeer),
    PutPod(Addr, PolicyPod),
    PutState(PolicyState),
    DeletePod(Addr),
    DeletePeer(Addr),
    DeleteNetwork(PolicyNetwork),
    DeleteVerdict(VerdictKey),
    DeletePort(PolicyPortPrefix),
}

/// What the tables hold: the starting point of a restarted agent.
#[derive(Clone, Debug, Default)]
pub struct PolicySnapshot {
    pub state: PolicyState,
    pub pods: Vec<(Addr, PolicyPod)>,
    pub peers: Vec<(Addr, PolicyPeer)>,
    pub networks: Vec<(PolicyNetwork, PolicyPeer)>,
    pub verdicts: Vec<(VerdictKey, PolicyVerdict)>,
    pub ports: Vec<(PolicyPortPrefix, PolicyDecision)>,
}

pub struct PolicyMaps {
    state: Array<MapData, Raw<PolicyState>>,
    pods: Table<Raw<Addr>, Raw<PolicyPod>>,
    peers: Table<Raw<Addr>, Raw<PolicyPeer>>,
    networks: LpmTrie<MapData, Raw<Addr>, Raw<PolicyPeer>>,
    verdicts: Table<Raw<VerdictKey>, Raw<PolicyVerdict>>,
    ports: LpmTrie<MapData, Raw<PolicyPortKey>, Raw<PolicyDecision>>,
}

impl PolicyMaps {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            state: take(ebpf, "POLICY_STATE")?,
            pods: Table::take(ebpf, "POLICY_PODS")?,
            peers: Table::take(ebpf, "POLICY_PEERS")?,
            networks: take(ebpf, "POLICY_NETWORKS")?,
            verdicts: Table::take(ebpf, "POLICY_VERDICTS")?,
            ports: take(ebpf, "POLICY_PORTS")?,
        })
    }

    pub fn snapshot(&self) -> Result<PolicySnapshot> {
        let state = self
            .state
            .get(&0, 0)
            .map_err(|error| Error::map("read", "POLICY_STATE", error))?;
        let mut snapshot = PolicySnapshot {
            state: state.0,
            ..PolicySnapshot::default()
        };
        self.pods
            .visit(|key, value| snapshot.pods.push((key.0, value.0)))?;
        self.peers
            .visit(|key, value| snapshot.peers.push((key.0, value.0)))?;
        self.verdicts
            .visit(|key, value| snapshot.verdicts.push((key.0, value.0)))?;
        for entry in self.networks.iter() {
            let (key, value) =
                entry.map_err(|error| Error::map("read", "POLICY_NETWORKS", error))?;
            let network = PolicyNetwork {
                addr: key.data().0,
                length: key.prefix_len(),
            };
            snapshot.networks.push((network, value.0));
        }
        for entry in self.ports.iter() {
            let (key, value) = entry.map_err(|error| Error::map("read", "POLICY_PORTS", error))?;
            let prefix = PolicyPortPrefix {
                key: key.data().0,
                length: key.prefix_len(),
            };
            snapshot.ports.push((prefix, value.0));
        }
        Ok(snapshot)
    }

    /// Writes in the given order and stops at the first failure.
    pub fn apply(&mut self, writes: &[PolicyWrite]) -> Result<()> {
        for write in writes {
            match *write {
                PolicyWrite::PutPort(prefix, decision) => self
                    .ports
                    .insert(&port_key(prefix), Raw(decision), 0)
                    .map_err(|error| Error::map("write to", "POLICY_PORTS", error)),
                PolicyWrite::PutVerdict(key, verdict) => self.verdicts.put(Raw(key), Raw(verdict)),
                PolicyWrite::PutPeer(addr, peer) => self.peers.put(Raw(addr), Raw(peer)),
                PolicyWrite::PutNetwork(network, peer) => self
                    .networks
                    .insert(&network_key(network), Raw(peer), 0)
                    .map_err(|error| Error::map("write to", "POLICY_NETWORKS", error)),
                PolicyWrite::PutPod(addr, pod) => self.pods.put(Raw(addr), Raw(pod)),
                PolicyWrite::PutState(state) => self
                    .state
                    .set(0, Raw(state), 0)
                    .map_err(|error| Error::map("write to", "POLICY_STATE", error)),
                PolicyWrite::DeletePod(addr) => self.pods.remove(&Raw(addr)),
                PolicyWrite::DeletePeer(addr) => self.peers.remove(&Raw(addr)),
                PolicyWrite::DeleteNetwork(network) => removed(
                    "POLICY_NETWORKS",
                    self.networks.remove(&network_key(network)),
                ),
                PolicyWrite::DeleteVerdict(key) => self.verdicts.remove(&Raw(key)),
                PolicyWrite::DeletePort(prefix) => {
                    removed("POLICY_PORTS", self.ports.remove(&port_key(prefix)))
                }
            }?;
        }
        Ok(())
    }
}

fn network_key(network: PolicyNetwork) -> Key<Raw<Addr>> {
    Key::new(network.length, Raw(network.addr))
}

fn port_key(prefix: PolicyPortPrefix) -> Key<Raw<PolicyPortKey>> {
    Key::new(prefix.length, Raw(prefix.key))
}

/// Removing what is not there is no error: the caller wants it gone.
fn removed(map: &'static str, result: Result<(), aya::maps::MapError>) -> Result<()> {
    match result {
        Err(error) if !is_missing(&error) => Err(Error::map("remove from", map, error)),
        _ => Ok(()),
    }
}
