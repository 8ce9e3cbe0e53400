//! From a pod to another node past the host's stack.
//!
//! What the stack would do to a packet of a connection that is known and admitted is little: find the route and the
//! neighbour, which are remembered (see `next_hop`), take one from the time to live, and put the frame's addresses on it.
//! Whatever asks for more goes by the stack: the first packets of connections, packets with options, fragments, those that
//! are too long or too old and need an answer, all that leaves the cluster, and connections whose other side comes by the
//! stack: somebody's rules may translate them there.

use aya_ebpf::{
    helpers::{bpf_redirect, bpf_redirect_neigh},
    programs::TcContext,
};
use windlass_ebpf_types::{JUDGED_MARK, protocol};

use crate::{
    context::PacketContext as _,
    deliver::NEXT,
    hops::grow_older,
    next_hop::{self, NextHop},
    parse::{ETH_LEN, Packet},
};

/// Offset of the length of the TCP header, in units of four octets, in its upper half.
const DATA_OFFSET: u32 = 12;
const UDP_HEADER: u32 = 8;

/// Sends a packet on to the node where its destination is, or leaves it to the host's stack.
#[inline(never)]
pub fn send_on(ctx: &TcContext, packet: &Packet) -> i32 {
    if packet.goes_by_stack || !packet.is_plain() {
        return NEXT;
    }
    let Some((hop, is_asked)) = next_hop::onward(ctx, &packet.tuple) else {
        return NEXT;
    };
    if !fits(ctx, packet, hop) || !grow_older(ctx, packet) {
        return NEXT;
    }
    let interface = hop.interface;
    if is_asked {
        // Not by the stack: netfilter, which has not seen the connection's first packet where that came in past it, would
        // take this one for a first packet, and translate it if there are rules.
        // SAFETY: the kernel's context; a null `params` is the documented way to have the routes asked.
        unsafe {
            (*ctx.skb.skb).mark = JUDGED_MARK;
            return bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32;
        }
    }
    if !ctx.write(0, &[hop.target, hop.source]) {
        return NEXT;
    }
    // SAFETY: the kernel's context. What leaves has been seen, and needs no second look at the uplink.
    unsafe {
        (*ctx.skb.skb).mark = JUDGED_MARK;
        bpf_redirect(interface, 0) as i32
    }
}

/// Whether the packet, or each of those that the interface will make of it, is as long as the way allows.
#[inline(always)]
fn fits(ctx: &TcContext, packet: &Packet, hop: &NextHop) -> bool {
    // SAFETY: the kernel's context.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    if segment == 0 {
        return hop.takes(ctx.len() - ETH_LEN);
    }
    let transport = match packet.tuple.protocol {
        protocol::TCP => match ctx.read::<u8>((packet.l4 + DATA_OFFSET) as usize) {
            Some(octet) => u32::from(octet >> 4) * 4,
            None => return false,
        },
        protocol::UDP => UDP_HEADER,
        _ => return false,
    };
    hop.takes(packet.l4 - ETH_LEN + transport + segment)
}
