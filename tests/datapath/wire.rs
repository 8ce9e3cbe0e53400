//! Frames built octet by octet, programs run on them, and what came out looked at.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::world::{TCP, UDP, World};

pub const NEXT: i32 = -1;
pub const DROP: i32 = 2;
pub const REDIRECT: i32 = 7;

pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&HOST_MAC[..], &POD_MAC, &ethertype.to_be_bytes(), payload].concat()
}

pub fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, options: usize, payload: &[u8]) -> Vec<u8> {
    let length = 20 + options + payload.len();
    let mut header = vec![0u8; 20 + options];
    header[0] = 0x40 | (header.len() / 4) as u8;
    header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&src.octets());
    header[16..20].copy_from_slice(&dst.octets());
    // Options: "no operation" all through.
    header[20..].fill(1);
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    ethernet(0x0800, &[header, payload.to_vec()].concat())
}

/// The same with so many hops to go.
pub fn with_hops(mut frame: Vec<u8>, hops: u8) -> Vec<u8> {
    if frame[12..14] == [0x86, 0xdd] {
        frame[14 + 7] = hops;
        return frame;
    }
    let end = 14 + usize::from(frame[14] & 0x0f) * 4;
    frame[14 + 8] = hops;
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..end]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// A frame as it leaves a node past the host's stack.
pub fn older(frame: Vec<u8>) -> Vec<u8> {
    with_hops(frame, 63)
}

pub fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0u8; 40];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    header[6] = protocol;
    header[7] = 64;
    header[8..24].copy_from_slice(&src.octets());
    header[24..40].copy_from_slice(&dst.octets());
    ethernet(0x86dd, &[header, payload.to_vec()].concat())
}

/// A segment with a right checksum over the pseudo header.
pub fn tcp(src: &[u8], dst: &[u8], ports: (u16, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0u8; 20];
    segment[..2].copy_from_slice(&ports.0.to_be_bytes());
    segment[2..4].copy_from_slice(&ports.1.to_be_bytes());
    segment[4..8].copy_from_slice(&1_000u32.to_be_bytes());
    segment[8..12].copy_from_slice(&2_000u32.to_be_bytes());
    segment[12] = 0x50;
    segment[13] = flags;
    segment.extend_from_slice(payload);
    let sum = transport_checksum(src, dst, TCP, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

pub fn transport_checksum(src: &[u8], dst: &[u8], protocol: u8, segment: &[u8]) -> u16 {
    let length = (segment.len() as u32).to_be_bytes();
    checksum(&[src, dst, &length, &[0, 0, 0, protocol], segment])
}

/// The Internet checksum; every part but the last must be of even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn tcp_v4(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    ports: (u16, u16),
    flags: u8,
    options: usize,
) -> Vec<u8> {
    let segment = tcp(&src.octets(), &dst.octets(), ports, flags, b"data");
    ipv4(src, dst, TCP, options, &segment)
}

pub fn tcp_v6(src: Ipv6Addr, dst: Ipv6Addr, ports: (u16, u16), flags: u8) -> Vec<u8> {
    ipv6(
        src,
        dst,
        TCP,
        &tcp(&src.octets(), &dst.octets(), ports, flags, b"data"),
    )
}

pub fn run(world: &World, program: &str, frame: &[u8], interface: &str) -> (i32, Vec<u8>) {
    let ifindex = world.node.ifindex(interface);
    let (verdict, out) = world
        .node
        .run(|| world.datapath().test_run(program, frame, ifindex))
        .expect("running the program");
    (verdict as i32, out)
}

/// Both checksums of a TCP frame are right.
pub fn assert_checksums(frame: &[u8]) {
    let (src, dst, segment) = if frame[12..14] == [0x08, 0x00] {
        let header = usize::from(frame[14] & 15) * 4;
        assert_eq!(
            checksum(&[&frame[14..14 + header]]),
            0,
            "IP header checksum"
        );
        (&frame[26..30], &frame[30..34], &frame[14 + header..])
    } else {
        (&frame[22..38], &frame[38..54], &frame[54..])
    };
    assert_eq!(
        transport_checksum(src, dst, TCP, segment),
        0,
        "TCP checksum"
    );
}

/// CRC32c as SCTP has it: over the packet with zeros in place of the sum, little-endian.
pub fn sctp(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let head = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    let mut packet = [&head[..], &[0, 0, 0, 1], &[0; 4], payload].concat();
    let mut crc = u32::MAX;
    for octet in &packet {
        crc ^= u32::from(*octet);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    packet[8..12].copy_from_slice(&(!crc).to_le_bytes());
    packet
}

/// An IPv4 header that says "fragment", with its checksum made right again.
pub fn fragment_v4(mut frame: Vec<u8>, id: u16, offset: u16, more: bool) -> Vec<u8> {
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    let field = (offset / 8) | if more { 0x2000 } else { 0 };
    frame[20..22].copy_from_slice(&field.to_be_bytes());
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// A datagram of 40 octets in two IPv6 fragments of 24 and 16.
pub fn fragments_v6(src: Ipv6Addr, dst: Ipv6Addr, datagram: &[u8], id: u32) -> [Vec<u8>; 2] {
    let piece = |part: &[u8], field: u16| {
        let header = [&[UDP, 0], &field.to_be_bytes()[..], &id.to_be_bytes()].concat();
        ipv6(src, dst, 44, &[&header, part].concat())
    };
    [piece(&datagram[..24], 1), piece(&datagram[24..], 24)]
}

pub fn udp(src: &[u8], dst: &[u8], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let mut datagram = [ports.0, ports.1, length, 0].map(u16::to_be_bytes).concat();
    datagram.extend_from_slice(payload);
    let sum = transport_checksum(src, dst, UDP, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// "Fragmentation needed" or "packet too big", about a packet that it quotes.
pub fn too_big_v4(src: Ipv4Addr, dst: Ipv4Addr, about: &[u8]) -> Vec<u8> {
    let mut message = [&[3, 4, 0, 0, 0, 0, 5, 0], &about[14..42]].concat();
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(src, dst, 1, 0, &message)
}

pub fn too_big_v6(src: Ipv6Addr, dst: Ipv6Addr, about: &[u8]) -> Vec<u8> {
    let mut message = [&[2, 0, 0, 0, 0, 0, 5, 0], &about[14..74]].concat();
    let sum = transport_checksum(&src.octets(), &dst.octets(), 58, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv6(src, dst, 58, &message)
}
