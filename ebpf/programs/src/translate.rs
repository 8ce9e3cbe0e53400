//! Service translation of packets: the tc counterpart of the socket hooks, for all that
//! did not pass them (other namespaces' clients, raw sockets, the outside).

use aya_ebpf::programs::TcContext;
use windlass_ebpf_types::{
    Addr, Connection, Direction, HAIRPIN_V4, HAIRPIN_V6, Reason, ServiceValue, connection, protocol,
};

use crate::{
    conntrack,
    events::count,
    lb::{self, Loopback},
    maps::{ENDPOINTS, NODE_ADDRESSES, UPLINKS},
    nat,
    parse::{Packet, ifindex},
};

pub enum Outcome {
    /// No connection and no service: the packet is not ours to change.
    Unknown,
    /// The packet now says what it must. It leaves by this interface, 0 for any.
    Ready(u32),
    /// The packet's way through the node is known, but not changed.
    Tracked,
    Reject(Reason),
    Drop(Reason),
}

/// Follows a connection, or opens one when the packet is for a service.
#[inline(always)]
pub fn translate(ctx: &TcContext, packet: &mut Packet, direction: Direction) -> Outcome {
    match follow(ctx, packet, direction) {
        Outcome::Unknown => {}
        outcome => return outcome,
    }
    let tuple = packet.tuple;
    let Some(service) = lb::find(&tuple.dst, tuple.dport, tuple.protocol, Loopback::IsNotNode)
    else {
        return Outcome::Unknown;
    };
    if !packet.opens_connection() {
        return Outcome::Reject(Reason::RejectedUnknownFlow);
    }
    open(ctx, packet, &service, direction)
}

/// Translates a packet of a connection that is known.
#[inline(always)]
pub fn follow(ctx: &TcContext, packet: &mut Packet, direction: Direction) -> Outcome {
    let Some(entry) = conntrack::hit(packet) else {
        return Outcome::Unknown;
    };
    if entry.flags & connection::UNCHANGED != 0 {
        return Outcome::Tracked;
    }
    apply(ctx, packet, &entry, direction)
}

/// Chooses a backend and makes the pair of entries.
#[inline(always)]
fn open(
    ctx: &TcContext,
    packet: &mut Packet,
    service: &ServiceValue,
    direction: Direction,
) -> Outcome {
    let Some(choice) = lb::choose(service, &packet.tuple.src) else {
        return Outcome::Reject(Reason::RejectedNoEndpoint);
    };
    let mut entry = Connection {
        to: packet.tuple,
        flags: 0,
        last_seen: 0,
        service: service.id,
        backend: choice.backend_id,
        ifindex: 0,
        created: 0,
    };
    entry.to.dst = choice.backend.addr;
    entry.to.dport = choice.backend.port;
    let mut any_port = 0;
    let mut reply_ifindex = 0;
    if entry.to.src == entry.to.dst {
        entry.to.src = if packet.is_v4 { HAIRPIN_V4 } else { HAIRPIN_V6 };
    }
    if direction == Direction::FromUplink {
        // The answer carries an address that the host's routing would refuse as a source
        // from elsewhere: it leaves where the request came in.
        reply_ifindex = ifindex(ctx);
        if !is_on_this_node(&entry.to.dst) {
            // The answer must come back through here, so the source becomes ours.
            let Some(own) = uplink_address(reply_ifindex, packet.is_v4) else {
                return Outcome::Drop(Reason::DroppedError);
            };
            entry.to.src = own;
            entry.ifindex = reply_ifindex;
            entry.flags |= connection::MASQUERADED;
            any_port = 1;
        }
    }
    match conntrack::create(&packet.tuple, &mut entry, reply_ifindex, any_port) {
        conntrack::CREATE_OK => {}
        code => return Outcome::Drop(conntrack::failure(code)),
    }
    count(Reason::NewConnection, direction, ctx.len());
    apply(ctx, packet, &entry, direction)
}

/// Records a flow that is not translated, so that its answers are known as such.
#[inline(always)]
pub fn track(packet: &Packet) -> Option<Reason> {
    let mut entry = Connection {
        to: packet.tuple,
        flags: 0,
        last_seen: 0,
        service: 0,
        backend: 0,
        ifindex: 0,
        created: 0,
    };
    match conntrack::create(&packet.tuple, &mut entry, 0, 0) {
        conntrack::CREATE_OK => None,
        code => Some(conntrack::failure(code)),
    }
}

#[inline(always)]
fn apply(
    ctx: &TcContext,
    packet: &mut Packet,
    entry: &Connection,
    direction: Direction,
) -> Outcome {
    if packet.tuple.protocol == protocol::SCTP
        && (packet.tuple.sport != entry.to.sport || packet.tuple.dport != entry.to.dport)
    {
        return Outcome::Drop(Reason::DroppedError);
    }
    if !nat::rewrite(ctx, packet, &entry.to) {
        return Outcome::Drop(Reason::DroppedError);
    }
    count(Reason::Translated, direction, ctx.len());
    Outcome::Ready(entry.ifindex)
}

#[inline(always)]
fn is_on_this_node(addr: &Addr) -> bool {
    // SAFETY: on-demand allocation keeps an element readable until RCU ends.
    unsafe { ENDPOINTS.get(addr).is_some() || NODE_ADDRESSES.get(addr).is_some() }
}

/// The address that stands for the node on an uplink, if it has one of this family.
#[inline(always)]
pub fn uplink_address(ifindex: u32, is_v4: bool) -> Option<Addr> {
    // SAFETY: on-demand allocation keeps an element readable until RCU ends.
    let uplink = unsafe { UPLINKS.get(&ifindex) }?;
    let addr = if is_v4 { uplink.v4 } else { uplink.v6 };
    (addr != Addr::UNSPECIFIED).then_some(addr)
}
