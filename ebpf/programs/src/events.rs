//! What a program tells the outside about a packet: today a counter by reason and hook.
//! The flow log's ring buffer belongs here too; callers pass what it will need.

use windlass_ebpf_types::{Counter, Direction, Reason, metric_index};

use crate::maps::METRICS;

#[inline(always)]
pub fn count(reason: Reason, direction: Direction, bytes: u32) {
    if let Some(counter) = METRICS.get_ptr_mut(metric_index(reason, direction)) {
        let counter: *mut Counter = counter;
        // SAFETY: the element belongs to this CPU, and the program cannot migrate.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}
