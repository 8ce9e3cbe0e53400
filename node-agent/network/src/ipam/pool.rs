//! Picks addresses from a pod CIDR. Pure: who holds which address is told, not remembered.
//!
//! Goes round: an address is given again only after all others, so that what still remembers its last
//! holder (a peer's connection, a resolver's cache) has long forgotten.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A free address of a large IPv6 range is found after a few steps; this bounds the search in one that
/// is mostly taken.
const LONGEST_SEARCH: u128 = 1 << 16;

pub(super) struct Pool {
    first: u128,
    count: u128,
    is_v4: bool,
    /// Offset at which the next search begins.
    cursor: u128,
}

impl Pool {
    /// All of the CIDR but its first address (the network), its second (kept for the node itself: tunnels
    /// need an address of the range) and an IPv4 range's last (broadcast). `None` for a CIDR with nothing
    /// left after that.
    pub(super) fn new(cidr: IpNet) -> Option<Self> {
        let (is_v4, bits, network) = match cidr.network() {
            IpAddr::V4(network) => (true, 32, u128::from(u32::from(network))),
            IpAddr::V6(network) => (false, 128, u128::from(network)),
        };
        // Room for the highest offset in a /0 is not needed: nobody gives a node the whole address space.
        let host_bits = (bits - u32::from(cidr.prefix_len())).min(64);
        let kept = if is_v4 { 3 } else { 2 };
        let count = (1u128 << host_bits)
            .checked_sub(kept)
            .filter(|count| *count > 0)?;
        Some(Self {
            first: network + 2,
            count,
            is_v4,
            cursor: 0,
        })
    }

    /// Continues after this address, if it is one of the pool.
    pub(super) fn continue_after(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.cursor = (offset + 1) % self.count;
        }
    }

    /// The next address that is not taken.
    pub(super) fn next(&mut self, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        for step in 0..self.count.min(LONGEST_SEARCH) {
            let offset = (self.cursor + step) % self.count;
            let address = self.address(offset);
            if !taken(address) {
                self.cursor = (offset + 1) % self.count;
                return Some(address);
            }
        }
        None
    }

    fn address(&self, offset: u128) -> IpAddr {
        let bits = self.first + offset;
        if self.is_v4 {
            // The range began as 32 bits and ends inside them.
            Ipv4Addr::from(u32::try_from(bits).unwrap_or(u32::MAX)).into()
        } else {
            Ipv6Addr::from(bits).into()
        }
    }

    fn offset(&self, address: IpAddr) -> Option<u128> {
        let bits = match address {
            IpAddr::V4(address) if self.is_v4 => u128::from(u32::from(address)),
            IpAddr::V6(address) if !self.is_v4 => u128::from(address),
            _ => return None,
        };
        bits.checked_sub(self.first)
            .filter(|offset| *offset < self.count)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn pool(cidr: &str) -> Option<Pool> {
        Pool::new(cidr.parse().expect("a CIDR"))
    }

    #[test]
    fn every_usable_address_is_given_once_and_then_none() {
        let mut pool = pool("10.1.2.0/28").expect("has addresses");
        let mut given = HashSet::new();
        while let Some(address) = pool.next(|address| given.contains(&address)) {
            given.insert(address);
        }
        let expected: HashSet<IpAddr> =
            (2..15).map(|last| IpAddr::from([10, 1, 2, last])).collect();
        assert_eq!(given, expected);
    }

    #[test]
    fn a_freed_address_is_given_again_only_after_the_others() {
        let mut pool = pool("10.1.2.0/29").expect("has addresses");
        let order: Vec<_> = (0..6)
            .filter_map(|_| pool.next(|_| false))
            .map(|a| a.to_string())
            .collect();
        assert_eq!(
            order,
            [
                "10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6", "10.1.2.2"
            ]
        );
        pool.continue_after("10.1.2.4".parse().expect("an address"));
        assert_eq!(pool.next(|_| false), Some(IpAddr::from([10, 1, 2, 5])));
        pool.continue_after("192.0.2.1".parse().expect("an address"));
        assert_eq!(pool.next(|_| false), Some(IpAddr::from([10, 1, 2, 6])));
    }

    #[test]
    fn a_range_without_room_has_no_pool() {
        assert!(pool("10.1.2.0/31").is_none());
        assert!(pool("10.1.2.0/32").is_none());
        assert!(pool("fd00::/127").is_none());
        assert!(pool("10.1.2.0/30").is_some());
    }

    #[test]
    fn ipv6_ranges_work_alike() {
        let mut pool = pool("fd00:1::/64").expect("has addresses");
        assert_eq!(
            pool.next(|_| false).map(|a| a.to_string()).as_deref(),
            Some("fd00:1::2")
        );
        assert_eq!(
            pool.next(|_| false).map(|a| a.to_string()).as_deref(),
            Some("fd00:1::3")
        );
    }
}
