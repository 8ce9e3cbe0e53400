//! Service translation of packets: the tc counterpart of the socket hooks, for all that
//! did not pass them (other namespaces' clients, raw sockets, the outside).

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use windlass_ebpf_types::{
    Addr, Connection, Direction, HAIRPIN_V4, HAIRPIN_V6, Reason, ServiceValue, connection, network,
    node_config, service_flags,
};

use crate::{
    balance, conntrack,
    context::PacketContext,
    direct,
    events::count,
    host_socket,
    lb::{self, Origin},
    maps::{ENDPOINTS, NATIVE, NODE_ADDRESSES, NODE_CONFIG, UPLINKS},
    nat, overlay,
    parse::{Packet, ifindex},
    policy,
    scratch::{Dialled, scratch},
};

pub enum Outcome {
    /// No connection and no service: the packet is not ours to change.
    Unknown,
    /// The packet now says what it must. It leaves by this interface, 0 for any.
    Ready {
        interface: u32,
        masqueraded: bool,
    },
    /// The packet's way through the node is known, but not changed.
    Tracked,
    Reject(Reason),
    Drop(Reason),
}

/// Follows a connection, or opens one when the packet is for a service.
#[inline(always)]
pub fn translate(ctx: &TcContext, packet: &mut Packet, direction: Direction) -> Outcome {
    match follow(ctx, packet, direction) {
        Outcome::Unknown => {}
        outcome => return outcome,
    }
    let tuple = &packet.tuple;
    let origin = if direction == Direction::FromUplink {
        Origin::Outside
    } else {
        Origin::Pod
    };
    let Some(service) = lb::find(&tuple.dst, tuple.dport, tuple.protocol, origin) else {
        return if is_of_another_layout(packet, direction) {
            Outcome::Drop(Reason::RejectedUnknownFlow)
        } else {
            Outcome::Unknown
        };
    };
    if !lb::admits(&service, &tuple.src) {
        return Outcome::Drop(Reason::DroppedSourceRange);
    }
    if !packet.opens_connection() && host_socket::has(ctx, packet) != 0 {
        return Outcome::Unknown;
    }
    if !packet.opens_connection()
        && !(direction == Direction::FromUplink && direct::may_adopt(packet, &service))
    {
        return if is_migrating() {
            Outcome::Drop(Reason::RejectedUnknownFlow)
        } else {
            Outcome::Reject(Reason::RejectedUnknownFlow)
        };
    }
    open(ctx, packet, &service, direction)
}

/// While an upgrade switches programs one by one, a connection may have been opened by one
/// that still writes to the old maps. Its packets are dropped until the copy is there, and
/// their sender repeats them: an answer that passes untranslated would end the connection.
#[inline(always)]
fn is_of_another_layout(packet: &Packet, direction: Direction) -> bool {
    direction == Direction::FromPod
        && !packet.opens_connection()
        && is_migrating()
        // SAFETY: only whether it is there matters.
        && unsafe { ENDPOINTS.get(&packet.tuple.dst) }.is_some()
}

#[inline(always)]
fn is_migrating() -> bool {
    NODE_CONFIG
        .get(0)
        .is_some_and(|config| config.flags & node_config::MIGRATING != 0)
}

/// Translates a packet of a connection that is known.
#[inline(always)]
pub fn follow(ctx: &TcContext, packet: &mut Packet, direction: Direction) -> Outcome {
    let Some(entry) = conntrack::hit(packet) else {
        return Outcome::Unknown;
    };
    packet.goes_by_stack = entry.flags & connection::BY_STACK != 0;
    if let Some(reason) = policy::admit(packet, entry, direction) {
        return Outcome::Drop(reason);
    }
    follow_entry(ctx, packet, entry, direction)
}

/// The second translation of a packet whose first one policy has seen.
#[inline(always)]
pub fn follow_on(ctx: &TcContext, packet: &mut Packet, direction: Direction) -> Outcome {
    match conntrack::hit(packet) {
        Some(entry) => follow_entry(ctx, packet, entry, direction),
        None => Outcome::Unknown,
    }
}

#[inline(always)]
fn follow_entry(
    ctx: &TcContext,
    packet: &mut Packet,
    entry: &Connection,
    direction: Direction,
) -> Outcome {
    if entry.flags & connection::UNCHANGED != 0 || is_for_the_uplink(entry, direction) {
        return Outcome::Tracked;
    }
    apply(ctx, packet, entry, direction)
}

/// A pod's connection to the outside gets its new source where it leaves the node, not
/// where it leaves the pod: the host's routing would refuse its own address as a source.
#[inline(always)]
fn is_for_the_uplink(entry: &Connection, direction: Direction) -> bool {
    const WANTED: u32 = connection::MASQUERADED | connection::ORIGINAL;
    direction == Direction::FromPod && entry.service == 0 && entry.flags & WANTED == WANTED
}

/// Chooses a backend, makes the pair of entries, and translates its first packet.
#[inline(always)]
fn open(
    ctx: &TcContext,
    packet: &mut Packet,
    service: &ServiceValue,
    direction: Direction,
) -> Outcome {
    match plan(ctx, packet, service, direction as u32) {
        PLAN_OK => {}
        PLAN_NO_ENDPOINT if service.flags & service_flags::DROP_EMPTY != 0 => {
            return Outcome::Drop(Reason::DroppedNoLocalEndpoint);
        }
        PLAN_NO_ENDPOINT => return Outcome::Reject(Reason::RejectedNoEndpoint),
        PLAN_ERROR => return Outcome::Drop(Reason::DroppedError),
        PLAN_UNKNOWN => return Outcome::Reject(Reason::RejectedUnknownFlow),
        code => {
            let reason = policy::refusal(code);
            return Outcome::Drop(reason.unwrap_or_else(|| conntrack::failure(code)));
        }
    }
    count(Reason::NewConnection, direction, ctx.len());
    balance::count(service.id, 1, 0, 0);
    let Some(scratch) = scratch() else {
        return Outcome::Drop(Reason::DroppedError);
    };
    apply(ctx, packet, &scratch.entry, direction)
}

// What `plan` returns beside the codes of `conntrack::create` and the refusals of `policy::decide`.
const PLAN_OK: u32 = conntrack::CREATE_OK;
const PLAN_NO_ENDPOINT: u32 = 100;
const PLAN_ERROR: u32 = 101;
const PLAN_UNKNOWN: u32 = 102;

/// Decides what the connection becomes and records it; `Scratch::entry` holds the result.
#[inline(never)]
fn plan(ctx: &TcContext, packet: &Packet, service: &ServiceValue, hook: u32) -> u32 {
    let from_outside = hook == Direction::FromUplink as u32;
    let hash = from_outside.then(|| lb::flow_hash(&packet.tuple, service));
    let Some(choice) = lb::choose(service, &packet.tuple.src, hash) else {
        return PLAN_NO_ENDPOINT;
    };
    let policy = policy::revision();
    let verdict = policy::decide(
        &packet.tuple.src,
        &choice.backend.addr,
        u32::from(u16::from_be(choice.backend.port)),
        u32::from(packet.tuple.protocol),
        hook,
    );
    if policy::refusal(verdict).is_some() {
        return verdict;
    }
    {
        let Some(scratch) = scratch() else {
            return PLAN_ERROR;
        };
        let entry = &mut scratch.entry;
        entry.to = packet.tuple;
        entry.to.dst = choice.backend.addr;
        entry.to.dport = choice.backend.port;
        entry.flags = 0;
        entry.service = service.id;
        entry.backend = choice.backend_id;
        entry.ifindex = 0;
        entry.policy = policy;
        if entry.to.src == entry.to.dst {
            entry.to.src = if packet.is_v4 { HAIRPIN_V4 } else { HAIRPIN_V6 };
        }
    }
    let mut reply_ifindex = 0;
    if from_outside {
        // The answer carries an address that the host's routing would refuse as a
        // source from elsewhere: it leaves where the request came in.
        reply_ifindex = ifindex(ctx);
        let code = plan_from_outside(ctx, packet);
        if code != PLAN_OK {
            return code;
        }
    }
    if !packet.opens_connection() {
        direct::succeed(packet);
    }
    let code = conntrack::create(&packet.tuple, reply_ifindex);
    if code == conntrack::CREATE_NO_PORT && !packet.opens_connection() {
        return PLAN_UNKNOWN;
    }
    if code == PLAN_OK && service.flags & service_flags::LEAST_CONNECTIONS != 0 {
        balance::begin(service.id, choice.backend_id);
    }
    code
}

/// How `Scratch::entry`, of a client outside, gets to its backend and its answers back.
#[inline(never)]
fn plan_from_outside(ctx: &TcContext, packet: &Packet) -> u32 {
    let Some(scratch) = scratch() else {
        return PLAN_ERROR;
    };
    let entry = &mut scratch.entry;
    if !packet.opens_connection() {
        entry.flags = connection::ADOPTED;
    }
    if is_on_this_node(&entry.to.dst) {
        return PLAN_OK;
    }
    // The answer must come back through here, so the source becomes ours: the one on
    // the way to the backend, which need not be the way that the request came.
    let mut way = overlay::egress(ctx, &entry.to.dst);
    if way == 0 {
        way = ifindex(ctx);
    }
    entry.ifindex = way;
    if direct::takes(ctx, packet, way) {
        // The answer is not ours to see; the client's next packet tells that there was one.
        entry.flags |= connection::FORWARDED | connection::REPLIED;
        return PLAN_OK;
    }
    if entry.flags & connection::ADOPTED != 0 {
        // Whoever sent it on until now did so in a name of its own, which the backend knows.
        return PLAN_UNKNOWN;
    }
    let Some(own) =
        uplink_address(way, packet.is_v4).or_else(|| uplink_address(ifindex(ctx), packet.is_v4))
    else {
        return PLAN_ERROR;
    };
    entry.to.src = own;
    entry.flags = connection::MASQUERADED;
    PLAN_OK
}

/// A packet that no connection and no service claims: policy decides, and what it lets pass is
/// tracked if it is `worth` it, or if it `may` be and policy can know its answers only so.
#[inline(always)]
pub fn enter(
    ctx: &TcContext,
    packet: &mut Packet,
    direction: Direction,
    worth: bool,
    may: bool,
) -> Outcome {
    let revision = policy::revision();
    let code = policy::decide_packet(packet, direction);
    if let Some(reason) = policy::refusal(code) {
        return Outcome::Drop(reason);
    }
    if worth || (may && code == policy::ALLOW_TRACKED) {
        track(ctx, packet, direction, revision)
    } else {
        Outcome::Unknown
    }
}

/// Records a flow to a pod or node that needs no translation, so that its answers are known
/// as such: not taken for a connection of the pod's own and masqueraded, nor for answers of
/// a service's connection that has (or had) the same ports. In that case the flow is
/// translated all the same: it gets a source port of its own.
#[inline(always)]
pub fn track(ctx: &TcContext, packet: &mut Packet, direction: Direction, revision: u32) -> Outcome {
    let Some(entry) = prepare(packet, 0) else {
        return Outcome::Drop(Reason::DroppedError);
    };
    entry.policy = revision;
    match conntrack::create(&packet.tuple, 0) {
        conntrack::CREATE_OK if entry.flags & connection::UNCHANGED != 0 => Outcome::Tracked,
        conntrack::CREATE_OK => apply(ctx, packet, entry, direction),
        // It does not depend on the entry as a translated one does.
        conntrack::CREATE_FULL => {
            count(Reason::PassedUntracked, direction, ctx.len());
            Outcome::Tracked
        }
        code => Outcome::Drop(conntrack::failure(code)),
    }
}

/// `Scratch::entry` for a connection without a service, still as the packet says.
#[inline(always)]
pub fn prepare(packet: &Packet, flags: u32) -> Option<&'static mut Connection> {
    let entry = &mut scratch()?.entry;
    entry.to = packet.tuple;
    entry.flags = flags;
    entry.service = 0;
    entry.backend = 0;
    entry.ifindex = 0;
    entry.policy = 0;
    Some(entry)
}

/// Makes the packet what its entry says.
#[inline(always)]
pub fn apply<C: PacketContext>(
    ctx: &C,
    packet: &mut Packet,
    entry: &Connection,
    direction: Direction,
) -> Outcome {
    let (interface, flags, service) = (entry.ifindex, entry.flags, entry.service);
    let is_adopted =
        flags & connection::ADOPTED != 0 && conntrack::now().wrapping_sub(entry.created) <= 1;
    const FORWARDS: u32 = connection::FORWARDED | connection::ORIGINAL;
    let from_outside = matches!(direction, Direction::FromUplink | Direction::Xdp);
    let forwards = from_outside && flags & FORWARDS == FORWARDS;
    if forwards && let Some(scratch) = scratch() {
        scratch.dialled = Dialled {
            addr: packet.tuple.dst,
            port: packet.tuple.dport,
            pad: 0,
            service,
        };
    }
    // What goes by a redirect, to a pod or by an interface, passes no stack that would do it. Who sent the last hop from
    // outside has been told.
    let mut hops = packet.hops;
    if (from_outside || interface != 0) && hops > 1 {
        hops -= 1;
    }
    if !nat::rewrite(ctx, packet, &entry.to, hops) {
        return Outcome::Drop(Reason::DroppedError);
    }
    if forwards && !direct::mark(ctx, packet, interface, is_adopted) {
        return Outcome::Drop(Reason::DroppedError);
    }
    count(Reason::Translated, direction, ctx.length());
    if service != 0 {
        let original = flags & connection::ORIGINAL != 0;
        let (asked, answered) = if original {
            (u64::from(ctx.length()), 0)
        } else {
            (0, u64::from(ctx.length()))
        };
        balance::count(service, 0, asked, answered);
    }
    Outcome::Ready {
        interface,
        // What a service's connection got in place of its source hides nothing behind it.
        masqueraded: service == 0 && flags & connection::MASQUERADED != 0,
    }
}

/// Whether a destination sees a pod's own address: the cluster's networks, this node.
#[inline(always)]
pub fn is_native(addr: &Addr) -> bool {
    // The prefixes cost the most to ask.
    is_on_this_node(addr) || is_in_native_network(addr)
}

#[inline(always)]
pub fn is_in_native_network(addr: &Addr) -> bool {
    network_of(addr) == network::NATIVE
}

/// One of [`network`], 0 for all that is neither.
#[inline(always)]
pub fn network_of(addr: &Addr) -> u32 {
    NATIVE.get(Key::new(128, *addr)).copied().unwrap_or(0)
}

#[inline(always)]
pub fn is_on_this_node(addr: &Addr) -> bool {
    // SAFETY: an element is readable memory for as long as the program runs.
    unsafe { ENDPOINTS.get(addr).is_some() || NODE_ADDRESSES.get(addr).is_some() }
}

/// The address that stands for the node on an uplink, if it has one of this family.
#[inline(always)]
pub fn uplink_address(ifindex: u32, is_v4: bool) -> Option<Addr> {
    // SAFETY: an element is readable memory for as long as the program runs.
    let uplink = unsafe { UPLINKS.get(&ifindex) }?;
    let addr = if is_v4 { uplink.v4 } else { uplink.v6 };
    (addr != Addr::UNSPECIFIED).then_some(addr)
}
