//! The overlay: packets to what is behind another node travel inside packets between the nodes.
//!
//! One VXLAN device in external mode carries all of them. It knows nothing: no peers, no learning, no
//! flooding. Whoever sends into it is told here which node the outer packet goes to, by a prefix trie that
//! user space keeps at what the Nodes say (their pod CIDRs, and their own addresses, so that a pod and a
//! remote node see each other's real addresses while the network in between sees only nodes).

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_fib_lookup},
    helpers::{
        bpf_check_mtu, bpf_fib_lookup as fib_lookup, bpf_redirect, bpf_skb_change_type,
        bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key,
    },
    macros::map,
    maps::{Array, lpm_trie::Key},
    programs::TcContext,
};
use windlass_ebpf_types::{
    Addr, Direction, JUDGED_MARK, Overlay, Reason, Tunnel, node_address, protocol,
};

use crate::{
    deliver::{DROP, NEXT, PACKET_HOST},
    events::count,
    maps::{ENDPOINTS, NODE_ADDRESSES, OVERLAY, TUNNELS},
    parse::{Packet, ifindex, parse},
};

const TTL: u8 = 64;
/// AF_INET and AF_INET6.
const INET: u8 = 2;
const INET6: u8 = 10;
/// BPF_FIB_LKUP_RET_SUCCESS and BPF_FIB_LKUP_RET_NO_NEIGH: in both cases there is a route.
const ROUTED: [i64; 2] = [0, 7];

/// The head of `struct bpf_tunnel_key`, as far as every kernel takes it: later ones added fields behind it.
#[repr(C)]
struct TunnelKey {
    id: u32,
    /// IPv4 in host byte order in the first word, IPv6 in network byte order.
    remote: [u32; 4],
    tos: u8,
    ttl: u8,
    ext: u16,
    label: u32,
}

impl TunnelKey {
    const EMPTY: Self = Self {
        id: 0,
        remote: [0; 4],
        tos: 0,
        ttl: TTL,
        ext: 0,
        label: 0,
    };
}

/// The device by which something behind another node is reached; 0 for everything else.
#[inline(always)]
pub fn entrance(to: &Addr) -> u32 {
    way(to).map_or(0, |(overlay, _)| overlay.ifindex)
}

/// The tunnel, and the other end of it behind which an address is.
#[inline(always)]
fn way(to: &Addr) -> Option<(&'static Overlay, &'static Tunnel)> {
    let overlay = OVERLAY.get(0)?;
    if overlay.ifindex == 0 {
        return None;
    }
    Some((overlay, tunnel(to)?))
}

#[inline(always)]
fn tunnel(to: &Addr) -> Option<&'static Tunnel> {
    TUNNELS.get(Key::new(128, *to))
}

/// Whether an interface is the tunnel device.
#[inline(always)]
pub fn is_device(ifindex: u32) -> bool {
    OVERLAY
        .get(0)
        .is_some_and(|overlay| ifindex != 0 && overlay.ifindex == ifindex)
}

/// The port that nodes tell each other's packets by; 0: there is no tunnel. Not pinned: the agent that runs knows it.
#[map]
static TUNNEL_PORT: Array<u32> = Array::with_max_entries(1, 0);

/// Whether a packet is the tunnel's, from another node to this one: the kernel's to take apart, and nobody else's. Each
/// connection inside has a source port of its own outside: looked for among the connections, it would miss the cache.
#[inline(always)]
pub fn is_outer(packet: &Packet) -> bool {
    packet.tuple.protocol == protocol::UDP
        && packet.tuple.dport != 0
        && TUNNEL_PORT
            .get(0)
            .is_some_and(|port| *port == u32::from(u16::from_be(packet.tuple.dport)))
        // SAFETY: an element is readable memory for as long as the program runs.
        && unsafe { NODE_ADDRESSES.get(&packet.tuple.dst) }
            .is_some_and(|flags| flags & node_address::FOREIGN_POD == 0)
}

/// Whether this program runs on the tunnel device.
#[inline(always)]
pub fn is_here(ctx: &TcContext) -> bool {
    is_device(ifindex(ctx))
}

/// Sends a packet into the tunnel, if its way leads there. When it `must_fit` and is too large, it is left to
/// the host's routing, which leads there too and answers with what tells the sender the path's MTU. A packet
/// that got this node's own source cannot be left to it: if it is too large, the outer one is fragmented.
///
/// One of a connection that is `known` and admitted needs no second look at the device.
#[inline(always)]
pub fn enter(ctx: &TcContext, to: &Addr, must_fit: bool, known: bool) -> Option<i32> {
    let (overlay, tunnel) = way(to)?;
    let device = overlay.ifindex;
    // Not from the tunnel into the tunnel, or two nodes that disagree would send a packet to and fro for ever.
    // What a node sends on in its own name is its own.
    if must_fit && device == ifindex(ctx) {
        return None;
    }
    let mut length = 0;
    // SAFETY: the kernel's context; `length` is on this stack.
    unsafe {
        if must_fit && bpf_check_mtu(ctx.skb.skb.cast(), device, &raw mut length, 0, 0) != 0 {
            return None;
        }
        if known && address(ctx, overlay, tunnel) {
            (*ctx.skb.skb).mark = JUDGED_MARK;
        }
        Some(bpf_redirect(device, 0) as i32)
    }
}

/// What came out of the tunnel. The frame's Ethernet addresses mean nothing; that its source is behind
/// the node that sent it does. 0: it is not, or it claims to be a pod of this node.
#[inline(never)]
pub fn arrive(ctx: &TcContext, source: &Addr) -> u32 {
    // SAFETY: an element is readable memory for as long as the program runs.
    if unsafe { ENDPOINTS.get(source) }.is_some() {
        return 0;
    }
    if let Some(tunnel) = tunnel(source) {
        let node = tunnel.node;
        let mut key = TunnelKey::EMPTY;
        let family = family_flag(&node);
        // SAFETY: the kernel's context; the key is as long as is said.
        let got = unsafe {
            bpf_skb_get_tunnel_key(
                ctx.skb.skb,
                (&raw mut key).cast(),
                size_of::<TunnelKey>() as u32,
                family,
            )
        };
        if got != 0 || remote(&key, &node) != node {
            return 0;
        }
    }
    // SAFETY: the kernel's context.
    unsafe {
        if (*ctx.skb.skb).pkt_type != PACKET_HOST {
            bpf_skb_change_type(ctx.skb.skb, PACKET_HOST);
        }
    }
    1
}

/// Tells the tunnel device which node this packet goes to. One for nobody is dropped.
#[inline(never)]
pub fn encapsulate(ctx: &TcContext) -> i32 {
    let mut place = MaybeUninit::uninit();
    let packet = Packet::clear(&mut place);
    let _ = parse(ctx, packet);
    if let Some((overlay, tunnel)) = way(&packet.tuple.dst)
        && address(ctx, overlay, tunnel)
    {
        return NEXT;
    }
    count(Reason::DroppedError, Direction::ToUplink, ctx.len());
    DROP
}

/// Writes on a packet what the tunnel device has to know of it.
#[inline(always)]
fn address(ctx: &TcContext, overlay: &Overlay, tunnel: &Tunnel) -> bool {
    let node = tunnel.node;
    let mut key = TunnelKey::EMPTY;
    key.id = overlay.vni;
    let mut flags = family_flag(&node);
    if node.is_v4() {
        key.remote[0] = u32::from_be(node.v4_be());
        // The inner checksum protects what matters; IPv6 has no choice but to have its own.
        flags |= u64::from(BPF_F_ZERO_CSUM_TX);
    } else {
        key.remote = node.words;
    }
    // SAFETY: as in `arrive`.
    let set = unsafe {
        bpf_skb_set_tunnel_key(
            ctx.skb.skb,
            (&raw mut key).cast(),
            size_of::<TunnelKey>() as u32,
            flags,
        )
    };
    set == 0
}

/// As `bpf_fib_lookup` is told it.
#[inline(always)]
pub fn inet_family(addr: &Addr) -> u8 {
    if addr.is_v4() { INET } else { INET6 }
}

#[inline(always)]
fn family_flag(node: &Addr) -> u64 {
    if node.is_v4() {
        0
    } else {
        u64::from(BPF_F_TUNINFO_IPV6)
    }
}

/// The other end of the tunnel that a packet came through, of the family that `like` has.
#[inline(always)]
fn remote(key: &TunnelKey, like: &Addr) -> Addr {
    if like.is_v4() {
        Addr::from_v4_be(key.remote[0].to_be())
    } else {
        Addr { words: key.remote }
    }
}

/// The interface by which the host would forward this packet to `to`: the tunnel, or as its routes say. 0
/// when there is no route.
#[inline(never)]
pub fn egress(ctx: &TcContext, to: &Addr) -> u32 {
    let device = entrance(to);
    if device != 0 {
        return device;
    }
    // SAFETY: all-zero is a valid bpf_fib_lookup.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    params.ifindex = ifindex(ctx);
    params.family = inet_family(to);
    if to.is_v4() {
        params.__bindgen_anon_4.ipv4_dst = to.v4_be();
    } else {
        params.__bindgen_anon_4.ipv6_dst = to.words;
    }
    // SAFETY: the kernel's context; the parameters are as long as is said.
    let result = unsafe {
        fib_lookup(
            ctx.skb.skb.cast(),
            &raw mut params,
            size_of::<bpf_fib_lookup>() as i32,
            0,
        )
    };
    if ROUTED.contains(&result) {
        params.ifindex
    } else {
        0
    }
}
