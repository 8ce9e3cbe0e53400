//! The Ethernet addresses of a packet's way on, for those that do not go by the host's stack, which would find them.
//!
//! The kernel is asked once in a while (a lookup costs more than all the rest), and what it said is
//! remembered for each CPU. A neighbour that moves is so followed within [`UNIT`]; packets that open
//! connections, and of others one in each [`UNIT`], go by the stack, which uses the kernel's neighbours and so
//! keeps them alive.

use aya_ebpf::{
    bindings::bpf_fib_lookup,
    helpers::{bpf_fib_lookup as fib_lookup, bpf_ktime_get_coarse_ns},
    macros::map,
    maps::PerCpuArray,
    programs::TcContext,
};
use windlass_ebpf_types::{Addr, Tuple};

use crate::{
    context::PacketContext,
    maps::{UPLINKS, XDP_UPLINKS},
    overlay::inet_family,
    translate::is_native,
};

/// As the kernel said; of this age at most.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NextHop {
    to: Addr,
    /// The interface that was asked about: by which the packet has to leave, or by which it came in.
    about: u32,
    /// The interface that it leads out of; 0: the host's stack knows best.
    pub interface: u32,
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
    let now = now();
    let hop = remembered(&to.dst, interface)?;
    if !hop.says(&to.dst, interface, now) {
        hop.asked = 0;
        // SAFETY: an element is readable memory for as long as the program runs.
        hop.how = *unsafe { XDP_UPLINKS.get(&interface) }?;
        if ask(ctx, interface, LOOKUP_OUTPUT, to, length, hop) != Ok(interface) {
            return None;
        }
        hop.remember(&to.dst, interface, interface, now);
    }
    hop.takes(length).then_some(hop)
}

/// The way on of a packet that came in here from a pod, as the host would forward it to another node of the
/// cluster by one of the uplinks, and whether the kernel has just been asked: then this packet is to tell its neighbour
/// table that the neighbour is still in use. `None`: not so.
#[inline(always)]
pub fn onward(ctx: &TcContext, to: &Tuple) -> Option<(&'static NextHop, bool)> {
    let now = now();
    let about = ctx.interface();
    let hop = remembered(&to.dst, about)?;
    if hop.says(&to.dst, about, now) {
        return (hop.interface != 0).then_some((hop, false));
    }
    hop.asked = 0;
    let mut interface = 0;
    if is_native(&to.dst) {
        match ask(ctx, about, 0, to, SHORT, hop) {
            // SAFETY: only whether it is there matters.
            Ok(out) if unsafe { UPLINKS.get(&out) }.is_some() => interface = out,
            // As soon as the stack has found the neighbour.
            Err(NO_NEIGHBOUR) => return None,
            // To the node itself, or nowhere.
            Ok(_) | Err(_) => {}
        }
    }
    hop.remember(&to.dst, about, interface, now);
    (interface != 0).then_some((hop, true))
}

/// So long that the kernel tells the way's MTU, and so short that every packet fits.
const SHORT: u32 = 20;

#[inline(always)]
fn now() -> u32 {
    // SAFETY: no precondition.
    (unsafe { bpf_ktime_get_coarse_ns() } >> UNIT) as u32
}

/// Where what is known of a way is, or of another one.
#[inline(always)]
fn remembered(to: &Addr, about: u32) -> Option<&'static mut NextHop> {
    let word = u32::from_be(to.words[3]) ^ to.words[2] ^ about << 16;
    let place = word.wrapping_mul(0x9e37_79b1) >> (32 - REMEMBERED.trailing_zeros());
    // SAFETY: the element is this CPU's alone, and the program cannot migrate.
    NEXT_HOPS.get_ptr_mut(place).map(|hop| unsafe { &mut *hop })
}

impl NextHop {
    /// Whether this is what the kernel says now.
    #[inline(always)]
    fn says(&self, to: &Addr, about: u32, now: u32) -> bool {
        self.asked == now && self.about == about && self.to == *to
    }

    #[inline(always)]
    fn remember(&mut self, to: &Addr, about: u32, interface: u32, now: u32) {
        self.to = *to;
        self.about = about;
        self.interface = interface;
        self.asked = now;
    }

    /// Whether an IP packet of `length` octets passes without being cut.
    #[inline(always)]
    pub fn takes(&self, length: u32) -> bool {
        length <= self.mtu
    }
}

/// `BPF_FIB_LKUP_RET_NO_NEIGH`.
const NO_NEIGHBOUR: i64 = 7;

/// Fills in what the kernel says; returns the interface that the packet leaves by, or why there is none
/// (`BPF_FIB_LKUP_RET_*`).
#[inline(always)]
fn ask<C: PacketContext>(
    ctx: &C,
    interface: u32,
    flags: u32,
    to: &Tuple,
    length: u32,
    hop: &mut NextHop,
) -> Result<u32, i64> {
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
            flags,
        )
    };
    if result != 0 {
        return Err(result);
    }
    // SAFETY: with a length given, the kernel has put the MTU in its place.
    hop.mtu = u32::from(unsafe { params.__bindgen_anon_1.mtu_result });
    hop.target = pairs(&params.dmac);
    hop.source = pairs(&params.smac);
    Ok(params.ifindex)
}

#[inline(always)]
fn pairs(address: &[u8; 6]) -> [u16; 3] {
    [
        u16::from_ne_bytes([address[0], address[1]]),
        u16::from_ne_bytes([address[2], address[3]]),
        u16::from_ne_bytes([address[4], address[5]]),
    ]
}
