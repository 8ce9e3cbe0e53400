//! ICMP errors about translated connections: path MTU discovery and "unreachable" through a
//! virtual address work only when the error says what its receiver knows.
//!
//! An error quotes the packet that it is about as it was on the wire there. Its way back is
//! that of the connection's answers, so the entry is found by the quoted tuple reversed, and
//! says what both the error and the quotation become.

use aya_ebpf::{helpers::bpf_csum_diff, programs::TcContext};
use windlass_ebpf_types::{Addr, Direction, Reason, Tuple, connection, protocol};

use crate::{events::count, nat, parse::Packet, scratch::scratch, table, translate::Outcome};

/// Translates an ICMP error if it is about a connection that is known.
#[inline(always)]
pub fn related(ctx: &TcContext, packet: &mut Packet, direction: Direction) -> Outcome {
    if !packet.is_icmp_error {
        return Outcome::Unknown;
    }
    match follow(ctx, packet) {
        UNKNOWN => Outcome::Unknown,
        UNCHANGED => Outcome::Tracked,
        DONE => {
            count(Reason::Translated, direction, ctx.len());
            let Some(scratch) = scratch() else {
                return Outcome::Drop(Reason::DroppedError);
            };
            Outcome::Ready {
                interface: scratch.reply.ifindex,
                masqueraded: scratch.reply.service == 0
                    && scratch.reply.flags & connection::MASQUERADED != 0,
            }
        }
        _ => Outcome::Drop(Reason::DroppedError),
    }
}

const UNKNOWN: u32 = 0;
const UNCHANGED: u32 = 1;
const DONE: u32 = 2;
const FAILED: u32 = 3;

/// Where the quotation's parts are.
struct Quoted {
    ip: u32,
    l4: u32,
    /// Of an ICMP echo: whether it is the reply, whose identifier is its destination "port".
    is_reply: bool,
}

#[inline(never)]
fn follow(ctx: &TcContext, packet: &mut Packet) -> u32 {
    let Some(scratch) = scratch() else {
        return FAILED;
    };
    let Some(quoted) = read(ctx, packet, &mut scratch.answer) else {
        return UNKNOWN;
    };
    let Some(entry) = table::get(&scratch.answer) else {
        return UNKNOWN;
    };
    if entry.flags & connection::UNCHANGED != 0 {
        return UNCHANGED;
    }
    scratch.reply = *entry;
    let (old, to) = (&scratch.answer, &scratch.reply.to);
    if !rewrite_ports(ctx, packet, &quoted, old, to)
        || !rewrite_addresses(ctx, packet, &quoted, old, to)
    {
        return FAILED;
    }
    let outer = &mut scratch.holder;
    *outer = packet.tuple;
    outer.dst = to.dst;
    // A router on the way speaks for itself; the far end speaks as who was dialled.
    if packet.tuple.src == old.src {
        outer.src = to.src;
    }
    let hops = packet.hops;
    if nat::rewrite(ctx, packet, outer, hops) {
        DONE
    } else {
        FAILED
    }
}

/// Reads the quoted tuple, reversed.
#[inline(always)]
fn read(ctx: &TcContext, packet: &Packet, reversed: &mut Tuple) -> Option<Quoted> {
    let ip = packet.l4 + 8;
    let mut quoted = Quoted {
        ip,
        l4: 0,
        is_reply: false,
    };
    if packet.is_v4 {
        let header = ctx.load::<[u32; 5]>(ip as usize).ok()?;
        let first = header[0].to_le() as u8;
        // A later fragment quotes no ports.
        if first >> 4 != 4 || first & 0x0f < 5 || u32::from_be(header[1]) & 0x1fff != 0 {
            return None;
        }
        quoted.l4 = ip + u32::from(first & 0x0f) * 4;
        reversed.src = Addr::from_v4_be(header[4]);
        reversed.dst = Addr::from_v4_be(header[3]);
        reversed.protocol = (u32::from_be(header[2]) >> 16) as u8;
    } else {
        let header = ctx.load::<[u32; 10]>(ip as usize).ok()?;
        if u32::from_be(header[0]) >> 28 != 6 {
            return None;
        }
        quoted.l4 = ip + 40;
        reversed.src.words = [header[6], header[7], header[8], header[9]];
        reversed.dst.words = [header[2], header[3], header[4], header[5]];
        reversed.protocol = (u32::from_be(header[1]) >> 8) as u8;
    }
    reversed.pad = [0; 3];
    let words = ctx.load::<[u32; 2]>(quoted.l4 as usize).ok()?;
    match reversed.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let ports = words[0].to_le();
            reversed.dport = ports as u16;
            reversed.sport = (ports >> 16) as u16;
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let identifier = words[1].to_le() as u16;
            match words[0].to_le() as u8 {
                8 | 128 => {
                    reversed.sport = 0;
                    reversed.dport = identifier;
                }
                0 | 129 => {
                    reversed.sport = identifier;
                    reversed.dport = 0;
                    quoted.is_reply = true;
                }
                _ => return None,
            }
        }
        _ => return None,
    }
    Some(quoted)
}

/// The quotation's own transport checksum stays: it may be cut off, and nobody checks it.
#[inline(always)]
fn rewrite_ports(
    ctx: &TcContext,
    packet: &Packet,
    quoted: &Quoted,
    old: &Tuple,
    to: &Tuple,
) -> bool {
    if old.sport == to.sport && old.dport == to.dport {
        return true;
    }
    let sum = packet.l4 as usize + 2;
    if old.protocol == protocol::ICMP || old.protocol == protocol::ICMPV6 {
        let (old, new) = if quoted.is_reply {
            (old.sport, to.sport)
        } else {
            (old.dport, to.dport)
        };
        return ctx
            .l4_csum_replace(sum, u64::from(old), u64::from(new), 2)
            .is_ok()
            && ctx.store(quoted.l4 as usize + 4, &new, 0).is_ok();
    }
    let old = nat::pair(old.dport, old.sport);
    let new = nat::pair(to.dport, to.sport);
    ctx.l4_csum_replace(sum, u64::from(old), u64::from(new), 4)
        .is_ok()
        && ctx.store(quoted.l4 as usize, &new, 0).is_ok()
}

#[inline(always)]
fn rewrite_addresses(
    ctx: &TcContext,
    packet: &Packet,
    quoted: &Quoted,
    old: &Tuple,
    to: &Tuple,
) -> bool {
    let ip = quoted.ip as usize;
    if packet.is_v4 {
        let mut old = [old.dst.v4_be(), old.src.v4_be()];
        let mut new = [to.dst.v4_be(), to.src.v4_be()];
        // SAFETY: both arrays are eight bytes on this stack.
        let diff = unsafe { bpf_csum_diff(old.as_mut_ptr(), 8, new.as_mut_ptr(), 8, 0) };
        // The quoted header's own checksum makes up for the addresses in the ICMP one.
        return diff >= 0
            && ctx.l3_csum_replace(ip + 10, 0, diff as u64, 0).is_ok()
            && ctx.store(ip + 12, &new, 0).is_ok();
    }
    let mut old = [old.dst.words, old.src.words];
    let mut new = [to.dst.words, to.src.words];
    // SAFETY: both arrays are 32 bytes on this stack.
    let diff =
        unsafe { bpf_csum_diff(old.as_mut_ptr().cast(), 32, new.as_mut_ptr().cast(), 32, 0) };
    let sum = packet.l4 as usize + 2;
    diff >= 0
        && ctx.l4_csum_replace(sum, 0, diff as u64, 0).is_ok()
        && ctx.store(ip + 8, &new, 0).is_ok()
}
