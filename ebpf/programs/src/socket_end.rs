//! What is done when a socket that the hooks have translated ends: what it carried is counted for its Service, and
//! what was remembered of it is forgotten, so that only sockets that are open take up room.
//!
//! Nothing sees the packets of such a socket, but TCP itself counts what was received and acknowledged. Asked once,
//! when the connection is over, that costs nothing per packet.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock,
        bpf_sock_ops,
    },
    helpers::{bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set},
    macros::map,
    maps::Array,
};
use windlass_ebpf_types::{Addr, SocketKey, protocol};

use crate::{
    balance,
    maps::{SOCKET_FORWARD, SOCKET_REVERSE},
};

const AF_INET: u32 = 2;
const TCP_CLOSE: u32 = 7;

/// A TCP socket connects: one that a hook has translated is to be heard of again. And then it ends.
#[inline(always)]
pub fn follow(ctx: *mut bpf_sock_ops) {
    // Volatile, here and below: the verifier wants each word of the context read by its own load.
    // SAFETY: the kernel's context, valid for the run of the program.
    let op = unsafe { core::ptr::read_volatile(&raw const (*ctx).op) };
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        if is_connecting(ctx) {
            // SAFETY: the kernel's context. Another program may have asked for something as well.
            unsafe {
                let asked = core::ptr::read_volatile(&raw const (*ctx).bpf_sock_ops_cb_flags);
                bpf_sock_ops_cb_flags_set(ctx, (asked | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
            }
        }
    } else if op == BPF_SOCK_OPS_STATE_CB {
        // SAFETY: as above; the second argument is the new state.
        let state = unsafe { core::ptr::read_volatile(&raw const (*ctx).__bindgen_anon_1.args[1]) };
        if state == TCP_CLOSE {
            ended(ctx);
        }
    }
}

/// By its place the cookie of a socket that has just been translated, and is about to connect: looked for in
/// `SOCKET_REVERSE`, each connection that is none of a Service would miss the cache there. Two that connect in the same
/// instant may share a place: the one that comes too late is not heard of again, which that map is made for.
#[map]
static CONNECTING: Array<u64> = Array::with_max_entries(CONNECTING_PLACES, 0);

/// A power of two.
const CONNECTING_PLACES: u32 = 1 << 10;

#[inline(always)]
fn connecting(cookie: u64) -> Option<*mut u64> {
    CONNECTING.get_ptr_mut(cookie as u32 & (CONNECTING_PLACES - 1))
}

/// A hook has translated a TCP socket: what [`follow`] sees of it next is that it connects.
#[inline(always)]
pub fn expect(cookie: u64) {
    if let Some(place) = connecting(cookie) {
        // SAFETY: an element is memory for as long as the program runs; a whole word is written at once.
        unsafe { core::ptr::write_volatile(place, cookie) };
    }
}

#[inline(always)]
fn is_connecting(ctx: *mut bpf_sock_ops) -> bool {
    // SAFETY: the kernel's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    // SAFETY: as in `expect`.
    connecting(cookie).is_some_and(|place| unsafe { core::ptr::read_volatile(place) } == cookie)
}

#[inline(always)]
fn ended(ctx: *mut bpf_sock_ops) {
    let key = tcp_key(ctx);
    // SAFETY: an element is readable memory for as long as the program runs.
    let Some(vip) = (unsafe { SOCKET_REVERSE.get(&key) }) else {
        return;
    };
    let service = vip.service;
    // SAFETY: the kernel's context.
    let (sent, received) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ctx).bytes_acked),
            core::ptr::read_volatile(&raw const (*ctx).bytes_received),
        )
    };
    balance::count(service, 0, sent, received);
    let _ = SOCKET_REVERSE.remove(&key);
}

#[inline(always)]
fn tcp_key(ctx: *mut bpf_sock_ops) -> SocketKey {
    // SAFETY: the kernel's context.
    unsafe {
        let family = core::ptr::read_volatile(&raw const (*ctx).family);
        let v4 = core::ptr::read_volatile(&raw const (*ctx).remote_ip4);
        let v6 = [
            core::ptr::read_volatile(&raw const (*ctx).remote_ip6[0]),
            core::ptr::read_volatile(&raw const (*ctx).remote_ip6[1]),
            core::ptr::read_volatile(&raw const (*ctx).remote_ip6[2]),
            core::ptr::read_volatile(&raw const (*ctx).remote_ip6[3]),
        ];
        let addr = address(family, v4, v6);
        // A port here is 32 bits in network byte order.
        let port = u32::from_be(core::ptr::read_volatile(&raw const (*ctx).remote_port)) as u16;
        SocketKey {
            cookie: bpf_get_socket_cookie(ctx.cast()),
            addr,
            port: port.to_be(),
            protocol: protocol::TCP,
            pad: [0; 5],
        }
    }
}

/// Of what was read for either family: were only the one read, the compiler would make one load of the two, at an
/// offset that the verifier does not know.
#[inline(always)]
fn address(family: u32, v4: u32, v6: [u32; 4]) -> Addr {
    match family {
        AF_INET => Addr::from_v4_be(v4),
        _ => Addr { words: v6 },
    }
}

/// A socket is closed. One of TCP may have much to say yet, and is heard of when it is over.
#[inline(always)]
pub fn release(ctx: *mut bpf_sock) {
    // SAFETY: the kernel's context.
    unsafe {
        if core::ptr::read_volatile(&raw const (*ctx).protocol) != u32::from(protocol::UDP) {
            return;
        }
        // 0: it was never connected, or is no longer.
        let port = core::ptr::read_volatile(&raw const (*ctx).dst_port);
        if port == 0 {
            return;
        }
        let family = core::ptr::read_volatile(&raw const (*ctx).family);
        let v4 = core::ptr::read_volatile(&raw const (*ctx).dst_ip4);
        let v6 = [
            core::ptr::read_volatile(&raw const (*ctx).dst_ip6[0]),
            core::ptr::read_volatile(&raw const (*ctx).dst_ip6[1]),
            core::ptr::read_volatile(&raw const (*ctx).dst_ip6[2]),
            core::ptr::read_volatile(&raw const (*ctx).dst_ip6[3]),
        ];
        let addr = address(family, v4, v6);
        let key = SocketKey {
            cookie: bpf_get_socket_cookie(ctx.cast()),
            addr,
            port,
            protocol: protocol::UDP,
            pad: [0; 5],
        };
        if let Some(vip) = SOCKET_REVERSE.get(&key) {
            let dialled = SocketKey {
                addr: vip.addr,
                port: vip.port,
                ..key
            };
            let _ = SOCKET_FORWARD.remove(&dialled);
            let _ = SOCKET_REVERSE.remove(&key);
        }
    }
}
