//! The process's allocator. Requests, watch events and typed views are many small allocations that one thread makes
//! and another frees, which the C library's allocator spends a third of this process's time on.
#![allow(unsafe_code, reason = "mimalloc's options have no safe wrapper")]

use std::cell::Cell;
use std::time::{Duration, Instant};

use libmimalloc_sys::{mi_collect, mi_option_get, mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay`, whose number the bindings leave out: for how many milliseconds freed pages are kept.
const PURGE_DELAY: mi_option_t = 15;
/// mimalloc's own. It looks only when it is called, so a burst's pages stay with a process that idles afterwards.
const DEFAULT_DELAY_MS: i64 = 1_000;
const DELAY_MS: i64 = 10;
/// How often a thread looks for what others have freed of its memory: a fraction of a millisecond each time.
const COLLECTED_EVERY: Duration = Duration::from_secs(10);

thread_local! {
    static COLLECTED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Gives what a burst took back to the kernel. For the start of the process; says what somebody else has set instead
/// (`MIMALLOC_PURGE_DELAY`), which stays.
pub(crate) fn purge_soon() {
    // SAFETY: reads and writes a number in a table; no other thread runs yet that could do so.
    unsafe {
        let set = mi_option_get(PURGE_DELAY);
        if set == DEFAULT_DELAY_MS {
            mi_option_set(PURGE_DELAY, DELAY_MS);
        } else {
            tracing::info!(milliseconds = set, "mimalloc's purge delay is set already");
        }
    }
}

/// For each time that a thread has nothing to do. What other threads free of a thread's memory only itself can put
/// together to pages and give back, and it does so where it looks for room: a burst's pages would stay with a thread
/// that idles afterwards.
pub(crate) fn collect_sometimes() {
    let now = Instant::now();
    let is_due = COLLECTED
        .get()
        .is_none_or(|last| now.duration_since(last) >= COLLECTED_EVERY);
    if is_due {
        COLLECTED.set(Some(now));
        // SAFETY: frees only what nobody uses any more, of this thread.
        unsafe { mi_collect(true) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: as above. Another option at this number would have another default.
        let before = unsafe { mi_option_get(PURGE_DELAY) };
        assert_eq!(before, DEFAULT_DELAY_MS);
        purge_soon();
        // SAFETY: as above.
        assert_eq!(unsafe { mi_option_get(PURGE_DELAY) }, DELAY_MS);
    }
}
