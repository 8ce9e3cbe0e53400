//! Room that the 512 bytes of stack do not have: one element for each CPU.
//!
//! Programs of one CPU do not interrupt each other here: tc runs with bottom halves off
//! on either side, and a redirect happens after the program that asked for it has ended.

use crate::parse::Packet;
use aya_ebpf::{macros::map, maps::PerCpuArray};
use windlass_ebpf_types::{Addr, Connection, Queued, Tuple, Ways};

#[repr(C)]
pub struct Scratch {
    /// The connection being opened.
    pub entry: Connection,
    /// Its other direction.
    pub reply: Connection,
    /// Key of the other direction.
    pub answer: Tuple,
    /// Key of the other direction of whatever holds `answer`.
    pub holder: Tuple,
    /// Key and value of an element of the table of connections, for `table` alone; and the other direction's key, likewise.
    pub ends: Tuple,
    pub ways: Ways,
    pub partner: Tuple,
    pub way: u64,
    /// A connection that is looked at because it may be over, and the key of its other direction.
    pub queued: Queued,
    pub other: Tuple,
    pub freed: Freed,
    /// A connection that is to be looked at later, when `is_pending` is not 0.
    pub pending: Tuple,
    pub is_pending: u32,
    /// What the client dialled on the node that sent the packet on; no port: it says nothing.
    pub dialled: Dialled,
    /// Which policy refused a packet last, or would have (`PolicyDecision::rule`).
    pub rule: u32,
    /// What was parsed, on its way past the verifier (see `parse::forget`).
    pub packet: Packet,
    /// A packet being built.
    pub frame: [u8; FRAME],
}

/// An address and a port in network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Dialled {
    pub addr: Addr,
    pub port: u16,
    pub pad: u16,
    /// Where another node says it: what it is of.
    pub service: u32,
}

/// A connection that went because its time was over: what is to be counted for it.
#[repr(C)]
pub struct Freed {
    pub service: u32,
    /// 0: it is counted no more.
    pub backend: u32,
    /// Whether its opener still waited.
    pub is_unanswered: u32,
}

pub const FRAME: usize = 128;

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the element is this CPU's alone, see above; no caller keeps two at once.
    SCRATCH
        .get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *scratch })
}
