//! tc egress on the host side of a pod's veth: what the host itself sends to the pod.
//! (What comes from other pods or from outside goes in by `bpf_redirect_peer`.) What comes by
//! way of the host's stack from elsewhere meets the pod's policy here.

use core::mem::MaybeUninit;

use aya_ebpf::{macros::classifier, programs::TcContext};
use windlass_ebpf_types::{Direction, JUDGED_MARK, Reason, protocol};

use crate::{
    conntrack,
    deliver::{DROP, NEXT},
    events::{count, dropped},
    icmp::related,
    parse::{Kind, Packet, TCP_SYN, parse},
    policy,
    translate::{Outcome, enter, follow},
};

const HERE: Direction = Direction::ToPod;

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    // A bandwidth-limited pod's, on its way through the queue.
    // SAFETY: the kernel's context.
    if unsafe { (*ctx.skb.skb).mark } == JUDGED_MARK {
        return NEXT;
    }
    let mut place = MaybeUninit::uninit();
    let packet = Packet::clear(&mut place);
    match parse(&ctx, packet) {
        Kind::Flow => {}
        Kind::Portless => {
            match related(&ctx, packet, HERE) {
                Outcome::Ready { .. } | Outcome::Tracked => return NEXT,
                Outcome::Drop(reason) => return drop_packet(&ctx, packet, reason),
                Outcome::Unknown | Outcome::Reject(_) => {}
            }
            return match policy::admit_portless(&ctx, packet, HERE) {
                Some(reason) => drop_packet(&ctx, packet, reason),
                None => NEXT,
            };
        }
        // Too short for its ports: policy cannot be asked, and the pod could do nothing with it.
        Kind::Malformed if policy::is_enforced() => {
            return drop_packet(&ctx, packet, Reason::DroppedMalformed);
        }
        // The rest of what was fragmented is useless without the first, which was judged.
        _ => return NEXT,
    }
    // What has to be known of a connection, both of its first packets tell.
    let tells = packet.tuple.protocol != protocol::TCP || packet.tcp_flags & TCP_SYN != 0;
    let came = packet.tuple;
    // The answer of a backend that is the node itself, to a pod that dialled a service.
    let outcome = match follow(&ctx, packet, HERE) {
        Outcome::Unknown => enter(&ctx, packet, HERE, false, true),
        outcome => outcome,
    };
    if tells {
        conntrack::comes_by_stack(&came);
    }
    match outcome {
        Outcome::Drop(reason) => drop_packet(&ctx, packet, reason),
        Outcome::Unknown | Outcome::Tracked => {
            count(Reason::Forwarded, HERE, ctx.len());
            NEXT
        }
        Outcome::Ready { .. } | Outcome::Reject(_) => NEXT,
    }
}

#[inline(always)]
fn drop_packet(ctx: &TcContext, packet: &Packet, reason: Reason) -> i32 {
    dropped(ctx, packet, reason, HERE);
    DROP
}
