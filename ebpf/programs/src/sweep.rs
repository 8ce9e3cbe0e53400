//! What is over makes room by itself: the table of connections must not fill while the agent, which
//! collects as well, is away.
//!
//! A connection is put into a queue when it begins and when it ends, and whoever puts one in looks at the one
//! that has waited longest: what is over goes, what is established leaves the queue (its end will put it there
//! again), and what may be over soon waits once more. So the work is a bounded part of opening and closing a
//! connection, however large the table is, and an established connection is never what makes room.
//!
//! The queue is shorter than the table. Where it is full, or the table is, those at its head are looked at
//! before their time, and what has ended without doubt goes at once.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_EXIST},
    helpers::{bpf_map_peek_elem, bpf_map_pop_elem},
};
use windlass_ebpf_types::{Tuple, connection, protocol, timeout_seconds};

use crate::{
    balance,
    conntrack::{answered, now},
    maps::CONNTRACK_QUEUE,
    scratch::{Scratch, scratch},
    table,
};

/// How many a connection looks at for which there is no room.
const LOOKS_FOR_ROOM: u32 = 5;
/// Seconds in the queue before anybody looks: as long as what has ended is kept.
const WAIT: u32 = 10;

// What a look came to.
const NOTHING: u32 = 0;
const LOOKED: u32 = 1;
/// What went is left in `Scratch::queued` and `Scratch::freed`.
const FREED: u32 = 2;

/// Whether there is room for a connection now where there was none.
#[inline(never)]
pub fn make_room() -> u32 {
    for _ in 0..LOOKS_FOR_ROOM {
        match attend(1) {
            NOTHING => break,
            LOOKED => {}
            _ => return 1,
        }
    }
    0
}

/// Has a connection looked at later. `key` may be of either direction. It is put into the queue when the next packet
/// comes to this CPU: here, in the middle of all that a program decides, the verifier would have to walk through
/// that once for each way that leads here.
#[inline(always)]
pub fn remember(key: &Tuple) {
    if let Some(scratch) = scratch() {
        scratch.pending = *key;
        scratch.is_pending = 1;
    }
}

/// What the packet before has left to do. For the beginning of every program.
#[inline(always)]
pub fn settle() {
    if scratch().is_some_and(|scratch| scratch.is_pending != 0) {
        enqueue();
    }
}

/// Puts a connection into the queue, and looks at another.
#[inline(never)]
fn enqueue() -> u32 {
    let Some(scratch) = scratch() else { return 0 };
    scratch.is_pending = 0;
    let full = !push(scratch, u64::from(BPF_ANY));
    attend(u32::from(full));
    if full {
        // In place of the oldest, if that one has to wait on.
        push(scratch, u64::from(BPF_EXIST));
    }
    0
}

/// A look, and what is to be counted for it. Not within the look, where the stack is short.
#[inline(always)]
fn attend(wanted: u32) -> u32 {
    let code = look(wanted);
    if code == FREED
        && let Some(scratch) = scratch()
    {
        if scratch.freed.is_unanswered != 0 {
            answered(&scratch.queued.key.src);
        }
        if scratch.freed.backend != 0 {
            balance::end(scratch.freed.service, scratch.freed.backend);
        }
    }
    code
}

#[inline(always)]
fn push(scratch: &mut Scratch, how: u64) -> bool {
    scratch.queued.key = scratch.pending;
    scratch.queued.since = now();
    CONNTRACK_QUEUE.push(&scratch.queued, how).is_ok()
}

/// The head of the queue, into `Scratch::queued`: it is too large for the stack.
#[inline(always)]
fn peek(scratch: &mut Scratch) -> bool {
    let queue = (&raw const CONNTRACK_QUEUE).cast_mut().cast();
    // SAFETY: a map, and memory of the size of its elements.
    unsafe { bpf_map_peek_elem(queue, (&raw mut scratch.queued).cast()) == 0 }
}

#[inline(always)]
fn pop(scratch: &mut Scratch) -> bool {
    let queue = (&raw const CONNTRACK_QUEUE).cast_mut().cast();
    // SAFETY: as above.
    unsafe { bpf_map_pop_elem(queue, (&raw mut scratch.queued).cast()) == 0 }
}

/// Looks at the connection that has waited longest, if it has waited long enough or room is `wanted`.
#[inline(never)]
fn look(wanted: u32) -> u32 {
    let Some(scratch) = scratch() else {
        return NOTHING;
    };
    if wanted == 0 && (!peek(scratch) || now().saturating_sub(scratch.queued.since) <= WAIT) {
        return NOTHING;
    }
    if !pop(scratch) {
        return NOTHING;
    }
    let Some(entry) = table::get(&scratch.queued.key) else {
        return LOOKED;
    };
    let (mut flags, mut last_seen) = (entry.flags, entry.last_seen);
    entry
        .partner_reversed(&scratch.queued.key)
        .reverse_into(&mut scratch.other);
    match table::get(&scratch.other) {
        Some(partner) => {
            flags |= partner.flags;
            last_seen = last_seen.max(partner.last_seen);
        }
        None => flags |= connection::FINS,
    }
    // Another CPU's packet may be younger than this clock's reading.
    let idle = now().saturating_sub(last_seen);
    let lasted = last_seen.saturating_sub(entry.created);
    let kind = scratch.queued.key.protocol;
    if goes_on(flags) {
        return LOOKED;
    }
    let over = idle > timeout_seconds(kind, flags, lasted) || (wanted != 0 && has_ended(flags));
    if !over {
        scratch.queued.since = now();
        let _ = CONNTRACK_QUEUE.push(&scratch.queued, u64::from(BPF_ANY));
        return LOOKED;
    }
    // What has ended is counted no more.
    let open = !connection::is_closed(flags);
    let original = entry.flags & connection::ORIGINAL != 0;
    scratch.freed.service = entry.service;
    scratch.freed.backend = if open { entry.backend } else { 0 };
    scratch.freed.is_unanswered = u32::from(open && original && is_unanswered(kind, flags));
    table::remove(&scratch.queued.key);
    table::remove(&scratch.other);
    FREED
}

/// Whether a connection is established, and its end will be told. Of one that is sent on to another node,
/// which answers, only the client's half of the end is seen.
#[inline(always)]
fn goes_on(flags: u32) -> bool {
    let forwarded_end = flags & connection::FORWARDED != 0 && flags & connection::FINS != 0;
    flags & connection::CONFIRMED != 0 && !connection::is_closed(flags) && !forwarded_end
}

/// Either side has said so, or it was refused before it began: one reset alone of an established connection may
/// have been forged.
#[inline(always)]
fn has_ended(flags: u32) -> bool {
    connection::is_finished(flags)
        || (connection::is_closed(flags) && flags & connection::CONFIRMED == 0)
}

/// Whether its opener still waits, as `HALF_OPEN` counts.
#[inline(always)]
fn is_unanswered(kind: u8, flags: u32) -> bool {
    let answer = match kind {
        protocol::TCP => connection::CONFIRMED,
        _ => connection::REPLIED,
    };
    flags & answer == 0
}
