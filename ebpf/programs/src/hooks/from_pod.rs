//! tc ingress on the host side of a pod's veth: everything that the pod sends.

use core::mem::MaybeUninit;

use aya_ebpf::{macros::classifier, programs::TcContext};
use windlass_ebpf_types::{Addr, Direction, Reason, protocol};

use crate::{
    announce, arp,
    deliver::{DROP, NEXT, deliver, deliver_known},
    events::{count, dropped},
    icmp::related,
    lb,
    maps::ENDPOINTS,
    parse::{Kind, Packet, ifindex, parse},
    policy,
    reject::reject,
    translate::{Outcome, enter, is_native, translate},
};

const HERE: Direction = Direction::FromPod;

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let mut place = MaybeUninit::uninit();
    let packet = Packet::clear(&mut place);
    let kind = parse(&ctx, packet);
    match kind {
        Kind::Arp => return arp::from_pod(&ctx),
        Kind::Other => return NEXT,
        Kind::Malformed => {
            dropped(&ctx, packet, Reason::DroppedMalformed, HERE);
            return DROP;
        }
        Kind::Flow | Kind::Fragment | Kind::Portless => {}
    }
    if !owns_source(&ctx, packet) {
        if is_link_local_v6(&packet.tuple.src) {
            // Neighbour discovery; it goes no further than the host's side of the pair.
            return NEXT;
        }
        dropped(&ctx, packet, Reason::DroppedSpoofedSource, HERE);
        return DROP;
    }
    match kind {
        Kind::Flow => {}
        Kind::Fragment => {
            count(Reason::FragmentPassed, HERE, ctx.len());
            return NEXT;
        }
        _ => {
            if packet.tuple.protocol == protocol::ICMPV6 && !packet.is_icmp_error {
                let answer = announce::answer_solicitation(&ctx, true);
                if answer != NEXT {
                    return answer;
                }
            }
            match related(&ctx, packet, HERE) {
                Outcome::Ready { interface, .. } => return deliver(&ctx, packet, interface, HERE),
                Outcome::Tracked => return deliver(&ctx, packet, 0, HERE),
                Outcome::Drop(reason) => {
                    dropped(&ctx, packet, reason, HERE);
                    return DROP;
                }
                Outcome::Unknown | Outcome::Reject(_) => {}
            }
            if let Some(reason) = policy::admit_portless(&ctx, packet, HERE) {
                dropped(&ctx, packet, reason, HERE);
                return DROP;
            }
            return deliver(&ctx, packet, 0, HERE);
        }
    }
    let outcome = match translate(&ctx, packet, HERE) {
        Outcome::Unknown => {
            let opens = opens_tracked_flow(packet);
            // Connections to the outside are the uplink's to track.
            let native = (opens || policy::is_enforced()) && is_native(&packet.tuple.dst);
            if !native && asks(packet) && lb::is_other_port(&packet.tuple.dst) {
                Outcome::Reject(Reason::RejectedNoEndpoint)
            } else {
                enter(&ctx, packet, HERE, opens && native, native)
            }
        }
        outcome => outcome,
    };
    match outcome {
        Outcome::Unknown => {
            count(Reason::Forwarded, HERE, ctx.len());
            deliver(&ctx, packet, 0, HERE)
        }
        Outcome::Tracked => {
            count(Reason::Forwarded, HERE, ctx.len());
            deliver_known(&ctx, packet, 0, HERE)
        }
        Outcome::Ready { interface, .. } => deliver_known(&ctx, packet, interface, HERE),
        Outcome::Reject(reason) => reject(&ctx, packet, reason, HERE),
        Outcome::Drop(reason) => {
            dropped(&ctx, packet, reason, HERE);
            DROP
        }
    }
}

/// Whether somebody waits for an answer.
#[inline(always)]
fn asks(packet: &Packet) -> bool {
    packet.opens_connection() && !packet.is_icmp_reply
}

/// An ICMP echo has nothing that another connection could be taken for.
#[inline(always)]
fn opens_tracked_flow(packet: &Packet) -> bool {
    packet.opens_connection()
        && packet.tuple.protocol != protocol::ICMP
        && packet.tuple.protocol != protocol::ICMPV6
}

#[inline(always)]
fn owns_source(ctx: &TcContext, packet: &Packet) -> bool {
    // SAFETY: an element is readable memory for as long as the program runs.
    unsafe { ENDPOINTS.get(&packet.tuple.src) }
        .is_some_and(|endpoint| endpoint.ifindex == ifindex(ctx))
}

/// fe80::/10, and `::` as duplicate address detection sends it.
#[inline(always)]
fn is_link_local_v6(addr: &Addr) -> bool {
    !addr.is_v4()
        && (u32::from_be(addr.words[0]) & 0xffc0_0000 == 0xfe80_0000 || *addr == Addr::UNSPECIFIED)
}
