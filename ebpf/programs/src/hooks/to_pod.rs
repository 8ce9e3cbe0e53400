//! tc egress on the host side of a pod's veth: what the host itself sends to the pod.
//! (What comes from other pods or from outside goes in by `bpf_redirect_peer`.)

use aya_ebpf::{macros::classifier, programs::TcContext};
use windlass_ebpf_types::{Direction, Reason};

use crate::{
    deliver::{DROP, NEXT},
    events::count,
    parse::{Kind, Packet, parse},
    translate::{Outcome, follow},
};

const HERE: Direction = Direction::ToPod;

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    let mut packet = Packet::EMPTY;
    if !matches!(parse(&ctx, &mut packet), Kind::Flow) {
        return NEXT;
    }
    // The answer of a backend that is the node itself, to a pod that dialled a service.
    match follow(&ctx, &mut packet, HERE) {
        Outcome::Drop(reason) => {
            count(reason, HERE, ctx.len());
            DROP
        }
        Outcome::Unknown | Outcome::Tracked => {
            count(Reason::Forwarded, HERE, ctx.len());
            NEXT
        }
        Outcome::Ready { .. } | Outcome::Reject(_) => NEXT,
    }
}
