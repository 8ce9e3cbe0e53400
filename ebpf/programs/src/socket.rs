//! What the socket hooks share: a local client's connection is translated once, when it
//! is made, and its packets need no translation at all.

use aya_ebpf::{
    Global,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    maps::LruHashMap,
};
use windlass_ebpf_types::{
    Addr, Direction, NetNamespace, Reason, ServiceValue, SocketBackend, SocketKey, SocketVip,
    Tuple, netns, protocol, service_flags,
};

use crate::{
    balance,
    events::{self, count, is_heard},
    lb::{self, Choice, Origin},
    maps::{BACKENDS, NETNS, SOCKET_DATAGRAMS, SOCKET_FORWARD, SOCKET_REVERSE},
    socket_end,
};

/// 1 where the kernel has `bpf_set_retval` (5.18). It is a constant to the verifier,
/// which never looks into the branch that an older kernel could not load.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u32> = Global::new(0);

/// The system call goes on (with whatever address the hook left).
pub const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// A service without endpoints.
const NOBODY: ServiceValue = ServiceValue {
    id: 0,
    count: 0,
    affinity_seconds: 0,
    flags: 0,
    maglev: 0,
};

/// What is remembered of sockets: `SOCKET_REVERSE` or `SOCKET_DATAGRAMS`.
type Sockets = LruHashMap<SocketKey, SocketVip>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// The address in the context, both families in the one form.
#[derive(Clone, Copy)]
pub struct Peer {
    pub addr: Addr,
    pub port: u16,
}

#[inline(always)]
pub fn read_peer(ctx: *mut bpf_sock_addr, family: Family) -> Peer {
    // Volatile: the verifier wants each word of the context read by its own load.
    // SAFETY: the kernel's context, valid for the run of the program.
    unsafe {
        let port = core::ptr::read_volatile(&raw const (*ctx).user_port) as u16;
        let addr = match family {
            Family::V4 => Addr::from_v4_be(core::ptr::read_volatile(&raw const (*ctx).user_ip4)),
            Family::V6 => Addr {
                words: [
                    core::ptr::read_volatile(&raw const (*ctx).user_ip6[0]),
                    core::ptr::read_volatile(&raw const (*ctx).user_ip6[1]),
                    core::ptr::read_volatile(&raw const (*ctx).user_ip6[2]),
                    core::ptr::read_volatile(&raw const (*ctx).user_ip6[3]),
                ],
            },
        };
        Peer { addr, port }
    }
}

#[inline(always)]
pub fn write_peer(ctx: *mut bpf_sock_addr, family: Family, addr: &Addr, port: u16) {
    // SAFETY: as in `read_peer`.
    unsafe {
        match family {
            Family::V4 => core::ptr::write_volatile(&raw mut (*ctx).user_ip4, addr.v4_be()),
            Family::V6 => {
                core::ptr::write_volatile(&raw mut (*ctx).user_ip6[0], addr.words[0]);
                core::ptr::write_volatile(&raw mut (*ctx).user_ip6[1], addr.words[1]);
                core::ptr::write_volatile(&raw mut (*ctx).user_ip6[2], addr.words[2]);
                core::ptr::write_volatile(&raw mut (*ctx).user_ip6[3], addr.words[3]);
            }
        }
        core::ptr::write_volatile(&raw mut (*ctx).user_port, u32::from(port));
    }
}

#[inline(always)]
fn protocol_of(ctx: *mut bpf_sock_addr) -> u8 {
    // SAFETY: as in `read_peer`.
    unsafe { core::ptr::read_volatile(&raw const (*ctx).protocol) as u8 }
}

/// The service that the socket is about to talk to, if it is one of this node's clients,
/// and the namespace that it is a client from.
#[inline(always)]
fn service(ctx: *mut bpf_sock_addr, peer: &Peer) -> Option<(ServiceValue, &'static NetNamespace)> {
    // SAFETY: the kernel's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    // SAFETY: an element is readable memory for as long as the program runs.
    let namespace = unsafe { NETNS.get(&cookie).or_else(|| NETNS.get(&netns::ANY)) }?;
    let origin = if namespace.kind == netns::HOST {
        Origin::Host
    } else {
        Origin::Pod
    };
    let service = match lb::find(&peer.addr, peer.port, protocol_of(ctx), origin) {
        Some(service) => service,
        // Pods' packets are refused where they come out of the pod; and who connects by UDP may only want to know
        // which address that would be from.
        None if origin == Origin::Host
            && protocol_of(ctx) == protocol::TCP
            && lb::is_other_port(&peer.addr) =>
        {
            NOBODY
        }
        None => return None,
    };
    if service.flags & service_flags::LEAST_CONNECTIONS != 0 && passes_tc(namespace) {
        // There the end of a connection is seen as well as its beginning.
        return None;
    }
    Some((service, namespace))
}

/// Whether its packets are translated if its sockets are not: those of a pod that was attached here, whose
/// addresses are known.
#[inline(always)]
fn passes_tc(namespace: &NetNamespace) -> bool {
    namespace.kind == netns::POD
        && (namespace.v4 != Addr::UNSPECIFIED || namespace.v6 != Addr::UNSPECIFIED)
}

/// A backend for a new connection, or why there is none.
#[inline(always)]
fn choose(service: &ServiceValue, peer: &Peer, namespace: &NetNamespace) -> Result<Choice, Reason> {
    if !lb::admits(service, client(peer, namespace)) {
        return Err(Reason::DroppedSourceRange);
    }
    match lb::choose(service, client(peer, namespace), None) {
        Some(choice) => Ok(choice),
        None if service.flags & service_flags::DROP_EMPTY != 0 => {
            Err(Reason::DroppedNoLocalEndpoint)
        }
        None => Err(Reason::RejectedNoEndpoint),
    }
}

/// What the socket's packets will carry as their source.
#[inline(always)]
fn client<'a>(peer: &Peer, namespace: &'a NetNamespace) -> &'a Addr {
    if peer.addr.is_v4() {
        &namespace.v4
    } else {
        &namespace.v6
    }
}

/// Tells of a socket that dials a service, if somebody listens.
#[inline(always)]
fn tell(
    ctx: *mut bpf_sock_addr,
    peer: &Peer,
    namespace: &NetNamespace,
    service: &ServiceValue,
    outcome: Result<&Choice, Reason>,
) {
    if !is_heard() {
        return;
    }
    let dialled = Tuple {
        src: *client(peer, namespace),
        dst: peer.addr,
        dport: peer.port,
        protocol: protocol_of(ctx),
        ..Tuple::EMPTY
    };
    let mut to = dialled;
    if let Ok(choice) = outcome {
        to.dst = choice.backend.addr;
        to.dport = choice.backend.port;
    }
    events::dialled(&dialled, &to, service.id, outcome.err());
}

/// What the system call has to answer.
#[inline(always)]
fn turn_away(namespace: &NetNamespace, reason: Reason) -> i32 {
    if reason as u32 == Reason::RejectedNoEndpoint as u32 {
        refuse()
    } else {
        unanswered(namespace, reason)
    }
}

/// `connect(2)`.
#[inline(always)]
pub fn connect(ctx: *mut bpf_sock_addr, family: Family) -> i32 {
    let peer = read_peer(ctx, family);
    let Some((service, namespace)) = service(ctx, &peer) else {
        return ALLOW;
    };
    let choice = match choose(&service, &peer, namespace) {
        Ok(choice) => choice,
        Err(reason) => {
            tell(ctx, &peer, namespace, &service, Err(reason));
            return turn_away(namespace, reason);
        }
    };
    tell(ctx, &peer, namespace, &service, Ok(&choice));
    count(Reason::NewConnection, Direction::Socket, 0);
    balance::count(service.id, 1, 0, 0);
    if protocol_of(ctx) == protocol::UDP {
        // Datagrams with an address of their own, if it is the same, go where those without one do.
        stay(&key(ctx, &peer.addr, peer.port), &service, &choice);
    }
    let sockets = &SOCKET_REVERSE;
    translate(ctx, family, &peer, namespace, &service, &choice, sockets);
    ALLOW
}

/// A UDP socket's datagrams to a service stay with one backend.
#[inline(always)]
fn stay(key: &SocketKey, service: &ServiceValue, choice: &Choice) {
    let held = SocketBackend {
        service: service.id,
        backend: choice.backend_id,
    };
    let _ = SOCKET_FORWARD.insert(key, &held, 0);
}

/// `sendto(2)`, `sendmsg(2)` with an address on an unconnected UDP socket. The datagrams
/// of one socket to one service stay with one backend for as long as it is a member.
#[inline(always)]
pub fn sendmsg(ctx: *mut bpf_sock_addr, family: Family) -> i32 {
    let peer = read_peer(ctx, family);
    let Some((service, namespace)) = service(ctx, &peer) else {
        return ALLOW;
    };
    let key = key(ctx, &peer.addr, peer.port);
    // SAFETY: a torn read of an LRU element is caught by the membership check.
    if let Some(held) = unsafe { SOCKET_FORWARD.get(&key) } {
        let backend_id = held.backend;
        if held.service == service.id
            && lb::is_member(service.id, backend_id, false)
            // SAFETY: an element is readable memory for as long as the program runs.
            && let Some(backend) = unsafe { BACKENDS.get(&backend_id) }
        {
            write_peer(ctx, family, &backend.addr, backend.port);
            return ALLOW;
        }
    }
    let choice = match choose(&service, &peer, namespace) {
        Ok(choice) => choice,
        Err(reason) => {
            tell(ctx, &peer, namespace, &service, Err(reason));
            return turn_away(namespace, reason);
        }
    };
    tell(ctx, &peer, namespace, &service, Ok(&choice));
    count(Reason::NewConnection, Direction::Socket, 0);
    balance::count(service.id, 1, 0, 0);
    stay(&key, &service, &choice);
    let sockets = &SOCKET_DATAGRAMS;
    translate(ctx, family, &peer, namespace, &service, &choice, sockets);
    ALLOW
}

/// `getpeername(2)`: the application sees the address that it dialled.
#[inline(always)]
pub fn getpeername(ctx: *mut bpf_sock_addr, family: Family) -> i32 {
    let peer = read_peer(ctx, family);
    let key = key(ctx, &peer.addr, peer.port);
    reverse(ctx, family, &key, &SOCKET_REVERSE);
    ALLOW
}

/// `recvmsg(2)`: likewise.
#[inline(always)]
pub fn recvmsg(ctx: *mut bpf_sock_addr, family: Family) -> i32 {
    let peer = read_peer(ctx, family);
    let key = key(ctx, &peer.addr, peer.port);
    if !reverse(ctx, family, &key, &SOCKET_DATAGRAMS) {
        reverse(ctx, family, &key, &SOCKET_REVERSE);
    }
    ALLOW
}

#[inline(always)]
fn reverse(ctx: *mut bpf_sock_addr, family: Family, key: &SocketKey, sockets: &Sockets) -> bool {
    // SAFETY: the value is copied at once; a torn read shows a wrong peer address at worst.
    let Some(vip) = (unsafe { sockets.get(key) }) else {
        return false;
    };
    let vip = *vip;
    write_peer(ctx, family, &vip.addr, vip.port);
    true
}

#[inline(always)]
fn translate(
    ctx: *mut bpf_sock_addr,
    family: Family,
    peer: &Peer,
    namespace: &NetNamespace,
    service: &ServiceValue,
    choice: &Choice,
    sockets: &Sockets,
) {
    let key = key(ctx, &choice.backend.addr, choice.backend.port);
    let vip = SocketVip {
        addr: peer.addr,
        port: peer.port,
        namespace: namespace.tag as u16,
        service: service.id,
        backend: choice.backend_id,
    };
    let _ = sockets.insert(&key, &vip, 0);
    if key.protocol == protocol::TCP {
        socket_end::expect(key.cookie);
    }
    write_peer(ctx, family, &choice.backend.addr, choice.backend.port);
}

#[inline(always)]
fn key(ctx: *mut bpf_sock_addr, addr: &Addr, port: u16) -> SocketKey {
    // SAFETY: the kernel's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    SocketKey {
        cookie,
        addr: *addr,
        port,
        protocol: protocol_of(ctx),
        pad: [0; 5],
    }
}

/// What must get no answer. A pod's packets go out as they are, and tc drops them; the
/// node's own pass no such hook, and are refused with what a lost packet becomes at best.
#[inline(always)]
fn unanswered(namespace: &NetNamespace, reason: Reason) -> i32 {
    if namespace.kind == netns::POD {
        return ALLOW;
    }
    count(reason, Direction::Socket, 0);
    fail(EHOSTUNREACH)
}

#[inline(always)]
fn refuse() -> i32 {
    count(Reason::RejectedNoEndpoint, Direction::Socket, 0);
    fail(ECONNREFUSED)
}

#[inline(always)]
fn fail(errno: i32) -> i32 {
    if HAS_SET_RETVAL.load() == 1 {
        // SAFETY: no precondition.
        unsafe { bpf_set_retval(-errno) };
        return REFUSE;
    }
    // Without it the caller would see EPERM, which no client retries: the packet goes
    // out and tc answers it with a reset or ICMP.
    ALLOW
}
