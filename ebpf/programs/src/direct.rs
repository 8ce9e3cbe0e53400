//! Direct answers: a client outside that dialled a node port, or a balancer's address, whose backend is on
//! another node, is answered by that node itself, and the backend sees the client's own address.
//!
//! The node that was dialled sends the packet on with the backend as its destination, and nothing else
//! changed. What was dialled travels in an option of the IP header, which the backend's node remembers and
//! the backend ignores: in the first packet of a TCP connection only, where there is always room for it,
//! and in each UDP datagram that has room.

use aya_ebpf::{
    helpers::{bpf_check_mtu, bpf_csum_diff},
    programs::TcContext,
};
use windlass_ebpf_types::{
    Addr, Direction, Reason, ServiceValue, connection, node_config, protocol,
};

use crate::{
    conntrack,
    context::PacketContext,
    events::count,
    lb,
    maps::NODE_CONFIG,
    overlay,
    parse::{ETH_LEN, Packet, TCP_RST, TCP_SYN, ifindex, load_into},
    scratch::{Dialled, scratch},
    table,
    translate::is_native,
};

const IP: usize = ETH_LEN as usize;
/// Port and address follow. The number is one for experiments (RFC 4727), to be copied into fragments.
const OPTION_V4: [u8; 2] = [158, 8];
const ROOM_V4: u32 = 8;
/// The header of destination options behind its first octet: its length in units of eight octets without the
/// first, then the option: to be skipped by who does not know it (again one for experiments), and its length.
pub const OPTION_V6: u32 = 0x02_1e_14;
pub const ROOM_V6: u32 = 24;
const NO_PORT: Dialled = Dialled {
    addr: Addr::UNSPECIFIED,
    port: 0,
    pad: 0,
    service: 0,
};

/// Whether the new connection in `Scratch::entry` may go on as it is by the interface `way`. A function of its
/// own: the stack of its caller is short.
#[inline(never)]
pub fn takes(ctx: &TcContext, packet: &Packet, way: u32) -> bool {
    is_possible(ctx, packet, way) && {
        let Some(scratch) = scratch() else {
            return false;
        };
        scratch.entry.to.reverse_into(&mut scratch.answer);
        conntrack::is_free(scratch, &packet.tuple)
    }
}

#[inline(always)]
fn is_possible(ctx: &TcContext, packet: &Packet, way: u32) -> bool {
    NODE_CONFIG
        .get(0)
        .is_some_and(|config| config.flags & node_config::DIRECT_ANSWERS != 0)
        && matches!(packet.tuple.protocol, protocol::TCP | protocol::UDP)
        && !packet.is_first_fragment
        // In mid-connection it is not needed: the backend's node should know what was dialled.
        && (!packet.opens_connection() || has_room(ctx, packet, way))
        // Within the cluster the way back would not be the outside's.
        && !is_native(&packet.tuple.src)
}

#[inline(always)]
fn has_room<C: PacketContext>(ctx: &C, packet: &Packet, way: u32) -> bool {
    if packet.is_v4 && packet.l4 != ETH_LEN + 20 {
        // It has options already.
        return false;
    }
    let more = if packet.is_v4 { ROOM_V4 } else { ROOM_V6 };
    let mut length = 0;
    // SAFETY: the kernel's context; `length` is on this stack.
    unsafe { bpf_check_mtu(ctx.kernel(), way, &raw mut length, more as i32, 0) == 0 }
}

/// Whether a packet in mid-connection that no entry knows may be one that another node has sent on until now:
/// with direct answers, and a table by which all nodes choose alike, this one goes on where that one ended.
#[inline(always)]
pub fn may_adopt(packet: &Packet, service: &ServiceValue) -> bool {
    service.maglev != 0
        && packet.tuple.protocol == protocol::TCP
        && packet.tcp_flags & (TCP_SYN | TCP_RST) == 0
        && !packet.is_later_fragment
        && NODE_CONFIG.get(0).is_some_and(|config| {
            // While an upgrade goes on, it may be a connection of this node's own.
            config.flags & (node_config::DIRECT_ANSWERS | node_config::MIGRATING)
                == node_config::DIRECT_ANSWERS
        })
}

/// Tells the backend's node what was dialled, which `Scratch::dialled` says, if this is a packet to tell it in.
/// `false`: the kernel refused, and the packet must not go on.
#[inline(never)]
pub fn mark<C: PacketContext>(ctx: &C, packet: &mut Packet, way: u32, is_adopted: bool) -> bool {
    let says = packet.opens_connection() || is_adopted;
    if !says || packet.is_later_fragment {
        return true;
    }
    if !has_room(ctx, packet, way) {
        // What was dialled is known there by now; a connection that opens was asked before.
        return true;
    }
    if packet.is_v4 {
        mark_v4(ctx)
    } else {
        mark_v6(ctx)
    }
}

#[inline(always)]
fn mark_v4<C: PacketContext>(ctx: &C) -> bool {
    let Some(scratch) = scratch() else {
        return false;
    };
    let Some(mut old) = ctx.read::<u32>(IP) else {
        return false;
    };
    if !ctx.insert(true, ROOM_V4) {
        return false;
    }
    // Two words more in the header, and in the packet.
    let first = u32::from_be(old)
        .wrapping_add(2 << 24)
        .wrapping_add(ROOM_V4);
    let port = u32::from(u16::from_be(scratch.dialled.port));
    let option = u32::from(OPTION_V4[0]) << 24 | u32::from(OPTION_V4[1]) << 16 | port;
    let mut new = [first.to_be(), option.to_be(), scratch.dialled.addr.v4_be()];
    // SAFETY: four and twelve bytes on this stack.
    let diff = unsafe { bpf_csum_diff(&raw mut old, 4, new.as_mut_ptr(), 12, 0) };
    diff >= 0
        && ctx.mend_header(IP + 10, diff as u64)
        && ctx.write(IP, &new[0])
        && ctx.write(IP + 20, &[new[1], new[2]])
}

#[inline(always)]
fn mark_v6<C: PacketContext>(ctx: &C) -> bool {
    let Some(scratch) = scratch() else {
        return false;
    };
    let Some(second) = ctx.read::<u32>(IP + 4) else {
        return false;
    };
    if !ctx.insert(false, ROOM_V6) {
        return false;
    }
    // Payload length, next header, hop limit.
    let second = u32::from_be(second);
    let next = second >> 8 & 0xff;
    let header = second.wrapping_add(ROOM_V6 << 16) & !0xff00 | 60 << 8;
    let words = scratch.dialled.addr.words;
    // The option begins with the address, so that both are whole words.
    let option = [
        (next << 24 | OPTION_V6).to_be(),
        words[0],
        words[1],
        words[2],
        words[3],
        u32::from(scratch.dialled.port.to_le()).to_le(),
    ];
    ctx.write(IP + 4, &header.to_be()) && ctx.write(IP + 40, &option)
}

/// Reads what another node says was dialled into `Scratch::dialled`. `false`: the packet is in the way of a
/// connection that has the same ports.
#[inline(always)]
pub fn arrive(ctx: &TcContext, packet: &Packet) -> bool {
    let option = if packet.is_v4 {
        ROOM_V4 + 20
    } else {
        ROOM_V6 + 40
    };
    if packet.l4 != ETH_LEN + option {
        return true;
    }
    read(ctx, packet) == 0 || !is_in_the_way(packet)
}

/// Whether the answers of this packet's connection are to carry another address than its own.
#[inline(always)]
pub fn is_answered_for(packet: &Packet) -> bool {
    let option = if packet.is_v4 {
        ROOM_V4 + 20
    } else {
        ROOM_V6 + 40
    };
    packet.l4 == ETH_LEN + option && scratch().is_some_and(|scratch| scratch.dialled.port != 0)
}

#[inline(never)]
fn read(ctx: &TcContext, packet: &Packet) -> u32 {
    let Some(scratch) = scratch() else { return 0 };
    scratch.dialled = NO_PORT;
    let mut found = NO_PORT;
    if packet.is_v4 {
        let mut option = [0u8; ROOM_V4 as usize];
        if !load_into(ctx, ETH_LEN + 20, &mut option)
            || option[0] != OPTION_V4[0]
            || option[1] != OPTION_V4[1]
        {
            return 0;
        }
        found.port = u16::from_ne_bytes([option[2], option[3]]);
        found.addr = Addr::v4([option[4], option[5], option[6], option[7]]);
    } else {
        let Ok(words) = ctx.load::<[u32; 6]>(IP + 40) else {
            return 0;
        };
        if u32::from_be(words[0]) & 0x00ff_ffff != OPTION_V6 {
            return 0;
        }
        found.addr.words = [words[1], words[2], words[3], words[4]];
        found.port = words[5].to_le() as u16;
    }
    // Whoever can send packets here can say anything: only what the cluster serves is spoken for.
    found.service = lb::of_the_cluster(&found.addr, found.port, packet.tuple.protocol);
    if found.service == 0 {
        return 0;
    }
    scratch.dialled = found;
    1
}

/// A live connection from the same port to the same backend, by another address.
#[inline(never)]
fn is_in_the_way(packet: &Packet) -> bool {
    let Some(scratch) = scratch() else {
        return true;
    };
    packet.tuple.reverse_into(&mut scratch.answer);
    let Some(held) = table::get(&scratch.answer) else {
        return false;
    };
    let dialled = &scratch.dialled;
    if held.to.src == dialled.addr && held.to.sport == dialled.port {
        return false;
    }
    // An owner that no connection has: it is free only if what holds it is over.
    scratch.entry.to = scratch.answer;
    let nobody = scratch.entry.to;
    !conntrack::is_free(scratch, &nobody)
}

/// The connection that is to be adopted, by `Scratch::entry`, may have been sent to a backend of this node by
/// another: what that left says of the answers what this would, and makes way.
#[inline(never)]
pub fn succeed(packet: &Packet) -> u32 {
    let Some(scratch) = scratch() else { return 0 };
    scratch.entry.to.reverse_into(&mut scratch.answer);
    let Some(held) = table::get(&scratch.answer) else {
        return 0;
    };
    held.to.reverse_into(&mut scratch.holder);
    if scratch.holder != packet.tuple {
        return 0;
    }
    table::remove(&scratch.answer);
    1
}

/// What holds the answers of a packet that [`arrive`] let pass, and that no entry knows: the connection itself,
/// while this node was the one that was dialled. It is recorded anew.
#[inline(never)]
pub fn make_way(packet: &Packet) -> u32 {
    let Some(scratch) = scratch() else { return 0 };
    packet.tuple.reverse_into(&mut scratch.answer);
    table::remove(&scratch.answer);
    1
}

/// The answers of the connection that was just recorded carry what was dialled. 0: they cannot.
#[inline(never)]
pub fn settle(ctx: &TcContext, packet: &Packet) -> u32 {
    let Some(scratch) = scratch() else { return 0 };
    packet.tuple.reverse_into(&mut scratch.answer);
    let way = overlay::egress(ctx, &packet.tuple.src);
    let Some(reply) = table::get(&scratch.answer) else {
        return 0;
    };
    // Nothing has been answered yet.
    reply.to.src = scratch.dialled.addr;
    reply.to.sport = scratch.dialled.port;
    // So that its octets are counted. Which of its backends this is the other node knows.
    reply.service = scratch.dialled.service;
    reply.flags = reply.flags & !connection::UNCHANGED | connection::ANSWERS_DIRECTLY;
    reply.ifindex = if way == 0 { ifindex(ctx) } else { way };
    count(Reason::NewConnection, Direction::FromUplink, ctx.len());
    1
}
