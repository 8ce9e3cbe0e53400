//! Reaps what the services leave behind.
//!
//! containerd's shims detach from it, so that containers survive its restart; whoever adopts them has to reap
//! them. That is process 1, unless a nearer ancestor asks to (`PR_SET_CHILD_SUBREAPER`): in many containers
//! process 1 is a program that does not expect children.

use std::collections::HashSet;
use std::io;
use std::process::{Child, Command};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::signals;
use crate::wait;

/// Children that a thread of ours waits for itself.
static OWN: LazyLock<Mutex<HashSet<i32>>> = LazyLock::new(Mutex::default);
/// How long to leave it alone when there is no child, or one that its own thread is about to reap.
const PAUSE: Duration = Duration::from_millis(20);

/// Adopts and reaps every orphan below this process from now on.
pub(super) fn adopt() -> nix::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    std::thread::spawn(|| {
        loop {
            if !reap_next(WaitPidFlag::empty()) {
                wait::until(PAUSE, || false);
            }
        }
    });
    Ok(())
}

/// Reaps those that have ended, without waiting for others.
pub(super) fn reap_remaining() {
    while reap_next(WaitPidFlag::WNOHANG) {}
}

/// Starts a process that the caller will wait for, by `Child::wait` and then `forget`.
pub(super) fn spawn_own(command: &mut Command) -> io::Result<Child> {
    let mut own = own();
    let child = signals::unblocked(command).spawn()?;
    own.insert(child.id().cast_signed());
    Ok(child)
}

pub(super) fn forget(child: &Child) {
    own().remove(&child.id().cast_signed());
}

/// Says whether an orphan was reaped.
fn reap_next(flags: WaitPidFlag) -> bool {
    // Looks without reaping, so that the end of an own child stays for its thread.
    match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | flags) {
        Ok(status) => match ended(&status).filter(|pid| !own().contains(&pid.as_raw())) {
            Some(orphan) => waitpid(orphan, Some(WaitPidFlag::WNOHANG)).is_ok(),
            None => false,
        },
        Err(Errno::EINTR) => true,
        Err(_) => false,
    }
}

fn ended(status: &WaitStatus) -> Option<Pid> {
    match status {
        WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) => Some(*pid),
        _ => None,
    }
}

fn own() -> MutexGuard<'static, HashSet<i32>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}
