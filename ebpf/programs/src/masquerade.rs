//! Masquerade: a pod that talks to the outside does so from an address of the node.
//!
//! Each connection owns its source port towards its destination (an entry of the answer
//! in the conntrack map), out of a range that the host's own sockets do not draw from.

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use windlass_ebpf_types::{Addr, Connection, Direction, Reason, connection};

use crate::{
    conntrack,
    events::count,
    maps::{ENDPOINTS, NATIVE, NODE_ADDRESSES},
    nat,
    parse::{Packet, ifindex},
    translate::{Outcome, uplink_address},
};

/// Opens a masqueraded connection when the packet is a pod's and leaves the cluster.
#[inline(always)]
pub fn masquerade(ctx: &TcContext, packet: &mut Packet) -> Outcome {
    // SAFETY: on-demand allocation keeps an element readable until RCU ends.
    if unsafe { ENDPOINTS.get(&packet.tuple.src) }.is_none() || is_native(&packet.tuple.dst) {
        return Outcome::Unknown;
    }
    let Some(own) = uplink_address(ifindex(ctx), packet.is_v4) else {
        return Outcome::Unknown;
    };
    if !packet.opens_connection() {
        // Its entry is gone, and a new port would only confuse the other side.
        return Outcome::Drop(Reason::RejectedUnknownFlow);
    }
    let mut entry = Connection {
        to: packet.tuple,
        flags: connection::MASQUERADED,
        last_seen: 0,
        service: 0,
        backend: 0,
        ifindex: 0,
        created: 0,
    };
    entry.to.src = own;
    match conntrack::create(&packet.tuple, &mut entry, 0, 1) {
        conntrack::CREATE_OK => {}
        code => return Outcome::Drop(conntrack::failure(code)),
    }
    if !nat::rewrite(ctx, packet, &entry.to) {
        return Outcome::Drop(Reason::DroppedError);
    }
    count(Reason::Masqueraded, Direction::ToUplink, ctx.len());
    Outcome::Ready(0)
}

/// Whether a destination sees a pod's own address: the cluster's networks, this node.
#[inline(always)]
fn is_native(addr: &Addr) -> bool {
    // SAFETY: on-demand allocation keeps an element readable until RCU ends.
    NATIVE.get(Key::new(128, *addr)).is_some() || unsafe { NODE_ADDRESSES.get(addr) }.is_some()
}
