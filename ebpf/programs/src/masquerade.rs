//! Masquerade: a pod that talks to the outside does so from an address of the node.
//!
//! Each connection owns its source port towards its destination (an entry of the answer
//! in the conntrack map), out of a range that the host's own sockets do not draw from.

use aya_ebpf::programs::TcContext;
use windlass_ebpf_types::{Direction, Reason, connection, network};

use crate::{
    conntrack,
    events::count,
    maps::ENDPOINTS,
    nat,
    parse::{Packet, ifindex},
    scratch::scratch,
    translate::{Outcome, is_on_this_node, network_of, prepare, uplink_address},
};

/// Opens a masqueraded connection when the packet is a pod's and leaves the cluster. Nobody's packet leaves for an address
/// of Services: those that one has are translated before, or by another proxy in the host's stack.
#[inline(always)]
pub fn masquerade(ctx: &TcContext, packet: &mut Packet) -> Outcome {
    // SAFETY: an element is readable memory for as long as the program runs.
    let is_pod = unsafe { ENDPOINTS.get(&packet.tuple.src) }.is_some();
    let passes = match is_pod {
        true => is_on_this_node(&packet.tuple.dst),
        false => !packet.opens_connection(),
    };
    if passes {
        return Outcome::Unknown;
    }
    match network_of(&packet.tuple.dst) {
        network::SERVICES => return Outcome::Drop(Reason::DroppedNoService),
        0 if is_pod => {}
        _ => return Outcome::Unknown,
    }
    let Some(own) = uplink_address(ifindex(ctx), packet.is_v4) else {
        return Outcome::Unknown;
    };
    if !packet.opens_connection() {
        // Its entry is gone, and a new port would only confuse the other side.
        return Outcome::Drop(Reason::RejectedUnknownFlow);
    }
    let Some(entry) = prepare(packet, connection::MASQUERADED) else {
        return Outcome::Drop(Reason::DroppedError);
    };
    entry.to.src = own;
    match conntrack::create(&packet.tuple, 0) {
        conntrack::CREATE_OK => {}
        code => return Outcome::Drop(conntrack::failure(code)),
    }
    let Some(scratch) = scratch() else {
        return Outcome::Drop(Reason::DroppedError);
    };
    if !nat::rewrite(ctx, packet, &scratch.entry.to, packet.hops) {
        return Outcome::Drop(Reason::DroppedError);
    }
    count(Reason::Masqueraded, Direction::ToUplink, ctx.len());
    Outcome::Ready {
        interface: 0,
        masqueraded: true,
    }
}
