//! Rewriting a packet from one tuple to another, checksums included.
//!
//! Both addresses lie side by side in the header, and so do both ports: each pair is
//! replaced as one, whichever of the two differs. That is fewer calls than one for each
//! part, and fewer paths for the verifier to walk.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
};
use windlass_ebpf_types::{Tuple, protocol};

use crate::{
    context::PacketContext,
    crc32c,
    parse::{ETH_LEN, Packet},
};

const IP: usize = ETH_LEN as usize;

/// BPF_F_IPV6 where the kernel has it (6.16), else 0. Without it an address changed in IPv6
/// is also subtracted from a checksum that the hardware computed over the whole packet,
/// which does not change: the header has no checksum of its own to make up for it.
#[unsafe(no_mangle)]
static L4_CHECKSUM_IPV6: Global<u32> = Global::new(0);

/// Makes the packet say `to`, with so many `hops` to go. `false`: the kernel refused, or it cannot be done; the packet
/// must not go on.
#[inline(never)]
pub fn rewrite<C: PacketContext>(ctx: &C, packet: &mut Packet, to: &Tuple, hops: u8) -> bool {
    let ports_differ = packet.tuple.sport != to.sport || packet.tuple.dport != to.dport;
    if ports_differ && !packet.is_later_fragment && !rewrite_ports(ctx, packet, to) {
        return false;
    }
    let done = if packet.is_v4 {
        rewrite_v4(ctx, packet, to, hops)
    } else {
        rewrite_v6(ctx, packet, to, hops)
    };
    packet.tuple = *to;
    done
}

/// What `bpf_csum_diff` says of words that take the place of others, without the call: in one's complement,
/// what goes is added inverted.
#[inline(always)]
fn difference<const N: usize>(seed: u64, old: &[u32; N], new: &[u32; N]) -> u64 {
    let mut total = seed;
    let mut i = 0;
    while i < N {
        total += u64::from(!old[i]) + u64::from(new[i]);
        i += 1;
    }
    total = (total & 0xffff_ffff) + (total >> 32);
    (total & 0xffff_ffff) + (total >> 32)
}

/// A checksum after a [`difference`] in what it covers (RFC 1624).
#[inline(always)]
fn mended(sum: u16, difference: u64) -> u16 {
    let mut total = u64::from(!sum) + difference;
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    !(total as u16)
}

#[inline(always)]
fn rewrite_v4<C: PacketContext>(ctx: &C, packet: &Packet, to: &Tuple, hops: u8) -> bool {
    let old = [packet.tuple.src.v4_be(), packet.tuple.dst.v4_be()];
    let new = [to.src.v4_be(), to.dst.v4_be()];
    let diff = difference(0, &old, &new);
    // ICMP for IPv4 has no pseudo header.
    if packet.tuple.protocol != protocol::ICMP && !add_to_checksum(ctx, packet, diff, 0) {
        return false;
    }
    // The time to live, the protocol and the header's checksum stand before the addresses.
    let Some([ttl, protocol, high, low]) = ctx.read::<[u8; 4]>(IP + 8) else {
        return false;
    };
    let word = |ttl| u32::from_ne_bytes([ttl, protocol, 0, 0]);
    let diff = difference(diff, &[word(ttl)], &[word(hops)]);
    let [high, low] = mended(u16::from_ne_bytes([high, low]), diff).to_ne_bytes();
    let head = u32::from_ne_bytes([hops, protocol, high, low]);
    ctx.write(IP + 8, &[head, new[0], new[1]])
}

#[inline(always)]
fn rewrite_v6<C: PacketContext>(ctx: &C, packet: &Packet, to: &Tuple, hops: u8) -> bool {
    let (from, ipv6) = (&packet.tuple, u64::from(L4_CHECKSUM_IPV6.load()));
    let diff = difference(0, &from.src.words, &to.src.words);
    let diff = difference(diff, &from.dst.words, &to.dst.words);
    if !add_to_checksum(ctx, packet, diff, ipv6) {
        return false;
    }
    let new = [to.src.words, to.dst.words];
    if hops != packet.hops && !ctx.write_unsummed(IP + 7, &hops) {
        return false;
    }
    ctx.write(IP + 8, &new)
}

/// The transport checksum covers the addresses by its pseudo header.
#[inline(always)]
fn add_to_checksum<C: PacketContext>(ctx: &C, packet: &Packet, diff: u64, family: u64) -> bool {
    let Some((offset, flags)) = checksum(packet) else {
        return true;
    };
    let flags = flags | family | u64::from(BPF_F_PSEUDO_HDR);
    ctx.mend_transport(offset, 0, diff, flags)
}

#[inline(always)]
fn rewrite_ports<C: PacketContext>(ctx: &C, packet: &Packet, to: &Tuple) -> bool {
    if packet.tuple.protocol == protocol::SCTP {
        return rewrite_sctp_ports(ctx, packet, to);
    }
    let Some((offset, flags)) = checksum(packet) else {
        return false;
    };
    let l4 = packet.l4 as usize;
    let (from, proto) = (&packet.tuple, packet.tuple.protocol);
    if proto == protocol::ICMP || proto == protocol::ICMPV6 {
        // An echo has one identifier, whichever side it is the "port" of.
        let (old, new) = if packet.is_icmp_reply {
            (from.dport, to.dport)
        } else {
            (from.sport, to.sport)
        };
        return ctx.mend_transport(offset, u64::from(old), u64::from(new), flags | 2)
            && ctx.write(l4 + 4, &new);
    }
    let old = pair(from.sport, from.dport);
    let new = pair(to.sport, to.dport);
    ctx.mend_transport(offset, u64::from(old), u64::from(new), flags | 4) && ctx.write(l4, &new)
}

/// SCTP's checksum covers the ports, but not the addresses.
#[inline(always)]
fn rewrite_sctp_ports<C: PacketContext>(ctx: &C, packet: &Packet, to: &Tuple) -> bool {
    // How much the sum covers is not known before the last fragment.
    if packet.is_first_fragment {
        return false;
    }
    let l4 = packet.l4 as usize;
    let length_at = IP + if packet.is_v4 { 2 } else { 4 };
    let Some(length) = ctx.read::<u16>(length_at) else {
        return false;
    };
    let end = ETH_LEN + u32::from(u16::from_be(length)) + if packet.is_v4 { 0 } else { 40 };
    let Some(sum) = ctx.read::<u32>(l4 + 8) else {
        return false;
    };
    let old = pair(packet.tuple.sport, packet.tuple.dport);
    let new = pair(to.sport, to.dport);
    let change = crc32c::crc32c_change((old ^ new).to_le(), end.wrapping_sub(packet.l4));
    let sum = sum ^ change.to_le();
    ctx.write(l4, &new) && ctx.write(l4 + 8, &sum)
}

/// Two ports as they stand in the packet, read as one word.
#[inline(always)]
pub fn pair(first: u16, second: u16) -> u32 {
    (u32::from(second.to_le()) << 16 | u32::from(first.to_le())).to_le()
}

/// Offset of the transport checksum in the frame, and the flags it is updated with.
#[inline(always)]
fn checksum(packet: &Packet) -> Option<(usize, u64)> {
    if packet.is_later_fragment {
        return None;
    }
    let l4 = packet.l4 as usize;
    match packet.tuple.protocol {
        protocol::TCP => Some((l4 + 16, 0)),
        // 0 means "no checksum" in UDP over IPv4, and must stay so.
        protocol::UDP => Some((l4 + 6, u64::from(BPF_F_MARK_MANGLED_0))),
        protocol::ICMP | protocol::ICMPV6 => Some((l4 + 2, 0)),
        _ => None,
    }
}
