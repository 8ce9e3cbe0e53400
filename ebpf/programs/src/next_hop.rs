//! The Ethernet addresses of a packet's way on, for XDP, behind which there is no stack that would
//! find them.
//!
//! The kernel is asked once in a while (a lookup costs more than all the rest), and what it said is
//! remembered for each CPU. A neighbour that moves is so followed within [`UNIT`]; packets that open
//! connections go by tc, which uses the kernel's neighbours and so keeps them alive.

use aya_ebpf::{
    bindings::bpf_fib_lookup,
    helpers::{bpf_fib_lookup as fib_lookup, bpf_ktime_get_coarse_ns},
    macros::map,
    maps::PerCpuArray,
};
use windlass_ebpf_types::{Addr, Tuple};

use crate::{context::PacketContext, maps::XDP_UPLINKS, overlay::inet_family};

/// As the kernel said; of this age at most.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NextHop {
    to: Addr,
    /// The interface that it leads out of.
    interface: u32,
    /// How XDP sends there, one of `xdp_uplink`.
    pub how: u32,
    /// When that was, in units of 2^27 ns, 0.13 s; 0: never.
    asked: u32,
    /// The longest IP packet.
    mtu: u32,
    pub target: [u16; 3],
    pub source: [u16; 3],
}

/// A power of two.
const REMEMBERED: u32 = 1 << 10;
const UNIT: u32 = 27;

#[map]
static NEXT_HOPS: PerCpuArray<NextHop> = PerCpuArray::with_max_entries(REMEMBERED, 0);

/// `BPF_FIB_LOOKUP_OUTPUT`: the interface is where the packet leaves, not where it came in.
const LOOKUP_OUTPUT: u32 = 1 << 1;

/// The way of an IP packet of `length` octets that becomes `to` and leaves by `interface`. `None`:
/// there is none, or XDP cannot send there, or the kernel has yet to ask for the neighbour, or the packet does not fit.
#[inline(never)]
pub fn find<C: PacketContext>(
    ctx: &C,
    interface: u32,
    to: &Tuple,
    length: u32,
) -> Option<&'static NextHop> {
    let word = u32::from_be(to.dst.words[3]) ^ to.dst.words[2];
    let place = word.wrapping_mul(0x9e37_79b1) >> (32 - REMEMBERED.trailing_zeros());
    // SAFETY: the element is this CPU's alone, and the program cannot migrate.
    let hop = unsafe { &mut *NEXT_HOPS.get_ptr_mut(place)? };
    // SAFETY: no precondition.
    let now = (unsafe { bpf_ktime_get_coarse_ns() } >> UNIT) as u32;
    let is_known = hop.asked == now && hop.interface == interface && hop.to == to.dst;
    if !is_known {
        hop.asked = 0;
        // SAFETY: an element is readable memory for as long as the program runs.
        hop.how = *unsafe { XDP_UPLINKS.get(&interface) }?;
        ask(ctx, interface, to, length, hop)?;
        hop.to = to.dst;
        hop.interface = interface;
        hop.asked = now;
    }
    (length <= hop.mtu).then_some(hop)
}

#[inline(always)]
fn ask<C: PacketContext>(
    ctx: &C,
    interface: u32,
    to: &Tuple,
    length: u32,
    hop: &mut NextHop,
) -> Option<()> {
    // SAFETY: all-zero is a valid bpf_fib_lookup.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    params.ifindex = interface;
    params.l4_protocol = to.protocol;
    params.sport = to.sport;
    params.dport = to.dport;
    params.__bindgen_anon_1.tot_len = length as u16;
    params.family = inet_family(&to.dst);
    if to.dst.is_v4() {
        params.__bindgen_anon_3.ipv4_src = to.src.v4_be();
        params.__bindgen_anon_4.ipv4_dst = to.dst.v4_be();
    } else {
        params.__bindgen_anon_3.ipv6_src = to.src.words;
        params.__bindgen_anon_4.ipv6_dst = to.dst.words;
    }
    // SAFETY: the kernel's context; the parameters are as long as is said.
    let result = unsafe {
        fib_lookup(
            ctx.kernel(),
            &raw mut params,
            size_of::<bpf_fib_lookup>() as i32,
            LOOKUP_OUTPUT,
        )
    };
    if result != 0 || params.ifindex != interface {
        return None;
    }
    // SAFETY: with a length given, the kernel has put the MTU in its place.
    hop.mtu = u32::from(unsafe { params.__bindgen_anon_1.mtu_result });
    hop.target = pairs(&params.dmac);
    hop.source = pairs(&params.smac);
    Some(())
}

#[inline(always)]
fn pairs(address: &[u8; 6]) -> [u16; 3] {
    [
        u16::from_ne_bytes([address[0], address[1]]),
        u16::from_ne_bytes([address[2], address[3]]),
        u16::from_ne_bytes([address[4], address[5]]),
    ]
}
