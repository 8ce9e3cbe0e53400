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
    lb::{self, Origin},
    maps::ENDPOINTS,
    overlay,
    parse::{Kind, Packet, parse},
    policy,
    reject::reject,
    table,
    translate::{Outcome, enter, follow_on, translate},
};

const HERE: Direction = Direction::FromUplink;

#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    let mut place = MaybeUninit::uninit();
    let packet = Packet::clear(&mut place);
    let kind = parse(&ctx, packet);
    if overlay::is_here(&ctx) && overlay::arrive(&ctx, &packet.tuple.src) == 0 {
        return drop_packet(&ctx, packet, Reason::DroppedSpoofedSource);
    }
    if matches!(kind, Kind::Flow | Kind::Fragment | Kind::Portless)
        && guard::is_denied(&packet.tuple.src)
    {
        return drop_packet(&ctx, packet, Reason::DroppedDenied);
    }
    let outcome = match kind {
        Kind::Flow if overlay::is_outer(packet) => return NEXT,
        Kind::Flow => flow(&ctx, packet),
        Kind::Fragment if lb::is_nobodys(&ctx, &packet.tuple.dst) != 0 => {
            Outcome::Drop(Reason::RejectedNoEndpoint)
        }
        Kind::Fragment => {
            count(Reason::FragmentPassed, HERE, ctx.len());
            return NEXT;
        }
        Kind::Portless => {
            if packet.tuple.protocol == protocol::ICMPV6 && !packet.is_icmp_error {
                let answer = announce::answer_solicitation(&ctx, false);
                if answer != NEXT {
                    return answer;
                }
            }
            portless(&ctx, packet)
        }
        Kind::Arp => return announce::answer_arp(&ctx),
        Kind::Other | Kind::Malformed => return NEXT,
    };
    // Each of these once, whatever leads there: the verifier walks all of it for every place that it is called from.
    let interface = match outcome {
        Outcome::Unknown => return NEXT,
        Outcome::Tracked => 0,
        Outcome::Ready { interface, .. } => interface,
        Outcome::Reject(reason) => return reject(&ctx, packet, reason, HERE),
        Outcome::Drop(reason) => return drop_packet(&ctx, packet, reason),
    };
    deliver(&ctx, packet, interface, HERE)
}

#[inline(always)]
fn flow(ctx: &TcContext, packet: &mut Packet) -> Outcome {
    if packet.hops <= 1 && goes_on(packet) != 0 {
        return Outcome::Reject(Reason::RejectedHopLimit);
    }
    if !packet.is_later_fragment && !direct::arrive(ctx, packet) {
        return Outcome::Drop(Reason::DroppedPortsExhausted);
    }
    match translate(ctx, packet, HERE) {
        Outcome::Unknown => inbound(ctx, packet),
        // An answer to a pod's masqueraded connection may itself be the answer of a
        // service whose backend is outside: that pair is keyed by the pod's address.
        Outcome::Ready {
            interface,
            masqueraded: true,
        } => unless_dropped(follow_on(ctx, packet, HERE), interface),
        outcome => outcome,
    }
}

/// Whether a packet of a service's connection, or one that opens one, is not for the node itself.
#[inline(never)]
fn goes_on(packet: &Packet) -> u32 {
    let tuple = &packet.tuple;
    let goes_on = match table::get(tuple) {
        // SAFETY: only whether it is there matters.
        Some(entry) => entry.ifindex != 0 || unsafe { ENDPOINTS.get(&entry.to.dst) }.is_some(),
        None => lb::find(&tuple.dst, tuple.dport, tuple.protocol, Origin::Outside).is_some(),
    };
    u32::from(goes_on)
}

/// A packet whose masquerade was undone goes on to where that was known to lead.
#[inline(always)]
fn unless_dropped(outcome: Outcome, interface: u32) -> Outcome {
    match outcome {
        Outcome::Drop(reason) => Outcome::Drop(reason),
        _ => Outcome::Ready {
            interface,
            masqueraded: false,
        },
    }
}

/// What has no ports: an error about a connection goes the way of its answers.
#[inline(always)]
fn portless(ctx: &TcContext, packet: &mut Packet) -> Outcome {
    match related(ctx, packet, HERE) {
        Outcome::Unknown | Outcome::Reject(_) => {}
        // As for answers: the masquerade may have hidden a service's connection.
        Outcome::Ready {
            interface,
            masqueraded: true,
        } => return unless_dropped(related(ctx, packet, HERE), interface),
        outcome => return outcome,
    }
    if lb::is_nobodys(ctx, &packet.tuple.dst) != 0 {
        return Outcome::Drop(Reason::RejectedNoEndpoint);
    }
    match policy::admit_portless(ctx, packet, HERE) {
        Some(reason) => Outcome::Drop(reason),
        None => Outcome::Tracked,
    }
}

/// A packet that no service and no connection claims. One for a pod is tracked, so that
/// the pod's answers are not taken for connections of its own and masqueraded.
#[inline(always)]
fn inbound(ctx: &TcContext, packet: &mut Packet) -> Outcome {
    let answered_for = is_answered_for(packet);
    // SAFETY: an element is readable memory for as long as the program runs.
    if unsafe { ENDPOINTS.get(&packet.tuple.dst) }.is_none() && !answered_for {
        return match lb::is_nobodys(ctx, &packet.tuple.dst) {
            0 => Outcome::Unknown,
            _ => Outcome::Reject(Reason::RejectedNoEndpoint),
        };
    }
    let worth = packet.opens_connection() || answered_for;
    if answered_for {
        direct::make_way(packet);
    }
    if let Outcome::Drop(reason) = enter(ctx, packet, HERE, worth, true) {
        return Outcome::Drop(reason);
    }
    // Asked again, which takes less of the stack than to know it still.
    if is_answered_for(packet) && direct::settle(ctx, packet) == 0 {
        return Outcome::Drop(Reason::DroppedPortsExhausted);
    }
    count(Reason::Forwarded, HERE, ctx.len());
    Outcome::Tracked
}

#[inline(always)]
fn is_answered_for(packet: &Packet) -> bool {
    !packet.is_later_fragment && direct::is_answered_for(packet)
}

#[inline(always)]
fn drop_packet(ctx: &TcContext, packet: &Packet, reason: Reason) -> i32 {
    dropped(ctx, packet, reason, HERE);
    DROP
}
