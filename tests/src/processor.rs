//! What measurements of a path's cost need: both ends on one processor, and the time that they spend on it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::unistd::Pid;

/// Puts the calling thread, and every thread that it will start, onto the last of the processors that it may use.
/// Where both ends of a conversation are on one, it costs what its path costs; on two, where the scheduler happens
/// to wake them costs several times that, and is another thing in each round.
pub fn share() -> Result<()> {
    let this = Pid::from_raw(0);
    let may = sched_getaffinity(this).context("asking for this thread's processors")?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|cpu| may.is_set(*cpu).unwrap_or(false))
        .context("a thread has a processor")?;
    let mut one = CpuSet::new();
    one.set(last)?;
    sched_setaffinity(this, &one).context("choosing a processor")
}

/// Processor time of this process so far, of all its threads, and of the kernel on their behalf: what others run
/// meanwhile is not in it.
pub fn time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask about itself");
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
    Duration::from_micros(microseconds.unsigned_abs())
}
