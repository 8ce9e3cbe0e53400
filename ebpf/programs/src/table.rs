//! The table of connections: one element for two ends, with what is known of either way between them.
//!
//! Its key is the tuple with the lower end first, so that both directions of a connection that is not translated are in
//! one place. That place has to be fetched from memory for each new connection, which costs more than all that is done
//! there; the directions of a translated connection are between different ends, and in two places.

use core::{
    arch::asm,
    mem::swap,
    sync::atomic::{Ordering, compiler_fence},
};

use aya_ebpf::bindings::BPF_NOEXIST;
use windlass_ebpf_types::{Connection, Tuple, Ways, connection};

use crate::{
    maps::CONNTRACK,
    scratch::{Scratch, scratch},
};

/// What is known of packets with this tuple.
#[inline(never)]
pub fn get(tuple: &Tuple) -> Option<&'static mut Connection> {
    let scratch = scratch()?;
    let way = order(tuple, scratch);
    let ways = CONNTRACK.get_ptr_mut(&scratch.ends)?;
    let entry = of(ways, way);
    entry.is_there().then_some(entry)
}

/// The element in which something is known of packets with this tuple: at [`way`], until another one is found so.
#[inline(never)]
pub fn find(tuple: &Tuple) -> Option<&'static mut Ways> {
    let scratch = scratch()?;
    let way = order(tuple, scratch);
    scratch.way = way;
    let ways = CONNTRACK.get_ptr_mut(&scratch.ends)?;
    // SAFETY: an element is memory for as long as the program runs.
    of(ways, way).is_there().then(|| unsafe { &mut *ways })
}

/// See [`find`].
#[inline(always)]
pub fn way() -> u64 {
    scratch().map_or(0, |scratch| scratch.way & 1)
}

/// What [`put`] came to: a plain number, since it is a function of its own to the verifier.
pub const PUT: u32 = 0;
/// There was something already, which stays.
pub const HELD: u32 = 1;
pub const FULL: u32 = 2;

/// Writes down what is known of packets with this tuple; where something was, if it is to be `replaced`.
#[inline(never)]
pub fn put(tuple: &Tuple, entry: &Connection, replaced: u32) -> u32 {
    let Some(scratch) = scratch() else {
        return FULL;
    };
    let way = order(tuple, scratch);
    let ways = match CONNTRACK.get_ptr_mut(&scratch.ends) {
        Some(ways) => ways,
        None => {
            *of(&raw mut scratch.ways, way) = *entry;
            of(&raw mut scratch.ways, 1 - way).last_seen = 0;
            let how = BPF_NOEXIST.into();
            if CONNTRACK.insert(&scratch.ends, &scratch.ways, how).is_ok() {
                return PUT;
            }
            // There is no room, or another CPU had something to write between the same ends.
            match CONNTRACK.get_ptr_mut(&scratch.ends) {
                Some(ways) => ways,
                None => return FULL,
            }
        }
    };
    let place = of(ways, way);
    if replaced == 0 && place.is_there() {
        return HELD;
    }
    // Nobody takes half of it for the whole.
    *place = Connection {
        last_seen: 0,
        ..*entry
    };
    compiler_fence(Ordering::Release);
    place.last_seen = entry.last_seen;
    PUT
}

/// Writes down both directions of a connection between the same two ends, if nothing is known of either. `key` is of the
/// first of them.
#[inline(always)]
pub fn put_pair(key: &Tuple, entry: &Connection, reply: &Connection) -> bool {
    let Some(scratch) = scratch() else {
        return false;
    };
    let way = order(key, scratch);
    *of(&raw mut scratch.ways, way) = *entry;
    *of(&raw mut scratch.ways, 1 - way) = *reply;
    let how = BPF_NOEXIST.into();
    CONNTRACK.insert(&scratch.ends, &scratch.ways, how).is_ok()
}

/// Removes what is known of packets with this tuple.
#[inline(always)]
pub fn remove(tuple: &Tuple) {
    let _ = clear(tuple);
}

/// Removes both directions of the connection that packets with this tuple belong to, which was found in `ways`.
#[inline(always)]
pub fn remove_pair(tuple: &Tuple, ways: &mut Ways) {
    let way = way();
    let (flags, other) = (of(ways, way).flags, of(ways, 1 - way).flags);
    if flags & other & connection::SAME_ENDS != 0 {
        let _ = remove_both(tuple);
        return;
    }
    if let Some(scratch) = scratch() {
        scratch.partner = of(ways, way).partner(tuple);
        remove(&scratch.partner);
    }
    remove(tuple);
}

#[inline(never)]
fn remove_both(tuple: &Tuple) -> u32 {
    let Some(scratch) = scratch() else { return 0 };
    order(tuple, scratch);
    let _ = CONNTRACK.remove(&scratch.ends);
    1
}

/// An entry of the other way stays, as does the element then.
#[inline(never)]
fn clear(tuple: &Tuple) -> u32 {
    let Some(scratch) = scratch() else { return 0 };
    let way = order(tuple, scratch);
    let Some(ways) = CONNTRACK.get_ptr_mut(&scratch.ends) else {
        return 0;
    };
    if of(ways, 1 - way).is_there() {
        of(ways, way).last_seen = 0;
    } else {
        let _ = CONNTRACK.remove(&scratch.ends);
    }
    1
}

/// The key of a tuple into `Scratch::ends`, and which way between them it is.
#[inline(always)]
fn order(tuple: &Tuple, scratch: &mut Scratch) -> u64 {
    scratch.ends = *tuple;
    let mut way = order_ends();
    // What the compiler knows of it the verifier does not.
    // SAFETY: an instruction that changes nothing.
    unsafe { asm!("{0} = {0}", inout(reg) way, options(nomem, nostack)) };
    way & 1
}

/// Makes `Scratch::ends` of the tuple in it; returns its way. A global function to the kernel, verified once (see `crc32c`):
/// what follows is not to be walked for each way through the comparison.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn order_ends() -> u64 {
    let Some(scratch) = scratch() else { return 0 };
    let way = scratch.ends.way() as u64;
    if way != 0 {
        let mut ends = &raw mut scratch.ends;
        // Read again, which takes less of the stack than to know it still.
        // SAFETY: an instruction that changes nothing; and the same tuple.
        let ends = unsafe {
            asm!("{0} = {0}", inout(reg) ends, options(nostack));
            &mut *ends
        };
        for (low, high) in ends.dst.words.iter_mut().zip(&mut ends.src.words) {
            swap(low, high);
        }
        swap(&mut ends.sport, &mut ends.dport);
    }
    way
}

/// `way` is 0 or 1.
#[inline(always)]
pub fn of(ways: *mut Ways, way: u64) -> &'static mut Connection {
    // SAFETY: an element is memory for as long as the program runs, and this is within it, as the verifier sees.
    unsafe { &mut *ways.cast::<Connection>().add((way & 1) as usize) }
}
