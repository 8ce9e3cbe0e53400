//! tc ingress on an uplink: NodePort and other addresses of services dialled from
//! outside, answers to masqueraded connections, and traffic for the pods.

use core::mem::MaybeUninit;

use aya_ebpf::{macros::classifier, programs::TcContext};
use windlass_ebpf_types::{Direction, Reason, protocol};

use crate::{
    announce,
    deliver::{DROP, NEXT, deliver},
    direct,
    events::{count, dropped},
    guard,
    icmp::related,
    lb,
    maps::ENDPOINTS,
    overlay,
    parse::{Kind, Packet, parse},
    policy,
    reject::reject,
    translate::{Outcome, enter, follow_on, translate},
};

const HERE: Direction = Direction::FromUplink;

#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    if overlay::is_here(&ctx) && overlay::arrive(&ctx) == 0 {
        return drop_packet(&ctx, &Packet::EMPTY, Reason::DroppedSpoofedSource);
    }
    let mut place = MaybeUninit::uninit();
    let packet = Packet::clear(&mut place);
    let kind = parse(&ctx, packet);
    if matches!(kind, Kind::Flow | Kind::Fragment | Kind::Portless)
        && guard::is_denied(&packet.tuple.src)
    {
        return drop_packet(&ctx, packet, Reason::DroppedDenied);
    }
    match kind {
        Kind::Flow => {}
        Kind::Fragment if lb::is_nobodys(&ctx, &packet.tuple.dst) != 0 => {
            return drop_packet(&ctx, packet, Reason::RejectedNoEndpoint);
        }
        Kind::Fragment => {
            count(Reason::FragmentPassed, HERE, ctx.len());
            return NEXT;
        }
        Kind::Portless => return portless(&ctx, packet),
        Kind::Arp => return announce::answer_arp(&ctx),
        Kind::Other | Kind::Malformed => return NEXT,
    }
    if !packet.is_later_fragment && !direct::arrive(&ctx, packet) {
        return drop_packet(&ctx, packet, Reason::DroppedPortsExhausted);
    }
    match translate(&ctx, packet, HERE) {
        Outcome::Unknown => inbound(&ctx, packet),
        Outcome::Tracked => deliver(&ctx, packet, 0, HERE),
        Outcome::Ready {
            interface,
            masqueraded: false,
        } => deliver(&ctx, packet, interface, HERE),
        Outcome::Ready {
            interface,
            masqueraded: true,
        } => {
            // An answer to a pod's masqueraded connection may itself be the answer of a
            // service whose backend is outside: that pair is keyed by the pod's address.
            match follow_on(&ctx, packet, HERE) {
                Outcome::Drop(reason) => drop_packet(&ctx, packet, reason),
                _ => deliver(&ctx, packet, interface, HERE),
            }
        }
        Outcome::Reject(reason) => reject(&ctx, packet, reason, HERE),
        Outcome::Drop(reason) => drop_packet(&ctx, packet, reason),
    }
}

/// What has no ports: an error about a connection goes the way of its answers.
#[inline(always)]
fn portless(ctx: &TcContext, packet: &mut Packet) -> i32 {
    if packet.tuple.protocol == protocol::ICMPV6 && !packet.is_icmp_error {
        let answer = announce::answer_solicitation(ctx, false);
        if answer != NEXT {
            return answer;
        }
    }
    match related(ctx, packet, HERE) {
        Outcome::Ready {
            interface,
            masqueraded,
        } => {
            // As for answers: the masquerade may have hidden a service's connection.
            if masqueraded && let Outcome::Drop(reason) = related(ctx, packet, HERE) {
                return drop_packet(ctx, packet, reason);
            }
            deliver(ctx, packet, interface, HERE)
        }
        Outcome::Tracked => deliver(ctx, packet, 0, HERE),
        Outcome::Drop(reason) => drop_packet(ctx, packet, reason),
        _ if lb::is_nobodys(ctx, &packet.tuple.dst) != 0 => {
            drop_packet(ctx, packet, Reason::RejectedNoEndpoint)
        }
        Outcome::Unknown | Outcome::Reject(_) => match policy::admit_portless(ctx, packet, HERE) {
            Some(reason) => drop_packet(ctx, packet, reason),
            None => deliver(ctx, packet, 0, HERE),
        },
    }
}

/// A packet that no service and no connection claims. One for a pod is tracked, so that
/// the pod's answers are not taken for connections of its own and masqueraded.
#[inline(always)]
fn inbound(ctx: &TcContext, packet: &mut Packet) -> i32 {
    let answered_for = !packet.is_later_fragment && direct::is_answered_for(packet);
    // SAFETY: an element is readable memory for as long as the program runs.
    if unsafe { ENDPOINTS.get(&packet.tuple.dst) }.is_none() && !answered_for {
        if lb::is_nobodys(ctx, &packet.tuple.dst) != 0 {
            return reject(ctx, packet, Reason::RejectedNoEndpoint, HERE);
        }
        return NEXT;
    }
    let worth = packet.opens_connection() || answered_for;
    if answered_for {
        direct::make_way(packet);
    }
    if let Outcome::Drop(reason) = enter(ctx, packet, HERE, worth, true) {
        return drop_packet(ctx, packet, reason);
    }
    if answered_for && direct::settle(ctx, packet) == 0 {
        return drop_packet(ctx, packet, Reason::DroppedPortsExhausted);
    }
    count(Reason::Forwarded, HERE, ctx.len());
    deliver(ctx, packet, 0, HERE)
}

#[inline(always)]
fn drop_packet(ctx: &TcContext, packet: &Packet, reason: Reason) -> i32 {
    dropped(ctx, packet, reason, HERE);
    DROP
}
