//! Blocks of addresses as a trie sees them: which blocks hold an address is decided by the
//! longest of all their prefixes that holds it.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ahash::AHashMap;
use ipnet::IpNet;
use windlass_datapath::types::{Addr, PolicyNetwork};

use super::{class::Peers, spec::Peer};

pub(super) struct Networks {
    /// Every prefix with the ids of the blocks that hold all of it.
    by_prefix: AHashMap<IpNet, BTreeSet<u64>>,
    /// The same, to be looked up: prefix lengths of each family, longest first.
    lengths: HashMap<bool, BTreeSet<std::cmp::Reverse<u8>>>,
}

impl Networks {
    /// `others`: prefixes that shall have an element of their own although no block names them.
    pub(super) fn new(peers: &Peers, others: &BTreeSet<IpNet>) -> Self {
        let mut prefixes = others.clone();
        for peer in peers.values() {
            if let Peer::Block { network, except } = peer {
                prefixes.insert(*network);
                prefixes.extend(except);
            }
        }
        if !prefixes.is_empty() {
            // Without a root of its own IPv4 would fall to an IPv6 block that holds
            // everything, since it lies within that one's address space.
            prefixes.extend([IpAddr::from([0; 4]), IpAddr::from([0u16; 8])].map(root));
        }
        let blocks_of = |prefix: &IpNet| {
            let blocks = peers.iter().filter(|(_, peer)| match peer {
                Peer::Block { network, except } => {
                    network.contains(prefix) && !except.iter().any(|net| net.contains(prefix))
                }
                _ => false,
            });
            blocks.map(|(id, _)| *id).collect()
        };
        let by_prefix: AHashMap<IpNet, BTreeSet<u64>> = prefixes
            .iter()
            .map(|prefix| (*prefix, blocks_of(prefix)))
            .collect();
        let mut lengths: HashMap<bool, BTreeSet<_>> = HashMap::new();
        for prefix in by_prefix.keys() {
            let of_family = lengths.entry(is_v4(prefix)).or_default();
            of_family.insert(std::cmp::Reverse(prefix.prefix_len()));
        }
        Self { by_prefix, lengths }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&IpNet, &BTreeSet<u64>)> {
        self.by_prefix.iter()
    }

    /// The longest prefix that holds an address, with the blocks that hold it.
    pub(super) fn innermost(&self, address: IpAddr) -> Option<(&IpNet, &BTreeSet<u64>)> {
        let lengths = self.lengths.get(&address.is_ipv4())?;
        lengths.iter().find_map(|length| {
            let prefix = IpNet::new(address, length.0).ok()?.trunc();
            self.by_prefix.get_key_value(&prefix)
        })
    }
}

fn root(any: IpAddr) -> IpNet {
    IpNet::new(any, 0).expect("every family has a prefix of no bits")
}

fn is_v4(network: &IpNet) -> bool {
    matches!(network, IpNet::V4(_))
}

/// A network as the datapath's tries hold it: IPv4 lies under `::ffff:0:0/96`.
pub(super) fn to_trie(network: &IpNet) -> PolicyNetwork {
    let length = u32::from(network.prefix_len());
    PolicyNetwork {
        addr: Addr::from(network.network()),
        length: length + if is_v4(network) { 96 } else { 0 },
    }
}
