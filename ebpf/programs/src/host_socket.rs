//! Sockets of the host that dial out, and have drawn a port that a Service has on the node's addresses (a pod's host port may
//! be any): what comes back to them is theirs, although no connection is known by it.

use aya_ebpf::{
    bindings::{
        bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as TupleV4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as TupleV6,
    },
    helpers::{bpf_sk_lookup_tcp, bpf_sk_release},
    programs::TcContext,
};
use windlass_ebpf_types::protocol;

use crate::parse::Packet;

/// `BPF_F_CURRENT_NETNS`: that of the interface.
const HERE: u64 = u64::MAX;
/// `BPF_TCP_LISTEN`
const LISTEN: u32 = 10;

/// Whether a packet in mid-connection is a connection's of the host.
#[inline(never)]
pub fn has(ctx: &TcContext, packet: &Packet) -> u32 {
    let tuple = &packet.tuple;
    if tuple.protocol != protocol::TCP {
        return 0;
    }
    // SAFETY: all-zero is a valid bpf_sock_tuple.
    let mut asked: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if packet.is_v4 {
        let v4 = TupleV4 {
            saddr: tuple.src.v4_be(),
            daddr: tuple.dst.v4_be(),
            sport: tuple.sport,
            dport: tuple.dport,
        };
        asked.__bindgen_anon_1.ipv4 = v4;
        size_of::<TupleV4>()
    } else {
        let v6 = TupleV6 {
            saddr: tuple.src.words,
            daddr: tuple.dst.words,
            sport: tuple.sport,
            dport: tuple.dport,
        };
        asked.__bindgen_anon_1.ipv6 = v6;
        size_of::<TupleV6>()
    };
    // SAFETY: the kernel's context; the tuple is as long as is said. What is found is given back.
    unsafe {
        let socket = bpf_sk_lookup_tcp(ctx.skb.skb.cast(), &raw mut asked, size as u32, HERE, 0);
        if socket.is_null() {
            return 0;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        u32::from(state != LISTEN)
    }
}
