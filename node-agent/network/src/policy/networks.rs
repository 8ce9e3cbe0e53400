//! Blocks of addresses as a trie sees them: which blocks hold an address is decided by the
//! longest of all their prefixes that holds it.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ahash::AHashMap;
use ipnet::IpNet;
use windlass_datapath::types::{Addr, PolicyNetwork};

use super::spec::Peer;

#[derive(Debug, Default)]
pub(super) struct Networks {
    /// Every prefix with the ids of the blocks that hold all of it.
    by_prefix: AHashMap<IpNet, BTreeSet<u64>>,
    /// The same, to be looked up: prefix lengths of each family, longest first.
    lengths: HashMap<bool, BTreeSet<std::cmp::Reverse<u8>>>,
}

impl Networks {
    /// `others`: prefixes that shall have an element of their own although no block names them.
    pub(super) fn new<'a>(
        peers: impl Iterator<Item = (u64, &'a Peer)>,
        others: &BTreeSet<IpNet>,
    ) -> Self {
        let mut prefixes = others.clone();
        let mut blocks: AHashMap<IpNet, Vec<(u64, &[IpNet])>> = AHashMap::new();
        for (id, peer) in peers {
            if let Peer::Block { network, except } = peer {
                prefixes.insert(*network);
                prefixes.extend(except);
                blocks.entry(*network).or_default().push((id, except));
            }
        }
        if !prefixes.is_empty() {
            // Without a root of its own IPv4 would fall to an IPv6 block that holds
            // everything, since it lies within that one's address space.
            prefixes.extend([IpAddr::from([0; 4]), IpAddr::from([0u16; 8])].map(root));
        }
        let mut lengths: HashMap<bool, BTreeSet<_>> = HashMap::new();
        for prefix in &prefixes {
            let of_family = lengths.entry(is_v4(prefix)).or_default();
            of_family.insert(std::cmp::Reverse(prefix.prefix_len()));
        }
        // A block that holds a prefix is one of those around it: there is one for each length.
        let blocks_of = |prefix: &IpNet| {
            let around = lengths[&is_v4(prefix)].iter().filter_map(|length| {
                let shorter = length.0 <= prefix.prefix_len();
                let around = IpNet::new(prefix.network(), length.0).ok()?.trunc();
                shorter.then_some(around)
            });
            let holding = around.filter_map(|around| blocks.get(&around)).flatten();
            let holding =
                holding.filter(|(_, except)| !except.iter().any(|net| net.contains(prefix)));
            holding.map(|(id, _)| *id).collect()
        };
        let by_prefix = prefixes
            .iter()
            .map(|prefix| (*prefix, blocks_of(prefix)))
            .collect();
        Self { by_prefix, lengths }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&IpNet, &BTreeSet<u64>)> {
        self.by_prefix.iter()
    }

    pub(super) fn get(&self, prefix: &IpNet) -> Option<&BTreeSet<u64>> {
        self.by_prefix.get(prefix)
    }

    /// The blocks that hold an address.
    pub(super) fn holding(&self, address: IpAddr) -> impl Iterator<Item = u64> + '_ {
        let lengths = self.lengths.get(&address.is_ipv4()).into_iter().flatten();
        let mut prefixes = lengths.filter_map(move |length| {
            let prefix = IpNet::new(address, length.0).ok()?.trunc();
            self.by_prefix.get(&prefix)
        });
        prefixes.next().into_iter().flatten().copied()
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
