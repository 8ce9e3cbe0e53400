//! Which source ports connections get that leave in the node's name.
//!
//! None that a socket of the host would draw, for who has it could not be told from the answers alone; and as many as there
//! are: towards one address and port a node can have no more such connections than ports.

use std::fs;

/// Below are ports that programs choose on purpose.
const FIRST: u16 = 10_000;
/// Fewer are not worth it.
const ENOUGH: usize = 1_000;
/// Where the host leaves no room.
const OTHERWISE: (u16, u16) = (61_000, 65_535);

/// First and last, given those of the NodePorts.
pub(crate) fn choose(node_ports: (u16, u16)) -> (u16, u16) {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let own = parse(&text).unwrap_or((32_768, 60_999));
    largest_between(&[node_ports, own]).unwrap_or_else(|| {
        let (first, last) = own;
        tracing::warn!(
            "sockets of this host draw their ports from {first}-{last}; net.ipv4.ip_local_reserved_ports={}-{} keeps them from those of translated connections",
            OTHERWISE.0, OTHERWISE.1
        );
        OTHERWISE
    })
}

fn parse(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn largest_between(taken: &[(u16, u16)]) -> Option<(u16, u16)> {
    let mut taken = taken.to_vec();
    taken.sort_unstable();
    let mut free = Vec::new();
    // One more than there are, behind the last.
    let mut next = u32::from(FIRST);
    for (first, last) in taken {
        free.push(next..u32::from(first));
        next = next.max(u32::from(last) + 1);
    }
    free.push(next..u32::from(u16::MAX) + 1);
    let largest = free.into_iter().max_by_key(ExactSizeIterator::len)?;
    let (first, last) = (largest.start, largest.end.checked_sub(1)?);
    if largest.len() < ENOUGH {
        return None;
    }
    Some((first.try_into().ok()?, last.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_that_nobody_draws_from_is_taken() {
        let node_ports = (30_000, 32_767);
        for (own, expected) in [
            ((32_768, 60_999), Some((10_000, 29_999))),
            ((15_000, 60_999), Some((10_000, 14_999))),
            ((10_000, 60_999), Some((61_000, 65_535))),
            ((1_024, 65_535), None),
            ((1_024, 65_000), None),
            ((10_240, 65_535), None),
        ] {
            assert_eq!(largest_between(&[node_ports, own]), expected, "{own:?}");
        }
        assert_eq!(
            largest_between(&[(10_000, 30_000), (32_768, 60_999)]),
            Some((61_000, 65_535))
        );
        assert_eq!(parse("32768\t60999\n"), Some((32_768, 60_999)));
        assert_eq!(parse(""), None);
    }
}
