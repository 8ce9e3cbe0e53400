//! What every address is to policies, as an identity: the selectors and blocks that it matches, of those
//! that this node's classes ask for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;
use windlass_datapath::types::{Addr, PolicyPeer, policy_peer};
use windlass_domain_names::DomainMap;

use super::{
    addresses::{Addresses, Claimant},
    changes::Changes,
    class::{Class, Identity, Peers},
    cluster::{Cluster, NodeSpec, PodKey},
    edits::Edits,
    identities::Identities,
    names::Names,
    networks::{Networks, to_trie},
    profiles::pods_of,
    spec::Peer,
};

#[derive(Debug, Default)]
pub(super) struct PeerTable {
    pub(super) identities: Identities,
    addresses: Addresses,
    /// Addresses of local pods.
    local: AHashSet<IpAddr>,
    /// What classes ask for, and how many of them.
    asked: AHashMap<u64, (Peer, usize)>,
    names: BTreeMap<String, usize>,
    classes: usize,
    nodes: HashMap<String, NodeSpec>,
    /// The peers that the addresses of nodes match, where there are any.
    at_nodes: AHashMap<IpAddr, BTreeSet<u64>>,
    /// The names of addresses.
    named: Names,
    /// The peers that are names.
    domains: DomainMap<u64>,
    pod_networks: BTreeSet<IpNet>,
    networks: Networks,
    networks_differ: bool,
    nodes_differ: bool,
    domains_differ: bool,
    given: AHashMap<IpAddr, u64>,
    given_networks: AHashMap<IpNet, PolicyPeer>,
}

impl PeerTable {
    /// Takes over what has changed in the cluster.
    pub(super) fn follow(&mut self, cluster: &Cluster<'_>, changes: &Changes) {
        self.follow_namespaces(cluster, changes);
        self.follow_pods(cluster, changes);
        self.follow_local(cluster);
        if self.pod_networks != cluster.pod_networks {
            self.pod_networks = cluster.pod_networks.clone();
            self.networks_differ = true;
        }
        let nodes = changes.of(
            &changes.nodes,
            self.nodes.keys().cloned(),
            cluster.nodes.keys(),
        );
        for name in nodes {
            let held = match cluster.nodes.get(&name) {
                Some(node) if self.nodes.get(&name) == Some(node) => continue,
                Some(node) => self.nodes.insert(name, node.clone()),
                None => self.nodes.remove(&name),
            };
            self.nodes_differ = true;
            drop(held);
        }
        let held = self.named.keys().copied();
        for address in changes.of(&changes.names, held, cluster.names.keys()) {
            let before = match cluster.names.get(&address) {
                Some(names) => self.named.insert(address, names.clone()),
                None => self.named.remove(&address),
            };
            if before.as_ref() != self.named.get(&address) {
                self.addresses.touch(address);
            }
        }
    }

    fn follow_namespaces(&mut self, cluster: &Cluster<'_>, changes: &Changes) {
        let held = self.addresses.profiles.namespaces().cloned();
        let names = changes.of(&changes.namespaces, held, cluster.namespaces.keys());
        for name in names {
            let labels = cluster.namespaces.get(&name);
            let profiles = self.addresses.profiles.set_namespace(&name, labels);
            self.addresses.touch_profiles(profiles);
        }
    }

    fn follow_pods(&mut self, cluster: &Cluster<'_>, changes: &Changes) {
        let claimants = self.addresses.claimants();
        let held = claimants.filter_map(|claimant| match claimant {
            Claimant::Pod(key) => Some(key.clone()),
            _ => None,
        });
        let pods: AHashSet<PodKey> = changes.of(&changes.pods, held, cluster.pods.keys());
        for key in pods {
            let pod = cluster.pods.get(&key);
            let claimant = Claimant::Pod(key);
            match pod {
                Some(pod) => self.addresses.set(&claimant, "", &pod.addresses, pod),
                None => self.addresses.remove(&claimant),
            }
        }
        let claimants = self.addresses.claimants();
        let held = claimants.filter_map(|claimant| match claimant {
            Claimant::Server(name) => Some(name.clone()),
            _ => None,
        });
        let servers: AHashSet<String> =
            changes.of(&changes.dns_servers, held, cluster.dns_servers.keys());
        for name in servers {
            let server = cluster.dns_servers.get(&name);
            let claimant = Claimant::Server(name);
            match server {
                Some(server) => self.addresses.set(&claimant, "", &server.addresses, server),
                None => self.addresses.remove(&claimant),
            }
        }
    }

    /// A node has so few pods that all of them are looked at each time.
    fn follow_local(&mut self, cluster: &Cluster<'_>) {
        let mut here = AHashSet::new();
        for pod in &cluster.local {
            for address in &pod.addresses {
                let claimant = Claimant::Local(*address);
                self.addresses
                    .set(&claimant, &pod.key.namespace, &[*address], &pod.spec);
                here.insert(*address);
            }
        }
        for address in self.local.difference(&here) {
            self.addresses.remove(&Claimant::Local(*address));
        }
        self.local = here;
    }

    /// From now on identities tell of what this class asks for.
    pub(super) fn ask(&mut self, class: &Class, peers: &Peers) {
        self.classes += 1;
        if self.classes == 1 {
            self.touch_everybody();
        }
        for (id, peer) in peers {
            let (_, uses) = self.asked.entry(*id).or_insert_with(|| (peer.clone(), 0));
            *uses += 1;
            if *uses == 1 {
                if let Some(pods) = pods_of(peer) {
                    let profiles = self.addresses.profiles.ask(*id, pods);
                    self.addresses.touch_profiles(profiles);
                }
                self.note(peer);
            }
        }
        let mut new = BTreeSet::new();
        for name in class.port_names() {
            let uses = self.names.entry(name.to_owned()).or_default();
            *uses += 1;
            if *uses == 1 {
                new.insert(name.to_owned());
            }
        }
        self.touch_ports(&new);
    }

    pub(super) fn forget(&mut self, class: &Class, peers: &Peers) {
        self.classes -= 1;
        if self.classes == 0 {
            self.touch_everybody();
        }
        for (id, peer) in peers {
            let Some((_, uses)) = self.asked.get_mut(id) else {
                continue;
            };
            *uses -= 1;
            if *uses == 0 {
                self.asked.remove(id);
                let profiles = self.addresses.profiles.forget(*id);
                self.addresses.touch_profiles(profiles);
                self.note(peer);
            }
        }
        let mut gone = BTreeSet::new();
        for name in class.port_names() {
            if let Some(uses) = self.names.get_mut(name) {
                *uses -= 1;
                if *uses == 0 {
                    self.names.remove(name);
                    gone.insert(name.to_owned());
                }
            }
        }
        self.touch_ports(&gone);
    }

    fn note(&mut self, peer: &Peer) {
        match peer {
            Peer::Pods(_) => {}
            Peer::Block { .. } => self.networks_differ = true,
            Peer::Nodes(_) => self.nodes_differ = true,
            Peer::Domain(_) => self.domains_differ = true,
        }
    }

    fn touch_ports(&mut self, names: &BTreeSet<String>) {
        if !names.is_empty() {
            let profiles = self.addresses.profiles.with_port(names);
            self.addresses.touch_profiles(profiles);
        }
    }

    fn touch_everybody(&mut self) {
        self.networks_differ = true;
        self.nodes_differ = true;
        self.domains_differ = true;
        self.addresses.touch_all();
    }

    /// Gives everybody whom the changes concern their identities.
    pub(super) fn refresh(&mut self, edits: &mut Edits) {
        if std::mem::take(&mut self.nodes_differ) {
            self.refresh_nodes();
        }
        if std::mem::take(&mut self.domains_differ) {
            self.refresh_domains();
        }
        if std::mem::take(&mut self.networks_differ) {
            self.refresh_networks(edits);
        }
        for address in self.addresses.take_dirty() {
            let wanted = self.identity_of(address).map(|it| self.identities.take(it));
            let held = match wanted {
                Some(id) => self.given.insert(address, id),
                None => self.given.remove(&address),
            };
            if let Some(held) = held {
                self.identities.release(held);
            }
            let peer = wanted.map(|identity| PolicyPeer {
                identity,
                ..PolicyPeer::default()
            });
            edits.peers.insert(Addr::from(address), peer);
        }
    }

    /// None: nothing is known of it but where it is.
    fn identity_of(&self, address: IpAddr) -> Option<Identity> {
        if self.classes == 0 {
            return None;
        }
        let mut identity = Identity {
            peers: self.networks.holding(address).collect(),
            ports: BTreeSet::new(),
        };
        let names = self.named.get(&address).into_iter().flatten();
        let named = names.flat_map(|name| self.domains.matching(name));
        let blocks = identity.peers.len();
        identity.peers.extend(named);
        let is_named = identity.peers.len() > blocks;
        if let Some(selected) = self.at_nodes.get(&address) {
            identity.peers.extend(selected);
            return Some(identity);
        }
        let Some(owner) = self.addresses.owner(address) else {
            return is_named.then_some(identity);
        };
        identity
            .peers
            .extend(self.addresses.profiles.matched(owner));
        let ports = self.addresses.profiles.profile(owner).ports.iter();
        let ports = ports.filter(|port| self.names.contains_key(&port.name));
        identity.ports.extend(ports.cloned());
        Some(identity)
    }

    fn refresh_domains(&mut self) {
        let mut domains = DomainMap::default();
        for (id, (peer, _)) in &self.asked {
            if let Peer::Domain(pattern) = peer {
                domains.insert(pattern, *id);
            }
        }
        if domains.is_empty() && self.domains.is_empty() {
            return;
        }
        self.domains = domains;
        for address in self.named.keys() {
            self.addresses.touch(*address);
        }
    }

    fn refresh_nodes(&mut self) {
        let mut at_nodes: AHashMap<IpAddr, BTreeSet<u64>> = AHashMap::new();
        let asked: Vec<_> = self
            .asked
            .iter()
            .filter_map(|(id, (peer, _))| match peer {
                Peer::Nodes(selector) => Some((*id, selector)),
                _ => None,
            })
            .collect();
        if !asked.is_empty() {
            for node in self.nodes.values() {
                let met = asked
                    .iter()
                    .filter(|(_, selector)| selector.matches(&node.labels));
                let met: BTreeSet<u64> = met.map(|(id, _)| *id).collect();
                // As any other address otherwise: by the blocks that hold it.
                if !met.is_empty() {
                    at_nodes.extend(node.addresses.iter().map(|it| (*it, met.clone())));
                }
            }
        }
        let before = std::mem::replace(&mut self.at_nodes, at_nodes);
        let all = before.keys().chain(self.at_nodes.keys());
        let differing = all.filter(|it| before.get(*it) != self.at_nodes.get(*it));
        for address in differing {
            self.addresses.touch(*address);
        }
    }

    fn refresh_networks(&mut self, edits: &mut Edits) {
        let asked = self.asked.iter().map(|(id, (peer, _))| (*id, peer));
        let networks = match self.classes {
            0 => Networks::default(),
            _ => Networks::new(asked, &self.pod_networks),
        };
        let before = std::mem::replace(&mut self.networks, networks);
        let all = before
            .iter()
            .chain(self.networks.iter())
            .map(|(prefix, _)| prefix);
        let differing = all.filter(|prefix| before.get(prefix) != self.networks.get(prefix));
        for prefix in differing {
            self.addresses.touch_network(prefix);
            let others = self.at_nodes.keys().chain(self.named.keys());
            for address in others.filter(|it| prefix.contains(*it)) {
                self.addresses.touch(*address);
            }
        }
        let mut given = AHashMap::new();
        for (prefix, blocks) in self.networks.iter() {
            let in_pod_network = self.pod_networks.iter().any(|it| it.contains(prefix));
            let identity = Identity {
                peers: blocks.clone(),
                ports: BTreeSet::new(),
            };
            let peer = PolicyPeer {
                identity: self.identities.take(identity),
                flags: if in_pod_network {
                    policy_peer::POD_NETWORK
                } else {
                    0
                },
                pad: 0,
            };
            edits.networks.insert(to_trie(prefix), Some(peer));
            given.insert(*prefix, peer);
        }
        for (prefix, peer) in std::mem::replace(&mut self.given_networks, given) {
            self.identities.release(peer.identity);
            if !self.given_networks.contains_key(&prefix) {
                edits.networks.insert(to_trie(&prefix), None);
            }
        }
    }
}
