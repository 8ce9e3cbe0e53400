//! XDP on an uplink (native, kernel 4.8): what may not come in at all is dropped before the
//! kernel spends a buffer on it. Everything else goes on to `from_uplink`, which asks the
//! same questions where a device has no XDP.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use windlass_ebpf_types::{Addr, Direction, Reason, protocol};

use crate::{
    events::count,
    guard,
    lb::{self, Origin},
    parse::{ETH_LEN, ETH_P_IP, ETH_P_IPV6},
};

#[xdp]
pub fn xdp_uplink(ctx: XdpContext) -> u32 {
    let Some(reason) = refuse(&ctx) else {
        return xdp_action::XDP_PASS;
    };
    count(reason, Direction::Xdp, (ctx.data_end() - ctx.data()) as u32);
    xdp_action::XDP_DROP
}

/// What is too short or strange to be judged here is left to the rest of the way.
#[inline(always)]
fn refuse(ctx: &XdpContext) -> Option<Reason> {
    let ip = ETH_LEN as usize;
    let (src, dst, protocol, l4) = match u16::from_be(load::<u16>(ctx, 12)?) {
        ETH_P_IP => {
            let header = load::<[u32; 5]>(ctx, ip)?;
            let length = usize::from(header[0].to_le() as u8 & 0x0f) * 4;
            // A later fragment has no ports; it is useless without its first one.
            let whole = u32::from_be(header[1]) & 0x1fff == 0;
            let protocol = (u32::from_be(header[2]) >> 16) as u8;
            let (src, dst) = (Addr::from_v4_be(header[3]), Addr::from_v4_be(header[4]));
            (
                src,
                dst,
                protocol,
                (whole && length >= 20).then_some(ip + length),
            )
        }
        ETH_P_IPV6 => {
            let header = load::<[u32; 10]>(ctx, ip)?;
            let src = Addr {
                words: [header[2], header[3], header[4], header[5]],
            };
            let dst = Addr {
                words: [header[6], header[7], header[8], header[9]],
            };
            (
                src,
                dst,
                (u32::from_be(header[1]) >> 8) as u8,
                Some(ip + 40),
            )
        }
        _ => return None,
    };
    if guard::is_denied(&src) {
        return Some(Reason::DroppedDenied);
    }
    if !matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return None;
    }
    let ports = load::<u32>(ctx, l4?)?.to_le();
    let service = lb::find(&dst, (ports >> 16) as u16, protocol, Origin::Outside)?;
    (!lb::admits(&service, &src)).then_some(Reason::DroppedSourceRange)
}

/// Reads what lies within the packet.
#[inline(always)]
fn load<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let at = ctx.data() + offset;
    if at + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: between the packet's start and end, as just compared.
    Some(unsafe { core::ptr::read_unaligned(at as *const T) })
}
