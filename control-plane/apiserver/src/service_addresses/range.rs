//! A range of ClusterIPs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Upstream bounds its bitmaps to this many addresses.
const MAX_ADDRESSES: u128 = 1 << 16;

#[derive(Clone, Debug)]
pub(super) struct AddressRange {
    /// The network's own address.
    base: u128,
    /// Offsets `1..size` may be given out.
    pub(super) size: u128,
    pub(super) v6: bool,
}

impl AddressRange {
    pub(super) fn new(net: &IpNet) -> Self {
        let (base, v6) = match net.network() {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), false),
            IpAddr::V6(ip) => (u128::from(ip), true),
        };
        let bits = net.max_prefix_len() - net.prefix_len();
        let whole = 1u128
            .checked_shl(u32::from(bits))
            .unwrap_or(u128::MAX)
            .min(MAX_ADDRESSES);
        // An IPv4 network's last address is its broadcast address.
        Self {
            base,
            size: if v6 { whole } else { whole.saturating_sub(1) },
            v6,
        }
    }

    pub(super) fn at(&self, offset: u128) -> IpAddr {
        let number = self.base + offset;
        if self.v6 {
            Ipv6Addr::from(number).into()
        } else {
            Ipv4Addr::from(u32::try_from(number).unwrap_or_default()).into()
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let number = match address {
            IpAddr::V4(ip) if !self.v6 => u128::from(u32::from(ip)),
            IpAddr::V6(ip) if self.v6 => u128::from(ip),
            _ => return false,
        };
        number > self.base && number < self.base + self.size
    }

    /// The first offset that is chosen automatically.
    pub(super) fn dynamic_start(&self) -> u128 {
        let reserved = (self.size / 16).clamp(16, 256);
        if self.size <= 32 { 1 } else { reserved }
    }

    pub(super) fn family(&self) -> &'static str {
        if self.v6 { "IPv6" } else { "IPv4" }
    }
}

pub(super) fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "IPv6" } else { "IPv4" }
}

/// `start..end` from a random place on, then round to the start, then `first..start`.
pub(super) fn probe(first: u128, start: u128, end: u128) -> impl Iterator<Item = u128> {
    let width = end.saturating_sub(start).max(1);
    let from = start + u128::from(rand::random::<u64>()) % width;
    (from..end)
        .chain(start..from.min(end))
        .chain(first..start.min(end))
}
