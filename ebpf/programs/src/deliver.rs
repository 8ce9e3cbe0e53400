//! Where a packet goes once it says the right thing.

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type},
    programs::TcContext,
};
use windlass_ebpf_types::{Direction, Endpoint, JUDGED_MARK, Reason, endpoint_flag};

use crate::{events::count, forward, maps::ENDPOINTS, overlay, parse::Packet};

/// "No verdict": the next program of the hook has its say, then the packet goes on.
pub const NEXT: i32 = TC_ACT_UNSPEC;
pub const DROP: i32 = 2;

pub const PACKET_HOST: u32 = 0;

/// To a pod of this node straight into its interface, past the host's stack; else out of
/// `ifindex` where a connection asks for it; else through the overlay if it leads there; else as
/// the host routes.
///
/// Only for hooks at ingress: `bpf_redirect_peer` exists nowhere else. It skips the
/// target's egress hook, so whatever that decides must have been decided before.
#[inline(always)]
pub fn deliver(ctx: &TcContext, packet: &Packet, ifindex: u32, direction: Direction) -> i32 {
    deliver_any(ctx, packet, ifindex, direction, false)
}

/// The same for a pod's packet of a connection that is known, and that policy has admitted: what leaves the node needs
/// no second look, and goes past the host's stack where it can.
#[inline(always)]
pub fn deliver_known(ctx: &TcContext, packet: &Packet, ifindex: u32, direction: Direction) -> i32 {
    match deliver_any(ctx, packet, ifindex, direction, true) {
        NEXT => forward::send_on(ctx, packet),
        verdict => verdict,
    }
}

#[inline(always)]
fn deliver_any(
    ctx: &TcContext,
    packet: &Packet,
    ifindex: u32,
    direction: Direction,
    known: bool,
) -> i32 {
    // SAFETY: an element is readable memory for as long as the program runs.
    if let Some(endpoint) = unsafe { ENDPOINTS.get(&packet.tuple.dst) } {
        return to_pod(ctx, endpoint, direction);
    }
    if ifindex != 0 && !overlay::is_device(ifindex) {
        // No next hop given: the helper asks the routes of that interface.
        // SAFETY: a null `params` is the documented way to say so.
        return unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) } as i32;
    }
    // One whose source became the node's cannot be left to the host's routing.
    let must_fit = ifindex == 0;
    overlay::enter(ctx, &packet.tuple.dst, must_fit, known).unwrap_or(NEXT)
}

#[inline(always)]
fn to_pod(ctx: &TcContext, endpoint: &Endpoint, direction: Direction) -> i32 {
    if ctx.store(0, &endpoint.macs, 0).is_err() {
        count(Reason::DroppedError, direction, ctx.len());
        return DROP;
    }
    // A frame that came for another Ethernet address would be dropped by the pod's stack.
    // SAFETY: the kernel's context.
    unsafe {
        if (*ctx.skb.skb).pkt_type != PACKET_HOST {
            bpf_skb_change_type(ctx.skb.skb, PACKET_HOST);
        }
        if endpoint.flags & endpoint_flag::LIMITED != 0 {
            // Through the queue on the host's side, where `to_pod` knows it by this.
            (*ctx.skb.skb).mark = JUDGED_MARK;
            return bpf_redirect(endpoint.ifindex, 0) as i32;
        }
        bpf_redirect_peer(endpoint.ifindex, 0) as i32
    }
}
