//! Whose ports are whose: those that a socket of the host draws for itself must be neither NodePorts', or the answers to it
//! would be taken for a Service's packets, nor those that connections get which leave in the node's name.

use std::collections::BTreeSet;

use windlass_network::Settings;
use windlass_network::interface::{LinkError, Namespace};

/// First and last.
pub(crate) type Ports = (u16, u16);

/// Below are ports that programs choose on purpose.
const FIRST: u16 = 10_000;
/// Fewer are not worth it.
const ENOUGH: usize = 1_000;
/// Where the host leaves no room.
const OTHERWISE: Ports = (61_000, 65_535);
/// What the host's sockets draw from, unless somebody has changed it.
const USUALLY: Ports = (32_768, 60_999);

const DRAWN_FROM: &str = "ipv4/ip_local_port_range";
const RESERVED: &str = "ipv4/ip_local_reserved_ports";

/// The source ports of translated connections: the most that there are between NodePorts and the host's own, for towards one
/// address and port a node can have no more such connections. What the host would draw all the same is reserved.
pub(crate) async fn divide(
    node_ports: Ports,
    settings: &Settings,
    host: &Namespace,
) -> Result<Ports, LinkError> {
    let mut held = host
        .sysctls(vec![DRAWN_FROM.into(), RESERVED.into()])
        .await?;
    let reserved = held.pop().flatten().unwrap_or_default();
    let drawn = held.pop().flatten().and_then(|text| parse(&text));
    let drawn = drawn.unwrap_or(USUALLY);
    let source_ports = largest_between(&[node_ports, drawn]).unwrap_or(OTHERWISE);
    let clash: Vec<Ports> = [node_ports, source_ports]
        .into_iter()
        .filter(|(first, last)| *first <= drawn.1 && drawn.0 <= *last)
        .collect();
    if !clash.is_empty() {
        let wanted = with(&reserved, &clash);
        tracing::info!(
            ?drawn,
            reserved = wanted,
            "ports are kept from the host's sockets"
        );
        if let Err(error) = settings.set(host, vec![(RESERVED.into(), wanted)]).await {
            // They meet seldom.
            tracing::warn!(%error, "sockets of the host may draw ports of Services");
        }
    }
    Ok(source_ports)
}

fn parse(text: &str) -> Option<Ports> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A list of ports and ranges, and these, as the kernel writes them.
fn with(list: &str, more: &[Ports]) -> String {
    let mut ports: BTreeSet<u16> = more.iter().flat_map(|(a, b)| *a..=*b).collect();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.trim().parse(), last.trim().parse::<u16>()) {
            ports.extend(first..=last);
        }
    }
    let mut ranges: Vec<Ports> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    let text = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(",")
}

fn largest_between(taken: &[Ports]) -> Option<Ports> {
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

    #[test]
    fn what_is_reserved_already_stays_so() {
        for (list, expected) in [
            ("", "30000-32767"),
            ("30000-32767", "30000-32767"),
            ("8080,9000-9001,32000-40000", "8080,9000-9001,30000-40000"),
        ] {
            assert_eq!(with(list, &[(30_000, 32_767)]), expected, "{list}");
        }
    }
}
