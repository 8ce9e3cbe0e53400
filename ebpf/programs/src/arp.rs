//! ARP of a pod: the gateway answers, for other pods as well, and a pod speaks only for its own address.

use aya_ebpf::{helpers::bpf_redirect, programs::TcContext};
use windlass_ebpf_types::{Addr, Direction, GATEWAY_V4, Reason};

use crate::{
    deliver::{DROP, NEXT},
    events::count,
    maps::ENDPOINTS,
    parse::{ifindex, load_into},
};

pub const FRAME: usize = 42;

/// Handles an ARP frame that a pod sent.
#[inline(never)]
pub fn from_pod(ctx: &TcContext) -> i32 {
    let mut frame = [0u8; FRAME];
    if !load_into(ctx, 0, &mut frame) {
        count(Reason::DroppedMalformed, Direction::FromPod, ctx.len());
        return DROP;
    }
    let interface = ifindex(ctx);
    let sender = Addr::v4([frame[28], frame[29], frame[30], frame[31]]);
    // SAFETY: an element is readable memory for as long as the program runs.
    let endpoint = match unsafe { ENDPOINTS.get(&sender) } {
        Some(endpoint) if endpoint.ifindex == interface => endpoint,
        _ => {
            count(Reason::DroppedSpoofedSource, Direction::FromPod, ctx.len());
            return DROP;
        }
    };
    let target = Addr::v4([frame[38], frame[39], frame[40], frame[41]]);
    let is_request = frame[20] == 0 && frame[21] == 1;
    // Pods of ours ask for the gateway alone. To one that another CNI plugin has made, with an address in a wider
    // network, all others are neighbours, wherever they are.
    if !is_request || target == sender || !(target == GATEWAY_V4 || is_pod(&target)) {
        return NEXT;
    }
    answer(ctx, &mut frame, endpoint.host_mac(), Direction::FromPod)
}

#[inline(always)]
pub fn is_pod(addr: &Addr) -> bool {
    // SAFETY: nothing of the element is read.
    unsafe { ENDPOINTS.get(addr) }.is_some()
}

/// Sends a request back by the interface it came in by, as the answer that `mac` has the address asked for.
#[inline(always)]
pub fn answer(
    ctx: &TcContext,
    frame: &mut [u8; FRAME],
    mac: &[u8; 6],
    direction: Direction,
) -> i32 {
    let mut i = 0;
    while i < 6 {
        let asker = frame[22 + i];
        frame[i] = asker;
        frame[6 + i] = mac[i];
        frame[22 + i] = mac[i];
        frame[32 + i] = asker;
        i += 1;
    }
    frame[21] = 2;
    let mut i = 0;
    while i < 4 {
        frame.swap(28 + i, 38 + i);
        i += 1;
    }
    if ctx.store(0, &*frame, 0).is_err() {
        count(Reason::DroppedError, direction, ctx.len());
        return DROP;
    }
    // SAFETY: no precondition.
    unsafe { bpf_redirect(ifindex(ctx), 0) as i32 }
}
