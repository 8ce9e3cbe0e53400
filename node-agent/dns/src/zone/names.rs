//! Names that carry an address, and their texts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

/// What an alias may lead to; an address is no name.
pub(super) fn absolute(name: &str) -> Option<Name> {
    if name.parse::<IpAddr>().is_ok() {
        return None;
    }
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// `10-244-0-7` or `fd00--7`.
pub(super) fn dashed_address(label: &str) -> Option<IpAddr> {
    let v4 = label
        .replace('-', ".")
        .parse::<Ipv4Addr>()
        .map(IpAddr::from);
    v4.or_else(|_| {
        label
            .replace('-', ":")
            .parse::<Ipv6Addr>()
            .map(IpAddr::from)
    })
    .ok()
}

/// The address of a reverse name: `7.0.244.10.in-addr.arpa.`, or nibbles below `ip6.arpa.`.
pub(super) fn reverse_address(lower: &str) -> Option<IpAddr> {
    if let Some(octets) = lower.strip_suffix(".in-addr.arpa.") {
        let reversed: Vec<&str> = octets.split('.').rev().collect();
        return reversed
            .join(".")
            .parse::<Ipv4Addr>()
            .ok()
            .map(IpAddr::from);
    }
    let nibbles = lower.strip_suffix(".ip6.arpa.")?;
    let digits: String = nibbles.split('.').rev().collect();
    let complete = digits.len() == 32 && nibbles.split('.').all(|nibble| nibble.len() == 1);
    let number = u128::from_str_radix(&digits, 16)
        .ok()
        .filter(|_| complete)?;
    Some(IpAddr::from(Ipv6Addr::from(number)))
}
