//! Whom an uplink takes nothing from.

use aya_ebpf::maps::lpm_trie::Key;
use windlass_ebpf_types::{Addr, node_config};

use crate::maps::{DENIED, NODE_CONFIG};

#[inline(always)]
pub fn is_denied(source: &Addr) -> bool {
    NODE_CONFIG
        .get(0)
        .is_some_and(|config| config.flags & node_config::DENY_LIST != 0)
        && DENIED.get(Key::new(128, *source)).is_some()
}
