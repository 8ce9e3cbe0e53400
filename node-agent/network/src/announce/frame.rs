//! The frames that agents and neighbours get: heartbeats, and the news that an address is here now.
//!
//! Heartbeats are bare Ethernet frames: who can send one on the segment could as well answer for the
//! addresses themselves, and nobody from elsewhere can send one at all. No host firewall is in the way, and
//! no family of addresses is needed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::interface::Mac;

/// "Local experimental" (IEEE 802).
pub(crate) const ETHERTYPE: u16 = 0x88b5;
/// A group address of the local administration.
pub const GROUP: [u8; 6] = [0x03, b'w', b'l', 0, 0, 1];
/// What makes such a frame ours, with the version of its layout.
const MAGIC: [u8; 4] = [b'w', b'l', b'a', 1];
/// Head of a heartbeat: Ethernet, magic, how many are held, how many released, both in network byte order.
const HEAD: usize = 14 + 4 + 2 + 2;
/// Addresses in one frame, which fits into any Ethernet's.
const MOST: usize = 80;

/// What a node tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Some or all of what it answers for.
    pub held: Vec<IpAddr>,
    /// What it answers for no more.
    pub released: Vec<IpAddr>,
}

impl Heartbeat {
    /// As many frames as it takes; one when there is nothing to tell but that the node is there.
    pub fn frames(&self, from: Mac) -> Vec<Vec<u8>> {
        let mut told = self.held.iter().map(|it| (it, true)).collect::<Vec<_>>();
        told.extend(self.released.iter().map(|it| (it, false)));
        let count = told.len().div_ceil(MOST).max(1);
        (0..count)
            .map(|part| {
                let part = told.iter().skip(part * MOST).take(MOST);
                let held = part.clone().filter(|(_, held)| *held).count();
                let mut frame = ethernet(GROUP, from, ETHERTYPE);
                frame.extend(MAGIC);
                frame.extend((held as u16).to_be_bytes());
                frame.extend((part.len() as u16 - held as u16).to_be_bytes());
                for (address, _) in part {
                    let v6 = match address {
                        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                        IpAddr::V6(v6) => *v6,
                    };
                    frame.extend(v6.octets());
                }
                frame
            })
            .collect()
    }

    /// Who sent a frame, and what it says; `None`: it is something else.
    pub fn parse(frame: &[u8]) -> Option<(Mac, Self)> {
        let head: &[u8; HEAD] = frame.first_chunk()?;
        if head[12..14] != ETHERTYPE.to_be_bytes() || head[14..18] != MAGIC {
            return None;
        }
        let number = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
        let (held, released) = (number(18), number(20));
        let mut addresses = Vec::new();
        for octets in frame[HEAD..].chunks_exact(16).take(held + released) {
            let octets: [u8; 16] = octets.try_into().ok()?;
            addresses.push(Ipv6Addr::from(octets).to_canonical());
        }
        if addresses.len() != held + released {
            return None;
        }
        let released = addresses.split_off(held);
        let from = Mac(*frame[6..].first_chunk()?);
        let told = Self {
            held: addresses,
            released,
        };
        Some((from, told))
    }
}

/// Tells everyone on the segment that an address is here now: a gratuitous ARP (RFC 5227) or an unsolicited
/// neighbour advertisement (RFC 4861, 7.2.6).
pub fn announcement(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => gratuitous_arp(mac, v4),
        IpAddr::V6(v6) => advertisement(mac, v6),
    }
}

/// The group by which a neighbour asks for an address (RFC 4291, 2.7.1).
pub(crate) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    )
}

fn ethernet(to: [u8; 6], from: Mac, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD);
    frame.extend(to);
    frame.extend(from.0);
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], mac, 0x0806);
    // Ethernet, IPv4, lengths, a request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ICMPV6: u8 = 58;
    // Advertisement; replace what you have; option "target link-layer address".
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac.0);
    let length = message.len() as u16;
    let mut summed = Vec::new();
    summed.extend(address.octets());
    summed.extend(ALL_NODES.octets());
    summed.extend(u32::from(length).to_be_bytes());
    summed.extend([0, 0, 0, ICMPV6]);
    summed.extend(&message);
    message[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());
    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

fn checksum(octets: &[u8]) -> u16 {
    let words = octets.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 7]);

    #[test]
    fn a_heartbeat_is_read_as_it_was_told_however_much_it_tells() {
        for (held, released) in [(0, 0), (1, 0), (3, 2), (250, 1)] {
            let all: Vec<IpAddr> = (0..held + released)
                .map(|number: u16| match number % 2 {
                    0 => IpAddr::from([192, 0, (number >> 8) as u8, number as u8]),
                    _ => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number).into(),
                })
                .collect();
            let (held, released) = all.split_at(usize::from(held));
            let told = Heartbeat {
                held: held.to_vec(),
                released: released.to_vec(),
            };
            let mut read = Heartbeat::default();
            for frame in told.frames(OWN) {
                assert!(frame.len() <= 1_514);
                let (from, part) = Heartbeat::parse(&frame).unwrap();
                assert_eq!(from, OWN);
                read.held.extend(part.held);
                read.released.extend(part.released);
            }
            assert_eq!(read, told);
        }
    }

    #[test]
    fn what_is_no_heartbeat_is_not_read() {
        let told = Heartbeat {
            held: vec![[192, 0, 2, 1].into()],
            released: vec![],
        };
        let frame = told.frames(OWN).remove(0);
        assert_eq!(Heartbeat::parse(&frame[..frame.len() - 1]), None, "cut");
        let mut other = frame.clone();
        other[17] += 1;
        assert_eq!(Heartbeat::parse(&other), None, "another version");
        assert_eq!(Heartbeat::parse(&[]), None);
        let padded = [frame, vec![0; 30]].concat();
        assert_eq!(Heartbeat::parse(&padded), Some((OWN, told)));
    }

    #[test]
    fn an_advertisement_has_a_correct_checksum() {
        let frame = advertisement(OWN, Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5));
        assert_eq!(frame.len(), 14 + 40 + 32);
        let mut summed = frame[22..54].to_vec();
        summed.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        summed.extend(&frame[54..]);
        assert_eq!(checksum(&summed), 0);
    }

    #[test]
    fn the_solicited_node_group_ends_as_the_address_does() {
        let address = "2001:db8::1:2ab:cdef".parse().unwrap();
        assert_eq!(solicited_node(address).to_string(), "ff02::1:ffab:cdef");
    }
}
