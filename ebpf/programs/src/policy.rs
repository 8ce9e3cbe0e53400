//! Policy: whether a packet may pass, by classes and identities that user space has put into
//! the maps (see `windlass_ebpf_types::policy`).
//!
//! What is judged is a connection, in the direction in which it was opened: answers pass
//! because of their connection's entry. The entry carries the revision of the tables under
//! which it was admitted, so that a packet of a known connection costs one comparison, and
//! every connection is judged again when a policy changes.
//!
//! Both ends are judged where a packet enters the node's datapath, since
//! `bpf_redirect_peer` skips the target's own hook. The target's hook judges what comes by
//! way of the host's stack.

use aya_ebpf::{maps::lpm_trie::Key, programs::TcContext};
use windlass_ebpf_types::{
    Addr, Connection, Direction, PolicyDecision, PolicyPeer, PolicyPortKey, PolicyVerdict, Reason,
    Tuple, VerdictKey, connection, decision, policy_peer, protocol,
};

use crate::{
    events::audited,
    maps::{
        NODE_ADDRESSES, POLICY_NETWORKS, POLICY_PEERS, POLICY_PODS, POLICY_PORTS, POLICY_STATE,
        POLICY_VERDICTS,
    },
    parse::Packet,
    scratch::scratch,
};

// Results of [`decide`]: plain numbers, since it is a function of its own to the verifier.
/// No policy has to do with either end.
pub const ALLOW: u32 = 0;
/// Allowed; its answers are only if the connection is tracked.
pub const ALLOW_TRACKED: u32 = 1;
/// All codes from here on mean that the packet must be dropped.
pub const DENY_EGRESS: u32 = 200;
const DENY_INGRESS: u32 = 201;
const DENY_UNKNOWN: u32 = 202;

/// The reason to count for a result of [`decide`]; none: the packet may pass.
#[inline(always)]
pub fn refusal(code: u32) -> Option<Reason> {
    match code {
        DENY_EGRESS => Some(Reason::PolicyDeniedEgress),
        DENY_INGRESS => Some(Reason::PolicyDeniedIngress),
        DENY_UNKNOWN => Some(Reason::IdentityUnknown),
        _ => None,
    }
}

/// The revision of the tables; to be read before they are asked.
#[inline(always)]
pub fn revision() -> u32 {
    POLICY_STATE.get(0).map_or(0, |state| state.revision)
}

/// Whether any pod of this node is subject to a policy.
#[inline(always)]
pub fn is_enforced() -> bool {
    POLICY_STATE.get(0).is_some_and(|state| state.enforced != 0)
}

/// Whether a policy has to do with the pod at this address.
#[inline(always)]
pub fn restricts(addr: &Addr) -> bool {
    // SAFETY: only whether it is there matters.
    is_enforced() && unsafe { POLICY_PODS.get(addr) }.is_some()
}

/// Whether a packet of a known connection may pass; returns the reason to drop it for.
#[inline(always)]
pub fn admit(packet: &Packet, entry: &mut Connection, direction: Direction) -> Option<Reason> {
    let revision = revision();
    if entry.policy == revision {
        return None;
    }
    let reason = refusal(judge(packet, entry, direction as u32));
    if reason.is_none() {
        entry.policy = revision;
    }
    reason
}

/// Judges a known connection anew, whichever of its directions the packet belongs to.
#[inline(never)]
fn judge(packet: &Packet, entry: &Connection, hook: u32) -> u32 {
    let tuple = &packet.tuple;
    let protocol = u32::from(tuple.protocol);
    if entry.flags & connection::ORIGINAL != 0 {
        let port = u32::from(u16::from_be(entry.to.dport));
        decide(&tuple.src, &entry.to.dst, port, protocol, hook)
    } else {
        let port = u32::from(u16::from_be(tuple.sport));
        decide(&entry.to.dst, &tuple.src, port, protocol, hook)
    }
}

/// Judges a packet that belongs to no connection, as one that opens it.
#[inline(always)]
pub fn decide_packet(packet: &Packet, direction: Direction) -> u32 {
    let tuple = &packet.tuple;
    let port = u32::from(u16::from_be(tuple.dport));
    let protocol = u32::from(tuple.protocol);
    decide(&tuple.src, &tuple.dst, port, protocol, direction as u32)
}

/// Whether `client` may open a connection to `server`, which is a Service's backend rather
/// than its address. `port` in host byte order, `hook` a [`Direction`].
#[inline(never)]
pub fn decide(client: &Addr, server: &Addr, port: u32, protocol: u32, hook: u32) -> u32 {
    // A pod cannot be kept from itself.
    if !is_enforced() || *client == *server {
        return ALLOW;
    }
    let mut result = ALLOW;
    // SAFETY: an element is readable memory for as long as the program runs.
    if let Some(pod) = unsafe { POLICY_PODS.get(client) } {
        result = ALLOW_TRACKED;
        if pod.egress != 0 {
            let found = find(pod.egress, server, port, protocol);
            audit(found, hook, client, server, port, protocol);
            if found & decision::ALLOW == 0 {
                return denial(found, DENY_EGRESS);
            }
        }
    }
    // SAFETY: as above.
    if let Some(pod) = unsafe { POLICY_PODS.get(server) } {
        result = ALLOW_TRACKED;
        if pod.ingress != 0 && !is_host(client, hook) {
            let found = find(pod.ingress, client, port, protocol);
            audit(found, hook, client, server, port, protocol);
            if found & decision::ALLOW == 0 {
                return denial(found, DENY_INGRESS);
            }
        }
    }
    result
}

/// A bit beside those of [`decision`]: nothing is known of the peer.
const UNKNOWN_PEER: u32 = 1 << 31;

#[inline(always)]
fn denial(found: u32, code: u32) -> u32 {
    if found & UNKNOWN_PEER != 0 {
        DENY_UNKNOWN
    } else {
        code
    }
}

#[inline(always)]
fn audit(found: u32, hook: u32, client: &Addr, server: &Addr, port: u32, protocol: u32) {
    if found & decision::AUDIT != 0 {
        let direction = match hook {
            0 => Direction::FromPod,
            1 => Direction::ToPod,
            _ => Direction::FromUplink,
        };
        let flow = Tuple {
            src: *client,
            dst: *server,
            dport: (port as u16).to_be(),
            protocol: protocol as u8,
            ..Tuple::EMPTY
        };
        audited(&flow, direction);
    }
}

/// The node reaches its own pods always: it probes them. A packet that comes in by an uplink
/// is not the node's, whatever it says.
#[inline(always)]
fn is_host(client: &Addr, hook: u32) -> bool {
    (hook == Direction::FromPod as u32 || hook == Direction::ToPod as u32)
        // SAFETY: only whether it is there matters.
        && unsafe { NODE_ADDRESSES.get(client) }.is_some()
}

/// What a class says about a peer: bits of [`decision`], and [`UNKNOWN_PEER`]. Who decided
/// is left in `Scratch::rule`.
#[inline(never)]
fn find(class: u64, peer: &Addr, port: u32, protocol: u32) -> u32 {
    let peer = peer_of(peer);
    let mut key = VerdictKey {
        class,
        identity: peer.identity,
    };
    // SAFETY: an element is readable memory for as long as the program runs.
    let verdict: PolicyVerdict = match unsafe { POLICY_VERDICTS.get(&key) } {
        Some(verdict) => *verdict,
        None => {
            key.identity = 0;
            // SAFETY: as above.
            match unsafe { POLICY_VERDICTS.get(&key) } {
                Some(verdict) => *verdict,
                // Between two writes of user space, or there was no room: closed rather than open.
                None => {
                    if let Some(scratch) = scratch() {
                        scratch.rule = 0;
                    }
                    return 0;
                }
            }
        }
    };
    let decision = by_port(&verdict, port, protocol);
    if decision.flags != decision::ALLOW
        && let Some(scratch) = scratch()
    {
        scratch.rule = decision.rule;
    }
    // An address of the pod networks that is listed has an element in `POLICY_PEERS`.
    let unknown = if peer.flags & policy_peer::POD_NETWORK != 0 {
        UNKNOWN_PEER
    } else {
        0
    };
    decision.flags | unknown
}

#[inline(always)]
fn peer_of(addr: &Addr) -> PolicyPeer {
    // SAFETY: an element is readable memory for as long as the program runs.
    if let Some(peer) = unsafe { POLICY_PEERS.get(addr) } {
        return *peer;
    }
    match POLICY_NETWORKS.get(Key::new(128, *addr)) {
        Some(peer) => *peer,
        None => PolicyPeer {
            identity: 0,
            flags: 0,
            pad: 0,
        },
    }
}

#[inline(always)]
fn by_port(verdict: &PolicyVerdict, port: u32, protocol: u32) -> PolicyDecision {
    if verdict.ports != 0 {
        let key = PolicyPortKey::new(verdict.ports, protocol as u8, (port as u16).to_be());
        if let Some(decision) = POLICY_PORTS.get(Key::new(PolicyPortKey::BITS, key)) {
            return *decision;
        }
    }
    verdict.decision
}

/// Judges a packet without ports: a protocol that has none, or an ICMP message other than an
/// echo. Returns the reason to drop it for.
#[inline(always)]
pub fn admit_portless(ctx: &TcContext, packet: &Packet, direction: Direction) -> Option<Reason> {
    if !is_enforced() || passes_always(ctx, packet) {
        return None;
    }
    refusal(decide_packet(packet, direction))
}

/// Messages that a network does not work without: errors (path MTU) on behalf of connections
/// that were allowed, and the neighbour discovery between a pod and its node.
#[inline(always)]
fn passes_always(ctx: &TcContext, packet: &Packet) -> bool {
    let kind = ctx.load::<u8>(packet.l4 as usize).unwrap_or(0);
    match packet.tuple.protocol {
        // Destination unreachable, time exceeded, parameter problem.
        protocol::ICMP => matches!(kind, 3 | 11 | 12),
        // Errors, and solicitations and advertisements of routers and neighbours.
        protocol::ICMPV6 => matches!(kind, 1..=4 | 133..=136),
        _ => false,
    }
}
