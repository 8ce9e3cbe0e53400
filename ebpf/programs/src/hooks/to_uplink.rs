//! tc egress on an uplink: answers of the node's own sockets to clients of a service,
//! and masquerade of pods that talk to the outside. The tunnel to other nodes is an uplink too: there,
//! what goes on is told where to.

use core::mem::MaybeUninit;

use aya_ebpf::{macros::classifier, programs::TcContext};
use windlass_ebpf_types::{Direction, JUDGED_MARK};

use crate::{
    deliver::{DROP, NEXT},
    events::dropped,
    icmp::related,
    masquerade::masquerade,
    overlay,
    parse::{Kind, Packet, parse},
    policy,
    translate::{Outcome, follow, track},
};

const HERE: Direction = Direction::ToUplink;

#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    // SAFETY: the kernel's context.
    if unsafe { (*ctx.skb.skb).mark } == JUDGED_MARK {
        if !overlay::is_here(&ctx) {
            // Nobody behind this hook is to take it for a mark of their own. The outer packet needs it yet.
            // SAFETY: as above.
            unsafe { (*ctx.skb.skb).mark = 0 };
        }
        return NEXT;
    }
    let verdict = decide(&ctx);
    if verdict == NEXT && overlay::is_here(&ctx) {
        return overlay::encapsulate(&ctx);
    }
    verdict
}

#[inline(always)]
fn decide(ctx: &TcContext) -> i32 {
    let mut place = MaybeUninit::uninit();
    let packet = Packet::clear(&mut place);
    match parse(ctx, packet) {
        Kind::Flow => {}
        Kind::Portless => {
            if let Outcome::Drop(reason) = related(ctx, packet, HERE) {
                dropped(ctx, packet, reason, HERE);
                return DROP;
            }
            return NEXT;
        }
        _ => return NEXT,
    }
    let outcome = match follow(ctx, packet, HERE) {
        Outcome::Unknown => match masquerade(ctx, packet) {
            // A restricted pod gets the answers of what it opened, masqueraded or not.
            Outcome::Unknown if policy::restricts(&packet.tuple.src) => track(ctx, packet, HERE, 0),
            outcome => outcome,
        },
        outcome => outcome,
    };
    match outcome {
        Outcome::Drop(reason) => {
            dropped(ctx, packet, reason, HERE);
            DROP
        }
        _ => NEXT,
    }
}
