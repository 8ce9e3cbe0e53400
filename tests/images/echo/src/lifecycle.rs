//! From the first connection to the orderly end.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// A TCP connection that stays open must not keep the process from ending for ever.
const LONGEST_DRAIN: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(crate) struct Lifecycle {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    busy: usize,
    draining: bool,
}

/// Work that must be finished before the process ends; over when it is dropped.
pub(crate) struct Busy(Arc<Lifecycle>);

impl Lifecycle {
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.change(|state| state.busy += 1);
        Busy(Arc::clone(self))
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .draining
    }

    /// Returns after `at_least`, during which load balancers hear of it, and when nothing is being done.
    pub(crate) fn drain(&self, at_least: Duration) {
        self.change(|state| state.draining = true);
        let guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = self
            .changed
            .wait_timeout_while(guard, at_least, |_| true)
            .unwrap_or_else(PoisonError::into_inner);
        drop(
            self.changed
                .wait_timeout_while(guard, LONGEST_DRAIN, |state| state.busy > 0)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.change(|state| state.busy -= 1);
    }
}

/// Process 1 of a container gets only the signals that it asks for.
pub(crate) fn block_signals() -> io::Result<SigSet> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    Ok(signals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draining_waits_for_what_is_being_done() {
        let lifecycle = Arc::new(Lifecycle::default());
        let busy = lifecycle.busy();
        let draining = Arc::clone(&lifecycle);
        let thread = std::thread::spawn(move || draining.drain(Duration::ZERO));
        while !lifecycle.is_draining() {
            std::thread::yield_now();
        }
        assert!(!thread.is_finished());
        drop(busy);
        thread.join().unwrap();
    }
}
