//! XDP on an uplink (kernel 4.8): what may not come in at all is dropped before the kernel spends a
//! buffer on it, and what only passes through this node, between a client outside and a backend of
//! another node, is sent on from here.
//!
//! Only packets of connections that are known are, and only plain ones: whatever opens one, has
//! options, comes in fragments, is an error, goes to a pod or socket of this node or through the
//! tunnel, or has to wait for a neighbour goes up to `from_uplink`, which would do to it what is
//! done here, by the same tables and the same code.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, macros::xdp, programs::XdpContext};
use windlass_ebpf_types::{
    Connection, Direction, Reason, Ways, connection, node_config, protocol, xdp_uplink,
};

use crate::{
    conntrack,
    context::PacketContext as _,
    events::count,
    guard,
    lb::{self, Origin},
    maps::NODE_CONFIG,
    next_hop,
    parse::{ETH_LEN, Kind, Packet, parse},
    policy, table,
    translate::{Outcome, apply},
};

const HERE: Direction = Direction::Xdp;

#[xdp]
pub fn xdp_uplink(ctx: XdpContext) -> u32 {
    let mut place = MaybeUninit::uninit();
    let packet = Packet::clear(&mut place);
    let kind = parse(&ctx, packet);
    if !matches!(kind, Kind::Flow | Kind::Fragment | Kind::Portless) {
        return xdp_action::XDP_PASS;
    }
    if guard::is_denied(&packet.tuple.src) {
        return drop(&ctx, Reason::DroppedDenied);
    }
    if !matches!(kind, Kind::Flow)
        || packet.is_later_fragment
        || !matches!(
            packet.tuple.protocol,
            protocol::TCP | protocol::UDP | protocol::SCTP
        )
    {
        return xdp_action::XDP_PASS;
    }
    if let Some(ways) = table::find(&packet.tuple) {
        return follow(&ctx, packet, ways);
    }
    if is_refused(packet) == 0 {
        xdp_action::XDP_PASS
    } else {
        drop(&ctx, Reason::DroppedSourceRange)
    }
}

/// Whether a client is in none of the ranges of the service that it dials.
#[inline(never)]
fn is_refused(packet: &Packet) -> u32 {
    let tuple = &packet.tuple;
    match lb::find(&tuple.dst, tuple.dport, tuple.protocol, Origin::Outside) {
        Some(service) => u32::from(!lb::admits(&service, &tuple.src)),
        None => 0,
    }
}

/// Sends on a packet of a connection that leads through this node, and passes any other.
#[inline(always)]
fn follow(ctx: &XdpContext, packet: &mut Packet, ways: &mut Ways) -> u32 {
    let entry = table::of(ways, table::way());
    let way = entry.ifindex;
    if !is_plain(packet, entry) {
        return xdp_action::XDP_PASS;
    }
    let length = ctx.length() - ETH_LEN;
    let Some(hop) = next_hop::find(ctx, way, &entry.to, length) else {
        return xdp_action::XDP_PASS;
    };
    let comes_back = way == ctx.interface();
    // A frame for another machine, which the device takes all the same, is not to be sent on twice.
    if comes_back && ctx.read::<[u16; 3]>(0) != Some(hop.source) {
        return xdp_action::XDP_PASS;
    }
    if !conntrack::keep(packet, ways) {
        return xdp_action::XDP_PASS;
    }
    let (target, source, how) = (hop.target, hop.source, hop.how);
    if !matches!(apply(ctx, packet, entry, HERE), Outcome::Ready { .. })
        || !ctx.write(0, &[target, source])
    {
        return drop(ctx, Reason::DroppedError);
    }
    if comes_back && how == xdp_uplink::SEND_BACK {
        return xdp_action::XDP_TX;
    }
    // SAFETY: no precondition.
    unsafe { bpf_redirect(way, 0) as u32 }
}

/// Whether all that there is to do about a packet can be done here.
#[inline(always)]
fn is_plain(packet: &Packet, entry: &Connection) -> bool {
    packet.is_plain()
        && packet.hops > 1
        && packet.tuple.protocol != protocol::SCTP
        && entry.service != 0
        && entry.flags & connection::UNCHANGED == 0
        // Policies have changed since: all that they say is asked for there.
        && entry.policy == policy::revision()
        && NODE_CONFIG
            .get(0)
            .is_some_and(|config| config.flags & node_config::XDP_FORWARDS != 0)
}

#[inline(always)]
fn drop(ctx: &XdpContext, reason: Reason) -> u32 {
    count(reason, HERE, ctx.length());
    xdp_action::XDP_DROP
}
