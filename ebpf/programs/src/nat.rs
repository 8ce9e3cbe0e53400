//! Rewriting a packet from one tuple to another, checksums included.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::bpf_csum_diff,
    programs::TcContext,
};
use windlass_ebpf_types::{Addr, Tuple, protocol};

use crate::parse::{ETH_LEN, Packet};

/// Makes the packet say `to`. `false`: the kernel refused, and the packet must not go on.
#[inline(never)]
pub fn rewrite(ctx: &TcContext, packet: &mut Packet, to: &Tuple) -> bool {
    let from = &packet.tuple;
    if from.src != to.src && !rewrite_addr(ctx, packet, &from.src, &to.src, Side::Source) {
        return false;
    }
    if from.dst != to.dst && !rewrite_addr(ctx, packet, &from.dst, &to.dst, Side::Destination) {
        return false;
    }
    if from.sport != to.sport && !rewrite_port(ctx, packet, from.sport, to.sport, Side::Source) {
        return false;
    }
    if from.dport != to.dport && !rewrite_port(ctx, packet, from.dport, to.dport, Side::Destination)
    {
        return false;
    }
    packet.tuple = *to;
    true
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

#[inline(always)]
fn rewrite_addr(ctx: &TcContext, packet: &Packet, old: &Addr, new: &Addr, side: Side) -> bool {
    let pseudo = u64::from(BPF_F_PSEUDO_HDR);
    if packet.is_v4 {
        let (old, new) = (u64::from(old.v4_be()), u64::from(new.v4_be()));
        if let Some((offset, flags)) = checksum(packet)
            && packet.tuple.protocol != protocol::ICMP
            && ctx
                .l4_csum_replace(offset, old, new, flags | pseudo | 4)
                .is_err()
        {
            return false;
        }
        if ctx
            .l3_csum_replace(ETH_LEN as usize + 10, old, new, 4)
            .is_err()
        {
            return false;
        }
        let at = ETH_LEN as usize + if side == Side::Source { 12 } else { 16 };
        return ctx.store(at, &(new as u32), 0).is_ok();
    }
    if let Some((offset, flags)) = checksum(packet) {
        let mut old_words = old.words;
        let mut new_words = new.words;
        // SAFETY: both arrays are 16 bytes on this stack.
        let diff =
            unsafe { bpf_csum_diff(old_words.as_mut_ptr(), 16, new_words.as_mut_ptr(), 16, 0) };
        if diff < 0
            || ctx
                .l4_csum_replace(offset, 0, diff as u64, flags | pseudo)
                .is_err()
        {
            return false;
        }
    }
    let at = ETH_LEN as usize + if side == Side::Source { 8 } else { 24 };
    ctx.store(at, &new.words, 0).is_ok()
}

#[inline(always)]
fn rewrite_port(ctx: &TcContext, packet: &Packet, old: u16, new: u16, side: Side) -> bool {
    let proto = packet.tuple.protocol;
    if proto == protocol::SCTP {
        // Its CRC32c covers the ports and cannot be patched by difference.
        return false;
    }
    if let Some((offset, flags)) = checksum(packet)
        && ctx
            .l4_csum_replace(offset, u64::from(old), u64::from(new), flags | 2)
            .is_err()
    {
        return false;
    }
    let offset = if proto == protocol::ICMP || proto == protocol::ICMPV6 {
        // An echo has one identifier, whichever side it is the "port" of.
        4
    } else if side == Side::Source {
        0
    } else {
        2
    };
    ctx.store(packet.l4 as usize + offset, &new, 0).is_ok()
}

/// Offset of the transport checksum in the frame, and the flags it is updated with.
#[inline(always)]
fn checksum(packet: &Packet) -> Option<(usize, u64)> {
    let l4 = packet.l4 as usize;
    match packet.tuple.protocol {
        protocol::TCP => Some((l4 + 16, 0)),
        // 0 means "no checksum" in UDP over IPv4, and must stay so.
        protocol::UDP => Some((l4 + 6, u64::from(BPF_F_MARK_MANGLED_0))),
        protocol::ICMP | protocol::ICMPV6 => Some((l4 + 2, 0)),
        _ => None,
    }
}
