//! What makes pods equal to policies: their namespace, labels and named ports. Thousands of addresses
//! share a few of these, and a peer of a rule is looked for among them once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ahash::{AHashMap, AHashSet};

use super::{
    cluster::NamedPort,
    labels::Labels,
    spec::{NamespaceMatch, Peer, PodMatch},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ProfileId(usize);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Profile {
    pub namespace: String,
    pub labels: Labels,
    pub ports: BTreeSet<NamedPort>,
}

#[derive(Debug)]
struct Entry {
    profile: Arc<Profile>,
    claims: usize,
    /// Ids of the peers that such pods are.
    matched: BTreeSet<u64>,
    /// Those of the addresses that belong to such pods.
    addresses: AHashSet<IpAddr>,
}

#[derive(Debug, Default)]
pub(super) struct Profiles {
    entries: Vec<Option<Entry>>,
    free: Vec<ProfileId>,
    by_profile: AHashMap<Arc<Profile>, ProfileId>,
    by_namespace: AHashMap<String, AHashSet<ProfileId>>,
    namespaces: AHashMap<String, Labels>,
    /// The sets of pods that rules ask for.
    asked: BTreeMap<u64, PodMatch>,
}

impl Profiles {
    /// Counts a claim to such a profile; each is to be [released](Self::release).
    pub(super) fn claim(&mut self, profile: Profile) -> ProfileId {
        if let Some(id) = self.by_profile.get(&profile) {
            let id = *id;
            self.entry(id).claims += 1;
            return id;
        }
        let profile = Arc::new(profile);
        let entry = Entry {
            matched: self.matching(&profile),
            profile: profile.clone(),
            claims: 1,
            addresses: AHashSet::new(),
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.entries[id.0] = Some(entry);
                id
            }
            None => {
                self.entries.push(Some(entry));
                ProfileId(self.entries.len() - 1)
            }
        };
        let of_namespace = self.by_namespace.entry(profile.namespace.clone());
        of_namespace.or_default().insert(id);
        self.by_profile.insert(profile, id);
        id
    }

    pub(super) fn release(&mut self, id: ProfileId) {
        let entry = self.entry(id);
        entry.claims -= 1;
        if entry.claims > 0 {
            return;
        }
        let profile = entry.profile.clone();
        self.entries[id.0] = None;
        self.free.push(id);
        self.by_profile.remove(&profile);
        if let Some(ids) = self.by_namespace.get_mut(&profile.namespace) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_namespace.remove(&profile.namespace);
            }
        }
    }

    pub(super) fn profile(&self, id: ProfileId) -> &Profile {
        &self.get(id).profile
    }

    pub(super) fn matched(&self, id: ProfileId) -> &BTreeSet<u64> {
        &self.get(id).matched
    }

    pub(super) fn addresses(&self, id: ProfileId) -> impl Iterator<Item = IpAddr> + '_ {
        self.get(id).addresses.iter().copied()
    }

    pub(super) fn give(&mut self, id: ProfileId, address: IpAddr) {
        self.entry(id).addresses.insert(address);
    }

    pub(super) fn take(&mut self, id: ProfileId, address: IpAddr) {
        self.entry(id).addresses.remove(&address);
    }

    /// Names of the namespaces that are known.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &String> {
        self.namespaces.keys()
    }

    /// Returns the profiles that match other peers than before.
    pub(super) fn set_namespace(&mut self, name: &str, labels: Option<&Labels>) -> Vec<ProfileId> {
        if self.namespaces.get(name) == labels {
            return Vec::new();
        }
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), labels.clone())),
            None => drop(self.namespaces.remove(name)),
        }
        let ids: Vec<ProfileId> = self
            .by_namespace
            .get(name)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        let differing = ids.into_iter().filter(|id| {
            let matching = self.matching(&self.get(*id).profile);
            let entry = self.entry(*id);
            let differs = entry.matched != matching;
            entry.matched = matching;
            differs
        });
        differing.collect()
    }

    /// Looks for a peer from now on. Returns the profiles that it matches.
    pub(super) fn ask(&mut self, id: u64, pods: &PodMatch) -> Vec<ProfileId> {
        self.asked.insert(id, pods.clone());
        let selected = self.select(pods);
        for profile in &selected {
            self.entry(*profile).matched.insert(id);
        }
        selected
    }

    /// The opposite of [`Self::ask`]. Returns the profiles that it matched.
    pub(super) fn forget(&mut self, id: u64) -> Vec<ProfileId> {
        let Some(pods) = self.asked.remove(&id) else {
            return Vec::new();
        };
        let selected = self.select(&pods);
        for profile in &selected {
            self.entry(*profile).matched.remove(&id);
        }
        selected
    }

    /// The profiles that have a port of one of these names.
    pub(super) fn with_port(&self, names: &BTreeSet<String>) -> Vec<ProfileId> {
        let entries = self.entries.iter().enumerate();
        let entries = entries.filter_map(|(id, entry)| Some((ProfileId(id), entry.as_ref()?)));
        let having = entries.filter(|(_, entry)| {
            let mut ports = entry.profile.ports.iter();
            ports.any(|port| names.contains(&port.name))
        });
        having.map(|(id, _)| id).collect()
    }

    fn matching(&self, profile: &Profile) -> BTreeSet<u64> {
        let nothing = Labels::new();
        let namespace = self.namespaces.get(&profile.namespace).unwrap_or(&nothing);
        let met = self
            .asked
            .iter()
            .filter(|(_, pods)| pods.matches(&profile.namespace, namespace, &profile.labels));
        met.map(|(id, _)| *id).collect()
    }

    fn select(&self, pods: &PodMatch) -> Vec<ProfileId> {
        let nothing = Labels::new();
        let namespaces = match &pods.namespaces {
            NamespaceMatch::Named(name) => vec![name],
            NamespaceMatch::Labelled(selector) => {
                let names = self.by_namespace.keys();
                let met = names.filter(|name| {
                    selector.matches(self.namespaces.get(*name).unwrap_or(&nothing))
                });
                met.collect()
            }
        };
        let ids = namespaces
            .into_iter()
            .filter_map(|name| self.by_namespace.get(name));
        let met = ids
            .flatten()
            .filter(|id| pods.pods.matches(&self.get(**id).profile.labels));
        met.copied().collect()
    }

    fn get(&self, id: ProfileId) -> &Entry {
        self.entries[id.0]
            .as_ref()
            .expect("an id is held only by who claims it")
    }

    fn entry(&mut self, id: ProfileId) -> &mut Entry {
        self.entries[id.0]
            .as_mut()
            .expect("an id is held only by who claims it")
    }
}

/// The pods of a peer, if it is one of pods.
pub(super) fn pods_of(peer: &Peer) -> Option<&PodMatch> {
    match peer {
        Peer::Pods(pods) => Some(pods),
        _ => None,
    }
}
