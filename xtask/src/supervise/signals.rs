//! The supervisor waits for its signals, so they are blocked in all of its threads; its services must not
//! inherit that, or SIGTERM would never reach them.
#![allow(
    unsafe_code,
    reason = "the standard library keeps a child's signal mask and offers no other way"
)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal};

/// Blocks the signals that stop the supervisor, in this thread and those that it starts.
pub(super) fn block() -> nix::Result<SigSet> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    Ok(signals)
}

/// Has the command start with no signal blocked.
pub(super) fn unblocked(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only async-signal-safe functions may be called; `pthread_sigmask` is one,
    // and building an error from its number allocates nothing.
    unsafe { command.pre_exec(|| SigSet::empty().thread_set_mask().map_err(io::Error::from)) }
}
