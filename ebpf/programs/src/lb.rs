//! Load balancing: from what a client dials to the backend that serves it.

use aya_ebpf::{helpers::bpf_get_prandom_u32, maps::lpm_trie::Key, programs::TcContext};
use windlass_ebpf_types::{
    Addr, AffinityKey, AffinityValue, BackendValue, MemberKey, RangeKey, ServiceKey, ServiceValue,
    SlotKey, Tuple, member, node_address, node_config, scope, service_flags,
};

use crate::{
    announce, balance,
    conntrack::now,
    maps::{
        AFFINITY, BACKENDS, MAGLEV, MEMBERS, NODE_ADDRESSES, NODE_CONFIG, SERVICES, SLOTS,
        SOURCE_RANGES,
    },
    overlay,
    translate::is_in_native_network,
};

/// Who dials.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A socket of the node itself: its loopback counts as a node address.
    Host,
    Pod,
    /// Whoever comes in by an uplink.
    Outside,
}

/// Finds the service that owns an address and port, if any. `port` in network byte order.
#[inline(always)]
pub fn find(addr: &Addr, port: u16, protocol: u8, origin: Origin) -> Option<ServiceValue> {
    // Whoever connects to no address in particular means its own loopback.
    let unspecified = addr.is_unspecified();
    let loopback = unspecified || addr.is_loopback();
    if loopback && origin != Origin::Host {
        // A pod's loopback is its own, and nobody else's packet may carry one.
        return None;
    }
    let mut key = ServiceKey {
        addr: *addr,
        port,
        protocol,
        scope: scope::ANY,
    };
    // SAFETY: an element is readable memory for as long as the program runs.
    if !unspecified && let Some(service) = unsafe { SERVICES.get(&key) } {
        return for_origin(&mut key, service, origin);
    }
    let host_port = u16::from_be(port);
    let config = NODE_CONFIG.get(0)?;
    let in_range = host_port >= config.node_port_min && host_port <= config.node_port_max;
    if !in_range && config.flags & node_config::HOST_PORTS == 0 {
        return None;
    }
    let is_node = if loopback {
        !in_range || config.flags & node_config::LOOPBACK_NODE_PORTS != 0
    } else {
        // SAFETY: as above.
        unsafe { NODE_ADDRESSES.get(addr) }
            // Host ports answer on every address; NodePorts on those that are chosen.
            .is_some_and(|flags| !in_range || flags & node_address::NODE_PORTS != 0)
    };
    if !is_node {
        return None;
    }
    key.addr = node_port_addr(addr);
    // SAFETY: as above.
    let service = unsafe { SERVICES.get(&key) }?;
    for_origin(&mut key, service, origin)
}

/// Whether a cluster's address is dialled at a port that no service has.
#[inline(always)]
pub fn is_other_port(addr: &Addr) -> bool {
    // SAFETY: only whether it is there matters.
    unsafe { SERVICES.get(ServiceKey::other_ports(*addr)) }.is_some()
}

/// Whether an address is the cluster's or a balancer's, a port of it that no service has was dialled from outside, and the
/// host would send the packet on: to a router that may well send it back, and so on.
#[inline(never)]
pub fn is_nobodys(ctx: &TcContext, addr: &Addr) -> u32 {
    // SAFETY: only whether it is there matters.
    if unsafe { NODE_ADDRESSES.get(addr) }.is_some() {
        return 0;
    }
    if announce::is_announced(ctx, addr) {
        return 1;
    }
    let key = ServiceKey::other_ports(*addr).outside();
    // SAFETY: as above.
    let is_balanced = unsafe { SERVICES.get(&key) }.is_some();
    u32::from((is_balanced || is_other_port(addr)) && overlay::egress(ctx, addr) != 0)
}

/// The service, if any, that clients outside can dial by an address, of any node, and a port; 0: none.
#[inline(always)]
pub fn of_the_cluster(addr: &Addr, port: u16, protocol: u8) -> u32 {
    let mut key = ServiceKey {
        addr: *addr,
        port,
        protocol,
        scope: scope::ANY,
    };
    // SAFETY: an element is readable memory for as long as the program runs.
    if let Some(service) = unsafe { SERVICES.get(&key) } {
        return service.id;
    }
    key.addr = node_port_addr(addr);
    if !is_in_native_network(addr) {
        return 0;
    }
    // SAFETY: as above.
    unsafe { SERVICES.get(&key) }.map_or(0, |service| service.id)
}

/// Clients outside may have a set of endpoints of their own.
#[inline(always)]
fn for_origin(
    key: &mut ServiceKey,
    service: &ServiceValue,
    origin: Origin,
) -> Option<ServiceValue> {
    if origin != Origin::Outside || service.flags & service_flags::OUTSIDE_APART == 0 {
        return Some(*service);
    }
    key.scope = scope::OUTSIDE;
    // SAFETY: an element is readable memory for as long as the program runs.
    let apart = unsafe { SERVICES.get(&*key) };
    // While a policy changes there may be none yet, or none any more.
    Some(*apart.unwrap_or(service))
}

/// `0.0.0.0` (mapped) or `::`, by the family of the address that was dialled.
#[inline(always)]
fn node_port_addr(dialled: &Addr) -> Addr {
    if dialled.is_v4() {
        Addr::from_v4_be(0)
    } else {
        Addr::UNSPECIFIED
    }
}

/// Whether the service takes connections from this client.
#[inline(always)]
pub fn admits(service: &ServiceValue, client: &Addr) -> bool {
    if service.flags & service_flags::SOURCE_RANGES == 0 {
        return true;
    }
    let key = RangeKey {
        service: service.id,
        addr: *client,
    };
    SOURCE_RANGES.get(Key::new(32 + 128, key)).is_some()
}

pub struct Choice {
    pub backend_id: u32,
    pub backend: BackendValue,
}

/// Chooses a backend for a new connection: by affinity, else by the service's table where
/// it has one and the caller has a `hash`, else at random over the slots.
#[inline(always)]
pub fn choose(service: &ServiceValue, client: &Addr, hash: Option<u32>) -> Option<Choice> {
    if service.count == 0 {
        return None;
    }
    let by_client = service.flags & service_flags::BY_CLIENT != 0 && hash.is_none();
    let mut hash = if by_client {
        Some(client_hash(client))
    } else {
        hash
    };
    if service.affinity_seconds == 0 {
        return choose_anew(service, hash);
    }
    let key = AffinityKey {
        client: *client,
        service: service.id,
    };
    let now = now();
    // SAFETY: a torn read of an LRU element is caught by the membership check below.
    if let Some(held) = unsafe { AFFINITY.get(&key) } {
        let backend_id = held.backend;
        if now.wrapping_sub(held.last_used) > service.affinity_seconds {
            // By its address alone the client would have the same backend for ever.
            if !by_client && !goes_on_elsewhere(client) {
                hash = None;
            }
        } else if is_member(service.id, backend_id, true)
            // SAFETY: an element is readable memory for as long as the program runs.
            && let Some(backend) = unsafe { BACKENDS.get(&backend_id) }
        {
            let backend = *backend;
            let _ = AFFINITY.insert(
                &key,
                &AffinityValue {
                    backend: backend_id,
                    last_used: now,
                },
                0,
            );
            return Some(Choice {
                backend_id,
                backend,
            });
        }
    }
    let choice = choose_anew(service, hash)?;
    let value = AffinityValue {
        backend: choice.backend_id,
        last_used: now,
    };
    let _ = AFFINITY.insert(&key, &value, 0);
    Some(choice)
}

/// Whether another node may have to find the backend of this client's connections by the table.
#[inline(always)]
fn goes_on_elsewhere(client: &Addr) -> bool {
    let config = NODE_CONFIG.get(0);
    config.is_some_and(|config| config.flags & node_config::DIRECT_ANSWERS != 0)
        && !is_in_native_network(client)
}

#[inline(always)]
fn choose_anew(service: &ServiceValue, hash: Option<u32>) -> Option<Choice> {
    if let Some(hash) = hash
        && service.maglev != 0
        && let Some(choice) = choose_by_table(service, hash)
    {
        return Some(choice);
    }
    let slot = pick_slot(service.id, service.count, service.flags);
    at_slot(service.id, slot)
        // The count that was read may be one ahead of the slots while user space removes
        // the last one; slot 0 outlives it.
        .or_else(|| at_slot(service.id, 0))
}

/// The slot of a new connection, by the service's way of balancing. A function of its own: the stack
/// of its callers is short.
#[inline(never)]
fn pick_slot(service: u32, count: u32, flags: u32) -> u32 {
    if count == 0 {
        return 0;
    }
    if flags & service_flags::ROUND_ROBIN != 0 {
        return balance::turn(service) % count;
    }
    // SAFETY: no precondition.
    let one = scale(unsafe { bpf_get_prandom_u32() }, count);
    if flags & service_flags::LEAST_CONNECTIONS == 0 || count == 1 {
        return one;
    }
    // Any other of them.
    // SAFETY: as above.
    let other = (one + 1 + scale(unsafe { bpf_get_prandom_u32() }, count - 1)) % count;
    if load_at(service, other) < load_at(service, one) {
        other
    } else {
        one
    }
}

/// How many connections the backend in a slot has.
#[inline(always)]
fn load_at(service: u32, slot: u32) -> u32 {
    // SAFETY: an element is readable memory for as long as the program runs.
    let backend = unsafe { SLOTS.get(&SlotKey { service, slot }) };
    // An empty slot is the worst choice.
    backend.map_or(u32::MAX, |backend| balance::load(service, *backend))
}

/// Maps 32 evenly spread bits to `0..count` without a division.
#[inline(always)]
fn scale(bits: u32, count: u32) -> u32 {
    ((u64::from(bits) * u64::from(count)) >> 32) as u32
}

/// Maglev: every node finds the same backend for a flow, and few flows move when one goes.
#[inline(always)]
fn choose_by_table(service: &ServiceValue, hash: u32) -> Option<Choice> {
    let size = NODE_CONFIG.get(0)?.maglev_size;
    let backend_id = *MAGLEV.get(service.maglev - 1 + scale(hash, size))?;
    // While user space writes, the table may name a backend that is leaving.
    if !is_member(service.id, backend_id, true) {
        return None;
    }
    // SAFETY: an element is readable memory for as long as the program runs.
    let backend = *unsafe { BACKENDS.get(&backend_id) }?;
    Some(Choice {
        backend_id,
        backend,
    })
}

/// What a flow is known by on every node: its client, and with session affinity nothing
/// but the client. The address that was dialled may be another on each node.
#[inline(always)]
pub fn flow_hash(flow: &Tuple, service: &ServiceValue) -> u32 {
    let mut hash = mix_addr(0x9e37_79b9 ^ u32::from(flow.protocol), &flow.src);
    if service.affinity_seconds == 0 {
        hash = mix(hash, u32::from(flow.sport) << 16 | u32::from(flow.dport));
    }
    finish(hash)
}

/// What a client inside the cluster is known by: a socket that connects has no port yet.
#[inline(always)]
fn client_hash(client: &Addr) -> u32 {
    finish(mix_addr(0x9e37_79b9, client))
}

#[inline(always)]
fn mix_addr(mut hash: u32, addr: &Addr) -> u32 {
    hash = mix(hash, addr.words[0]);
    hash = mix(hash, addr.words[1]);
    hash = mix(hash, addr.words[2]);
    mix(hash, addr.words[3])
}

/// Murmur3's finish: every bit of the input reaches the high bits, which `scale` takes.
#[inline(always)]
fn finish(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[inline(always)]
fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15);
    (hash ^ word.wrapping_mul(0x1b87_3593))
        .rotate_left(13)
        .wrapping_mul(5)
        .wrapping_add(0xe654_6b64)
}

#[inline(always)]
fn at_slot(service: u32, slot: u32) -> Option<Choice> {
    // SAFETY: an element is readable memory for as long as the program runs.
    let backend_id = *unsafe { SLOTS.get(&SlotKey { service, slot }) }?;
    // SAFETY: as above.
    let backend = *unsafe { BACKENDS.get(&backend_id) }?;
    Some(Choice {
        backend_id,
        backend,
    })
}

/// Whether a backend may still serve: for a new connection it must be active, for an
/// existing one draining is enough.
#[inline(always)]
pub fn is_member(service: u32, backend: u32, new_connection: bool) -> bool {
    // SAFETY: an element is readable memory for as long as the program runs.
    match unsafe { MEMBERS.get(&MemberKey { service, backend }) } {
        Some(state) => !new_connection || *state == member::ACTIVE,
        None => false,
    }
}
