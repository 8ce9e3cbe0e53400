//! Refusing a packet so that its sender knows at once: a TCP reset, or ICMP port
//! unreachable for the rest, and time exceeded for what has come too far. The packet itself is turned into the answer and goes back
//! out of the interface that it came in by.

use aya_ebpf::{
    helpers::{bpf_csum_diff, bpf_redirect},
    programs::TcContext,
};
use windlass_ebpf_types::{Direction, Reason, protocol};

use crate::{
    deliver::DROP,
    events::dropped,
    frame::{blank, checksum, put16, put32, replace, sum, swap_ethernet},
    parse::{ETH_LEN, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, ifindex, load_into},
    scratch::FRAME,
};

const ETH: usize = ETH_LEN as usize;

/// Answers the packet, which must still be as it came.
#[inline(always)]
pub fn reject(ctx: &TcContext, packet: &Packet, reason: Reason, direction: Direction) -> i32 {
    dropped(ctx, packet, reason, direction);
    if answer(ctx, packet, reason as u32) == 0 {
        return DROP;
    }
    // SAFETY: no precondition.
    unsafe { bpf_redirect(ifindex(ctx), 0) as i32 }
}

/// Makes the answer of the packet. 0: there is none.
#[inline(never)]
fn answer(ctx: &TcContext, packet: &Packet, reason: u32) -> u32 {
    let too_far = reason == Reason::RejectedHopLimit as u32;
    // The first fragment was answered.
    if packet.is_later_fragment {
        return 0;
    }
    if packet.tuple.protocol == protocol::TCP && !too_far {
        // A reset is never answered with a reset.
        return match packet.is_v4 {
            _ if packet.tcp_flags & TCP_RST != 0 => 0,
            true => reset_v4(ctx, packet),
            false => reset_v6(ctx, packet),
        };
    }
    match (packet.is_v4, too_far) {
        (true, false) => error_v4(ctx, PORT_UNREACHABLE_V4),
        (true, true) => error_v4(ctx, TIME_EXCEEDED_V4),
        (false, false) => error_v6(ctx, PORT_UNREACHABLE_V6),
        (false, true) => error_v6(ctx, TIME_EXCEEDED_V6),
    }
}

#[inline(never)]
fn reset_v4(ctx: &TcContext, packet: &Packet) -> u32 {
    let Some(out) = blank() else { return 0 };
    let Some(payload) = payload_len(ctx, packet) else {
        return 0;
    };
    if !swap_ethernet(ctx, out) {
        return 0;
    }
    ipv4_header(out, packet, 40, protocol::TCP);
    if !reset_header(ctx, packet, payload, out, ETH + 20) {
        return 0;
    }
    let pseudo = pseudo_v4(packet, 20, protocol::TCP);
    let sum = checksum(out, ETH + 20, 20, pseudo);
    put16(out, ETH + 36, sum);
    replace(ctx, out, ETH + 40)
}

#[inline(never)]
fn reset_v6(ctx: &TcContext, packet: &Packet) -> u32 {
    let Some(out) = blank() else { return 0 };
    let Some(payload) = payload_len(ctx, packet) else {
        return 0;
    };
    if !swap_ethernet(ctx, out) {
        return 0;
    }
    ipv6_header(out, packet, 20, protocol::TCP);
    if !reset_header(ctx, packet, payload, out, ETH + 40) {
        return 0;
    }
    let pseudo = pseudo_v6(packet, 20, protocol::TCP);
    let sum = checksum(out, ETH + 40, 20, pseudo);
    put16(out, ETH + 56, sum);
    replace(ctx, out, ETH + 60)
}

/// Types and codes of RFC 792 and RFC 4443.
const PORT_UNREACHABLE_V4: [u8; 2] = [3, 3];
const TIME_EXCEEDED_V4: [u8; 2] = [11, 0];
const PORT_UNREACHABLE_V6: [u8; 2] = [1, 4];
const TIME_EXCEEDED_V6: [u8; 2] = [3, 0];

/// An ICMP error, quoting the IP header and eight octets of what it carried.
#[inline(always)]
fn error_v4(ctx: &TcContext, [kind, code]: [u8; 2]) -> u32 {
    write_error_v4(ctx, kind.into(), code.into())
}

#[inline(never)]
fn write_error_v4(ctx: &TcContext, kind: u32, code: u32) -> u32 {
    let mut packet = Packet::EMPTY;
    let mut quoted = [0u8; 28];
    // Headers with options are not quoted whole; such a packet is dropped unanswered.
    if !load_into(ctx, ETH_LEN, &mut quoted) || quoted[0] != 0x45 {
        return 0;
    }
    let Some(out) = blank() else { return 0 };
    if !swap_ethernet(ctx, out) {
        return 0;
    }
    packet.tuple.src =
        windlass_ebpf_types::Addr::v4([quoted[12], quoted[13], quoted[14], quoted[15]]);
    packet.tuple.dst =
        windlass_ebpf_types::Addr::v4([quoted[16], quoted[17], quoted[18], quoted[19]]);
    ipv4_header(out, &packet, 56, protocol::ICMP);
    out[ETH + 20] = kind as u8;
    out[ETH + 21] = code as u8;
    let mut i = 0;
    while i < 28 {
        out[ETH + 28 + i] = quoted[i];
        i += 1;
    }
    let sum = checksum(out, ETH + 20, 36, 0);
    put16(out, ETH + 22, sum);
    replace(ctx, out, ETH + 56)
}

#[inline(always)]
fn error_v6(ctx: &TcContext, [kind, code]: [u8; 2]) -> u32 {
    write_error_v6(ctx, kind.into(), code.into())
}

#[inline(never)]
fn write_error_v6(ctx: &TcContext, kind: u32, code: u32) -> u32 {
    let Some(out) = blank() else { return 0 };
    // Straight to where it is quoted: there is no room for it on the stack.
    let Some(quoted) = out[ETH + 48..].first_chunk_mut::<48>() else {
        return 0;
    };
    if !load_into(ctx, ETH_LEN, quoted) || !swap_ethernet(ctx, out) {
        return 0;
    }
    out[ETH] = 0x60;
    out[ETH + 5] = 56;
    out[ETH + 6] = protocol::ICMPV6;
    out[ETH + 7] = 64;
    let mut i = 0;
    while i < 16 {
        out[ETH + 8 + i] = out[ETH + 48 + 24 + i];
        out[ETH + 24 + i] = out[ETH + 48 + 8 + i];
        i += 1;
    }
    out[ETH + 40] = kind as u8;
    out[ETH + 41] = code as u8;
    let pseudo = sum(
        &out,
        ETH + 8,
        32,
        u32::from((56 + u16::from(protocol::ICMPV6)).to_be()),
    );
    let sum = checksum(out, ETH + 40, 56, pseudo);
    put16(out, ETH + 42, sum);
    replace(ctx, out, ETH + 96)
}

/// Octets of TCP payload, which a reset has to acknowledge.
#[inline(always)]
fn payload_len(ctx: &TcContext, packet: &Packet) -> Option<u32> {
    let length_at = ETH + if packet.is_v4 { 2 } else { 4 };
    let total = u32::from(u16::from_be(ctx.load::<u16>(length_at).ok()?));
    let end = ETH_LEN + total + if packet.is_v4 { 0 } else { 40 };
    let data_offset = u32::from(ctx.load::<u8>(packet.l4 as usize + 12).ok()? >> 4) * 4;
    Some(end.saturating_sub(packet.l4 + data_offset))
}

#[inline(always)]
fn reset_header(
    ctx: &TcContext,
    packet: &Packet,
    payload: u32,
    out: &mut [u8; FRAME],
    at: usize,
) -> bool {
    let Ok(words) = ctx.load::<[u32; 4]>(packet.l4 as usize) else {
        return false;
    };
    put16(out, at, packet.tuple.dport);
    put16(out, at + 2, packet.tuple.sport);
    // RFC 9293, 3.5.2: a reset takes the place that the other side expects.
    if packet.tcp_flags & TCP_ACK != 0 {
        put32(out, at + 4, words[2]);
        out[at + 13] = TCP_RST;
    } else {
        let mut length = payload;
        if packet.tcp_flags & TCP_SYN != 0 {
            length += 1;
        }
        if packet.tcp_flags & TCP_FIN != 0 {
            length += 1;
        }
        put32(
            out,
            at + 8,
            u32::from_be(words[1]).wrapping_add(length).to_be(),
        );
        out[at + 13] = TCP_RST | TCP_ACK;
    }
    out[at + 12] = 0x50;
    true
}

/// The header of the answer: from the packet's destination to its source.
#[inline(always)]
fn ipv4_header(out: &mut [u8; FRAME], packet: &Packet, total: u16, proto: u8) {
    out[ETH] = 0x45;
    put16(out, ETH + 2, total.to_be());
    out[ETH + 6] = 0x40;
    out[ETH + 8] = 64;
    out[ETH + 9] = proto;
    put32(out, ETH + 12, packet.tuple.dst.v4_be());
    put32(out, ETH + 16, packet.tuple.src.v4_be());
    let sum = checksum(out, ETH, 20, 0);
    put16(out, ETH + 10, sum);
}

#[inline(always)]
fn ipv6_header(out: &mut [u8; FRAME], packet: &Packet, payload: u16, proto: u8) {
    out[ETH] = 0x60;
    put16(out, ETH + 4, payload.to_be());
    out[ETH + 6] = proto;
    out[ETH + 7] = 64;
    let mut i = 0;
    while i < 4 {
        put32(out, ETH + 8 + i * 4, packet.tuple.dst.words[i]);
        put32(out, ETH + 24 + i * 4, packet.tuple.src.words[i]);
        i += 1;
    }
}

#[inline(always)]
fn pseudo_v4(packet: &Packet, length: u16, proto: u8) -> u32 {
    let mut words = [
        packet.tuple.src.v4_be(),
        packet.tuple.dst.v4_be(),
        u32::from((length + u16::from(proto)).to_be()),
    ];
    // SAFETY: twelve bytes on this stack; adding from nothing.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, words.as_mut_ptr(), 12, 0) as u32 }
}

#[inline(always)]
fn pseudo_v6(packet: &Packet, length: u16, proto: u8) -> u32 {
    let (src, dst) = (packet.tuple.src.words, packet.tuple.dst.words);
    let mut words = [
        src[0],
        src[1],
        src[2],
        src[3],
        dst[0],
        dst[1],
        dst[2],
        dst[3],
        u32::from((length + u16::from(proto)).to_be()),
    ];
    // SAFETY: 36 bytes on this stack; adding from nothing.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, words.as_mut_ptr(), 36, 0) as u32 }
}
