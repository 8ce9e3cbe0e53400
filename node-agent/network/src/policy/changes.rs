//! What has happened to a cluster since the tables were last brought to it.

use std::net::IpAddr;

use ahash::AHashSet;

use super::{cluster::PodKey, spec::PolicyName};

#[derive(Debug, Default)]
pub struct Changes {
    /// Nothing is known of what changed: all of it is looked at.
    pub everything: bool,
    pub pods: AHashSet<PodKey>,
    pub namespaces: AHashSet<String>,
    pub policies: AHashSet<PolicyName>,
    /// Their slices.
    pub dns_servers: AHashSet<String>,
    pub nodes: AHashSet<String>,
    /// Addresses that are said to be a name's, or no more.
    pub names: AHashSet<IpAddr>,
    /// Interfaces of local pods.
    pub local: bool,
}

impl Changes {
    pub fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    pub fn is_empty(&self) -> bool {
        !self.everything
            && !self.local
            && self.pods.is_empty()
            && self.namespaces.is_empty()
            && self.policies.is_empty()
            && self.dns_servers.is_empty()
            && self.nodes.is_empty()
            && self.names.is_empty()
    }

    /// The names of objects that may have changed, of all that are `held` and `there`.
    pub(super) fn of<'a, K: Clone + Eq + std::hash::Hash + 'a>(
        &self,
        changed: &AHashSet<K>,
        held: impl Iterator<Item = K>,
        there: impl Iterator<Item = &'a K>,
    ) -> AHashSet<K> {
        if self.everything {
            held.chain(there.cloned()).collect()
        } else {
            changed.clone()
        }
    }
}
