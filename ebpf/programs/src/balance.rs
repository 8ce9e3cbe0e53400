//! What a service's way of balancing has to remember, and what its traffic is counted by.

use aya_ebpf::bindings::BPF_NOEXIST;
use windlass_ebpf_types::{MemberKey, Traffic};

use crate::maps::{BALANCE, TRAFFIC};

/// A number that is one more with each call: whose turn it is.
#[inline(never)]
pub fn turn(service: u32) -> u32 {
    let key = MemberKey::turn_of(service);
    if let Some(turn) = BALANCE.get_ptr_mut(&key) {
        // SAFETY: an element is memory for as long as the program runs. CPUs at it in the same instant
        // take the same turn, which evens out.
        return unsafe {
            let mine = *turn;
            *turn = mine.wrapping_add(1);
            mine
        };
    }
    let _ = BALANCE.insert(&key, &1, BPF_NOEXIST.into());
    0
}

/// Connections that a backend has by a service.
#[inline(always)]
pub fn load(service: u32, backend: u32) -> u32 {
    // SAFETY: an element is readable memory for as long as the program runs.
    unsafe { BALANCE.get(&MemberKey { service, backend }) }.map_or(0, |load| *load)
}

/// A connection of a service that balances by them begins.
#[inline(never)]
pub fn begin(service: u32, backend: u32) -> u32 {
    let key = MemberKey { service, backend };
    match BALANCE.get_ptr_mut(&key) {
        // SAFETY: as in `turn`. User space puts right what CPUs lose to each other.
        Some(load) => unsafe { *load += 1 },
        None => {
            let _ = BALANCE.insert(&key, &1, BPF_NOEXIST.into());
        }
    }
    0
}

/// One of any service ends.
#[inline(never)]
pub fn end(service: u32, backend: u32) -> u32 {
    if let Some(load) = BALANCE.get_ptr_mut(&MemberKey { service, backend }) {
        // SAFETY: as in `begin`.
        unsafe {
            if *load > 0 {
                *load -= 1;
            }
        }
    }
    0
}

/// Counts a connection of a service, or what a packet of one carried, or all of them.
#[inline(never)]
pub fn count(service: u32, connections: u32, request_bytes: u64, reply_bytes: u64) -> u32 {
    if let Some(traffic) = TRAFFIC.get_ptr_mut(&service) {
        // SAFETY: the element belongs to this CPU, and the program cannot migrate.
        unsafe {
            (*traffic).connections += u64::from(connections);
            (*traffic).request_bytes += request_bytes;
            (*traffic).reply_bytes += reply_bytes;
        }
    } else {
        let first = Traffic {
            connections: connections.into(),
            request_bytes,
            reply_bytes,
        };
        let _ = TRAFFIC.insert(&service, &first, BPF_NOEXIST.into());
    }
    0
}
