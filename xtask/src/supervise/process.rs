//! The process of a service, whoever started it: an own child, or one that an earlier supervisor left.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::definition::Definition;
use super::orphans;
use crate::wait;

pub(super) enum Process {
    Own(Child, Pid),
    /// Not our child: how it ended, only its parent is told.
    Adopted(Adopted),
}

impl Process {
    pub(super) fn own(child: Child) -> Result<Self> {
        let pid = i32::try_from(child.id()).context("a pid fits an i32")?;
        Ok(Self::Own(child, Pid::from_raw(pid)))
    }

    pub(super) fn pid(&self) -> Pid {
        match self {
            Self::Own(_, pid) => *pid,
            Self::Adopted(adopted) => adopted.pid,
        }
    }

    /// Returns once it has ended, without reaping: the pid cannot belong to someone else before `reap`.
    pub(super) fn wait(&self) {
        match self {
            Self::Own(_, pid) => {
                let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
                while waitid(Id::Pid(*pid), ended) == Err(Errno::EINTR) {}
            }
            Self::Adopted(adopted) => {
                const LOOK: Duration = Duration::from_secs(3_600);
                while !wait::until(LOOK, || !adopted.lives()) {}
            }
        }
    }

    pub(super) fn reap(self) -> Result<String> {
        match self {
            Self::Own(mut child, _) => {
                let status = child.wait().context("reaping")?;
                orphans::forget(&child);
                Ok(describe(status))
            }
            Self::Adopted(_) => Ok("which was another's child".to_owned()),
        }
    }
}

/// A process by its number and the moment at which it started, which no later one has in common with it.
pub(super) struct Adopted {
    pid: Pid,
    started: String,
}

impl Adopted {
    fn open(pid: Pid) -> Option<Self> {
        let started = start_time(pid)?;
        Some(Self { pid, started })
    }

    fn lives(&self) -> bool {
        start_time(self.pid).is_some_and(|started| started == self.started)
    }

    pub(super) fn signal(&self, signal: Signal) {
        if self.lives() {
            kill(self.pid, signal).ok();
        }
    }
}

/// The living process that the service's pid file names, if it was started by the service's command.
pub(super) fn find(service: &Definition) -> Option<Adopted> {
    let text = fs::read_to_string(&service.pid_file).ok()?;
    let process = Adopted::open(Pid::from_raw(text.trim().parse().ok()?))?;
    let line = fs::read_to_string(format!("/proc/{}/cmdline", process.pid)).ok()?;
    let words: Vec<&str> = line.strip_suffix('\0')?.split('\0').collect();
    // What enters a namespace first (`nsenter … -- program`) has become the program.
    let command: Vec<&str> = service.command.iter().map(String::as_str).collect();
    (command.ends_with(&words) && process.lives()).then_some(process)
}

/// In the kernel's clock ticks; none for a process that has ended, whether it was reaped or not.
fn start_time(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    (!matches!(*fields.first()?, "Z" | "X"))
        .then(|| fields.get(19).map(|&field| field.to_owned()))?
}

fn describe(status: ExitStatus) -> String {
    match status.signal().map(Signal::try_from) {
        Some(Ok(signal)) => format!("killed by {signal}"),
        _ => status.to_string(),
    }
}
