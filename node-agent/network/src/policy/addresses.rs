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

#[cfg(test)]
mod tests {
    use super::*;

    const REUSED: &str = "10.244.0.7";

    fn pod(name: &str) -> Claimant {
        Claimant::Pod(PodKey {
            namespace: "x".into(),
            name: name.into(),
        })
    }

    fn spec(uid: &str, terminating: bool) -> PodSpec {
        PodSpec {
            uid: uid.into(),
            labels: [("is".to_owned(), uid.to_owned())].into(),
            terminating,
            ..PodSpec::default()
        }
    }

    /// Which of these the address is taken for.
    fn owner(addresses: &Addresses, names: &[&str]) -> Option<String> {
        let owner = addresses.owner(REUSED.parse().unwrap())?;
        let owns = |name: &&&str| addresses.claims[&pod(name)].profile == owner;
        names.iter().find(owns).map(|name| (*name).to_owned())
    }

    #[test]
    fn an_address_that_is_given_again_is_its_new_pods_at_once() {
        let address: [IpAddr; 1] = [REUSED.parse().unwrap()];
        let both = ["old", "new"];
        // Whatever is heard of first, and whichever uid is the greater one.
        for (old, new) in [("1", "2"), ("2", "1")] {
            let mut addresses = Addresses::default();
            addresses.set(&pod("old"), "x", &address, &spec(old, false));
            addresses.take_dirty();
            addresses.set(&pod("old"), "x", &address, &spec(old, true));
            // It still has the address while it ends.
            assert_eq!(owner(&addresses, &["old"]).as_deref(), Some("old"));
            addresses.set(&pod("new"), "x", &address, &spec(new, false));
            assert_eq!(owner(&addresses, &both).as_deref(), Some("new"));
            assert_eq!(addresses.take_dirty(), address.into_iter().collect());
            // The old one's end is no news of the address.
            addresses.remove(&pod("old"));
            assert_eq!(owner(&addresses, &["new"]).as_deref(), Some("new"));
            assert!(addresses.take_dirty().is_empty());
            addresses.remove(&pod("new"));
            assert_eq!(addresses.owner(address[0]), None);
        }
    }

    #[test]
    fn a_node_knows_best_who_its_own_pods_are() {
        let address: [IpAddr; 1] = [REUSED.parse().unwrap()];
        let mut addresses = Addresses::default();
        addresses.set(&pod("far"), "x", &address, &spec("2", false));
        let local = Claimant::Local(address[0]);
        addresses.set(&local, "y", &address, &spec("1", true));
        let profile = addresses.claims[&local].profile;
        assert_eq!(addresses.owner(address[0]), Some(profile));
        addresses.remove(&local);
        assert_eq!(owner(&addresses, &["far"]).as_deref(), Some("far"));
    }
}
