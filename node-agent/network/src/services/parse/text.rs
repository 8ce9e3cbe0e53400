//! Words of the API: addresses, networks, protocols.

use std::net::IpAddr;

use ipnet::IpNet;
use windlass_datapath::types::protocol;

/// An address as the API server lets it pass: numbers of IPv4 may begin with zeros, and are decimal all the same.
pub(super) fn parse_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let is_number = part.bytes().all(|digit| digit.is_ascii_digit());
        *octet = part.parse().ok().filter(|_| is_number)?;
    }
    parts.next().is_none().then(|| octets.into())
}

pub(super) fn parse_network(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    IpNet::new(parse_address(address)?, length.parse().ok()?).ok()
}

pub(super) fn parse_protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(protocol::TCP),
        "UDP" => Some(protocol::UDP),
        "SCTP" => Some(protocol::SCTP),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Go's parser of old, which upstream keeps for what is stored.
    #[test]
    fn numbers_that_begin_with_zeros_are_decimal() {
        for (text, expected) in [
            ("10.96.0.011", Some("10.96.0.11")),
            ("010.096.000.0001", Some("10.96.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("10.96.0.+1", None),
            ("10.96.0.256", None),
            ("10.96.0", None),
            ("10.96.0.1.1", None),
            ("", None),
        ] {
            let parsed = parse_address(text).map(|address| address.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
        let network = parse_network("010.0.0.0/08").map(|network| network.to_string());
        assert_eq!(network.as_deref(), Some("10.0.0.0/8"));
    }
}
