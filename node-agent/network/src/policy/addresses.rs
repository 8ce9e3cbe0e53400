//! Who has which address: the node's own knowledge first, then what the API says. Of two pods that claim
//! one, it belongs to the one that is not being deleted.

use std::{collections::BTreeMap, net::IpAddr};

use ahash::{AHashMap, AHashSet};
use ipnet::IpNet;

use super::{
    cluster::{DNS_NAMESPACE, PodKey, PodSpec},
    profiles::{Profile, ProfileId, Profiles},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Claimant {
    Pod(PodKey),
    /// A server of cluster DNS, by its slice.
    Server(String),
    /// The local pod that has this address.
    Local(IpAddr),
}

impl Claimant {
    fn namespace<'a>(&'a self, local: &'a str) -> &'a str {
        match self {
            Self::Pod(key) => &key.namespace,
            Self::Server(_) => DNS_NAMESPACE,
            Self::Local(_) => local,
        }
    }
}

/// The greatest wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    local: bool,
    stays: bool,
    uid: String,
}

#[derive(Debug)]
struct Claim {
    rank: Rank,
    profile: ProfileId,
    addresses: Vec<IpAddr>,
}

#[derive(Debug, Default)]
struct Claimed {
    by: Vec<(Rank, Claimant, ProfileId)>,
    owner: Option<ProfileId>,
}

#[derive(Debug, Default)]
pub(super) struct Addresses {
    pub(super) profiles: Profiles,
    claims: AHashMap<Claimant, Claim>,
    claimed: BTreeMap<IpAddr, Claimed>,
    /// Addresses that may be somebody else since the last look.
    dirty: AHashSet<IpAddr>,
}

impl Addresses {
    pub(super) fn claimants(&self) -> impl Iterator<Item = &Claimant> {
        self.claims.keys()
    }

    pub(super) fn owner(&self, address: IpAddr) -> Option<ProfileId> {
        self.claimed.get(&address)?.owner
    }

    /// `namespace`: of a local pod; the others' are known by their names.
    pub(super) fn set(
        &mut self,
        claimant: &Claimant,
        namespace: &str,
        addresses: &[IpAddr],
        pod: &PodSpec,
    ) {
        let profile = self.profiles.claim(Profile {
            namespace: claimant.namespace(namespace).to_owned(),
            labels: pod.labels.clone(),
            ports: pod.ports.clone(),
        });
        let rank = Rank {
            local: matches!(claimant, Claimant::Local(_)),
            stays: !pod.terminating,
            uid: pod.uid.clone(),
        };
        let same = self.claims.get(claimant).is_some_and(|held| {
            held.profile == profile && held.rank == rank && held.addresses == addresses
        });
        if same {
            self.profiles.release(profile);
            return;
        }
        // The new one first: what an address changes from and to is seen once.
        let old = self.claims.remove(claimant);
        for address in addresses {
            let claimed = self.claimed.entry(*address).or_default();
            claimed.by.retain(|(_, by, _)| by != claimant);
            claimed.by.push((rank.clone(), claimant.clone(), profile));
            self.decide(*address);
        }
        if let Some(old) = old {
            let gone = old.addresses.iter().filter(|it| !addresses.contains(it));
            self.withdraw(claimant, gone.copied());
            self.profiles.release(old.profile);
        }
        let claim = Claim {
            rank,
            profile,
            addresses: addresses.to_vec(),
        };
        self.claims.insert(claimant.clone(), claim);
    }

    pub(super) fn remove(&mut self, claimant: &Claimant) {
        if let Some(old) = self.claims.remove(claimant) {
            self.withdraw(claimant, old.addresses.iter().copied());
            self.profiles.release(old.profile);
        }
    }

    fn withdraw(&mut self, claimant: &Claimant, addresses: impl Iterator<Item = IpAddr>) {
        for address in addresses {
            if let Some(claimed) = self.claimed.get_mut(&address) {
                claimed.by.retain(|(_, by, _)| by != claimant);
            }
            self.decide(address);
        }
    }

    fn decide(&mut self, address: IpAddr) {
        let Some(claimed) = self.claimed.get_mut(&address) else {
            return;
        };
        let greatest = claimed.by.iter().max_by_key(|(rank, ..)| rank);
        let owner = greatest.map(|(.., profile)| *profile);
        let before = std::mem::replace(&mut claimed.owner, owner);
        if claimed.by.is_empty() {
            self.claimed.remove(&address);
        }
        if before == owner {
            return;
        }
        if let Some(before) = before {
            self.profiles.take(before, address);
        }
        if let Some(owner) = owner {
            self.profiles.give(owner, address);
        }
        self.dirty.insert(address);
    }

    pub(super) fn touch(&mut self, address: IpAddr) {
        self.dirty.insert(address);
    }

    pub(super) fn touch_all(&mut self) {
        self.dirty.extend(self.claimed.keys());
    }

    pub(super) fn touch_profiles(&mut self, ids: Vec<ProfileId>) {
        for id in ids {
            self.dirty.extend(self.profiles.addresses(id));
        }
    }

    pub(super) fn touch_network(&mut self, network: &IpNet) {
        let within = self.claimed.range(network.network()..=network.broadcast());
        self.dirty.extend(within.map(|(address, _)| *address));
    }

    pub(super) fn take_dirty(&mut self) -> AHashSet<IpAddr> {
        std::mem::take(&mut self.dirty)
    }
}
