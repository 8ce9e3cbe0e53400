//! Load balancing: from what a client dials to the backend that serves it.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use windlass_ebpf_types::{
    Addr, AffinityKey, AffinityValue, BackendValue, MemberKey, ServiceKey, ServiceValue, SlotKey,
    member, node_address,
};

use crate::{
    conntrack::now,
    maps::{AFFINITY, BACKENDS, MEMBERS, NODE_ADDRESSES, NODE_CONFIG, SERVICES, SLOTS},
};

/// Whether 127.0.0.1 and ::1 count as node addresses: only where loopback is the node's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Loopback {
    IsNode,
    IsNotNode,
}

/// Finds the service that owns an address and port, if any. `port` in network byte order.
#[inline(always)]
pub fn find(addr: &Addr, port: u16, protocol: u8, loopback: Loopback) -> Option<ServiceValue> {
    let mut key = ServiceKey {
        addr: *addr,
        port,
        protocol,
        pad: 0,
    };
    // SAFETY: an element is readable memory for as long as the program runs.
    if let Some(service) = unsafe { SERVICES.get(&key) } {
        return Some(*service);
    }
    let host_port = u16::from_be(port);
    let config = NODE_CONFIG.get(0)?;
    if host_port < config.node_port_min || host_port > config.node_port_max {
        return None;
    }
    let is_node = (loopback == Loopback::IsNode && addr.is_loopback())
        // SAFETY: as above.
        || unsafe { NODE_ADDRESSES.get(addr) }
            .is_some_and(|flags| flags & node_address::NODE_PORTS != 0);
    if !is_node {
        return None;
    }
    key.addr = node_port_addr(addr);
    // SAFETY: as above.
    unsafe { SERVICES.get(&key) }.copied()
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

pub struct Choice {
    pub backend_id: u32,
    pub backend: BackendValue,
}

/// Chooses a backend for a new connection: by affinity, else at random over the slots.
#[inline(always)]
pub fn choose(service: &ServiceValue, client: &Addr) -> Option<Choice> {
    if service.count == 0 {
        return None;
    }
    if service.affinity_seconds == 0 {
        return choose_random(service);
    }
    let key = AffinityKey {
        client: *client,
        service: service.id,
    };
    let now = now();
    // SAFETY: a torn read of an LRU element is caught by the membership check below.
    if let Some(held) = unsafe { AFFINITY.get(&key) } {
        let backend_id = held.backend;
        if now.wrapping_sub(held.last_used) <= service.affinity_seconds
            && is_member(service.id, backend_id, true)
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
    let choice = choose_random(service)?;
    let value = AffinityValue {
        backend: choice.backend_id,
        last_used: now,
    };
    let _ = AFFINITY.insert(&key, &value, 0);
    Some(choice)
}

#[inline(always)]
fn choose_random(service: &ServiceValue) -> Option<Choice> {
    // SAFETY: no precondition.
    let random = unsafe { bpf_get_prandom_u32() };
    // The multiply-shift maps 32 random bits to 0..count without a division.
    let slot = ((u64::from(random) * u64::from(service.count)) >> 32) as u32;
    at_slot(service.id, slot)
        // The count that was read may be one ahead of the slots while user space removes
        // the last one; slot 0 outlives it.
        .or_else(|| at_slot(service.id, 0))
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
