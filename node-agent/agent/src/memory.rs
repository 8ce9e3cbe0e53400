//! Keeps the process small: what lists of thousands of objects took while they were decoded goes back to the
//! kernel afterwards.
#![allow(unsafe_code, reason = "mallopt has no safe wrapper")]

use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, c_int};

/// glibc's own first value. Set, it stays; otherwise glibc raises it to the largest block that was ever freed (32 MiB
/// at most), and blocks below it live on the heap, which cannot shrink around them.
const THRESHOLD_BYTES: c_int = 128 << 10;
/// Heaps that threads share, instead of eight for each processor: each holds free pages of its own.
const ARENAS: c_int = 2;

/// For the start of the process, before other threads allocate.
pub(crate) fn stay_small() {
    for (parameter, value) in [
        (M_ARENA_MAX, ARENAS),
        (M_MMAP_THRESHOLD, THRESHOLD_BYTES),
        (M_TRIM_THRESHOLD, THRESHOLD_BYTES),
    ] {
        // SAFETY: mallopt takes two integers and checks them; it may be called at any time.
        let taken = unsafe { libc::mallopt(parameter, value) };
        if taken == 0 {
            tracing::debug!(parameter, value, "the allocator refused a parameter");
        }
    }
}
