//! What every address is to policies: the selectors and blocks that it matches.
//!
//! Many addresses are one identity, and most of the work is done once for each of those: for
//! pods with the same labels in the same namespace, in the same block.

use std::collections::{BTreeSet, HashMap};

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;
use windlass_datapath::types::{Addr, PolicyPeer, policy_peer};

use super::{
    class::{Class, Identity, Peers},
    cluster::{Cluster, NamedPort},
    compile::Desired,
    labels::Labels,
    networks::{Networks, to_trie},
    spec::Peer,
};

#[derive(Default)]
pub(super) struct Identities {
    by_id: HashMap<u64, Identity>,
    /// Identities that match a peer of a rule, and those that have a port of a name.
    by_peer: AHashMap<u64, Vec<u64>>,
    by_port: HashMap<String, Vec<u64>>,
}

/// What makes pods equal to policies.
type Profile<'a> = (
    &'a str,
    &'a Labels,
    &'a BTreeSet<NamedPort>,
    Option<&'a IpNet>,
);

impl Identities {
    /// Gives every address that is known an identity, and every network. `names`: those of ports
    /// that rules use.
    pub(super) fn give(
        cluster: &Cluster<'_>,
        peers: &Peers,
        names: &BTreeSet<&str>,
        desired: &mut Desired,
    ) -> Self {
        let networks = Networks::new(peers, &cluster.pod_networks);
        let mut identities = Self::default();
        let mut known: AHashMap<Profile<'_>, u64> = AHashMap::new();
        let nothing = Labels::new();
        let owners = cluster.owners();
        desired.peers.reserve(owners.len());
        for (address, (namespace, pod)) in owners {
            let block = networks.innermost(address);
            let profile = (
                namespace,
                &pod.labels,
                &pod.ports,
                block.map(|(net, _)| net),
            );
            let id = *known.entry(profile).or_insert_with(|| {
                let namespace_labels = cluster.namespaces.get(namespace).unwrap_or(&nothing);
                let selected = matching(peers, |peer| match peer {
                    Peer::Pods(pods) => pods.matches(namespace, namespace_labels, &pod.labels),
                    _ => false,
                });
                let ports = pod.ports.iter();
                let ports = ports.filter(|port| names.contains(port.name.as_str()));
                identities.number(selected, block, ports.cloned().collect())
            });
            desired.peers.insert(Addr::from(address), known_peer(id));
        }
        for node in cluster.nodes.values() {
            let selected = matching(peers, |peer| match peer {
                Peer::Nodes(selector) => selector.matches(&node.labels),
                _ => false,
            });
            if selected.is_empty() {
                // As any other address: by the blocks that hold it.
                continue;
            }
            for address in &node.addresses {
                let block = networks.innermost(*address);
                let id = identities.number(selected.clone(), block, BTreeSet::new());
                desired.peers.insert(Addr::from(*address), known_peer(id));
            }
        }
        for (network, blocks) in networks.iter() {
            let in_pod_network = cluster.pod_networks.iter().any(|it| it.contains(network));
            let block = Some((network, blocks));
            let peer = PolicyPeer {
                identity: identities.number(BTreeSet::new(), block, BTreeSet::new()),
                flags: if in_pod_network {
                    policy_peer::POD_NETWORK
                } else {
                    0
                },
                pad: 0,
            };
            desired.networks.insert(to_trie(network), peer);
        }
        identities
    }

    fn number(
        &mut self,
        mut peers: BTreeSet<u64>,
        block: Option<(&IpNet, &BTreeSet<u64>)>,
        ports: BTreeSet<NamedPort>,
    ) -> u64 {
        peers.extend(block.into_iter().flat_map(|(_, blocks)| blocks));
        let identity = Identity { peers, ports };
        let id = identity.id();
        if id != 0 && !self.by_id.contains_key(&id) {
            for peer in &identity.peers {
                self.by_peer.entry(*peer).or_default().push(id);
            }
            for port in &identity.ports {
                self.by_port.entry(port.name.clone()).or_default().push(id);
            }
            self.by_id.insert(id, identity);
        }
        id
    }

    /// The identities to which a class may say something else than to everybody.
    pub(super) fn concerned_by(&self, class: &Class) -> impl Iterator<Item = (u64, &Identity)> {
        let by_peer = class.peers().filter_map(|peer| self.by_peer.get(&peer));
        let by_port = class.port_names().filter_map(|name| self.by_port.get(name));
        let ids: AHashSet<u64> = by_peer.chain(by_port).flatten().copied().collect();
        ids.into_iter()
            .filter_map(|id| Some((id, self.by_id.get(&id)?)))
    }
}

fn known_peer(identity: u64) -> PolicyPeer {
    PolicyPeer {
        identity,
        ..PolicyPeer::default()
    }
}

fn matching(peers: &Peers, is_met: impl Fn(&Peer) -> bool) -> BTreeSet<u64> {
    let met = peers.iter().filter(|(_, peer)| is_met(peer));
    met.map(|(id, _)| *id).collect()
}
