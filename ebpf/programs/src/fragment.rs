//! Fragments: the first one of a datagram leaves its ports for the others, which have none.
//!
//! A later fragment that comes first finds nothing, and passes untranslated as before; its
//! sender repeats the whole datagram.

use windlass_ebpf_types::{FragmentKey, FragmentPorts, Tuple};

use crate::maps::FRAGMENTS;

#[inline(always)]
fn key(tuple: &Tuple, id: u32) -> FragmentKey {
    FragmentKey {
        src: tuple.src,
        dst: tuple.dst,
        id,
        protocol: tuple.protocol,
        pad: [0; 3],
    }
}

/// Notes the ports of a first fragment.
#[inline(never)]
pub fn remember(tuple: &Tuple, id: u32) {
    let ports = FragmentPorts {
        sport: tuple.sport,
        dport: tuple.dport,
    };
    let _ = FRAGMENTS.insert(&key(tuple, id), &ports, 0);
}

/// Fills in the ports of a later fragment. 0: its first one was not seen.
#[inline(never)]
pub fn recall(tuple: &mut Tuple, id: u32) -> u32 {
    // SAFETY: a torn read of an LRU element costs this datagram at worst.
    let Some(ports) = (unsafe { FRAGMENTS.get(&key(tuple, id)) }) else {
        return 0;
    };
    tuple.sport = ports.sport;
    tuple.dport = ports.dport;
    1
}
