//! A process that outlives its parent, found again by the next one.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// What a server prints once it answers.
pub(super) const READY: &str = "ready";
/// The server waits for the API server, which may be away for long; this only bounds a hang.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A server. Dropping it leaves it running.
pub(super) struct Process {
    pid: Pid,
    /// Names this process and no later one with the same id; readable once it has ended.
    handle: Arc<OwnedFd>,
}

impl Process {
    /// The process that the file names, if it lives and is one of ours.
    pub(super) fn read(pid_file: &Path) -> anyhow::Result<Option<Self>> {
        let text = match fs::read_to_string(pid_file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", pid_file.display()));
            }
        };
        let Some(process) = text.trim().parse().ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let Ok(process) = Self::open(process) else {
            return Ok(None);
        };
        // Read after the handle was opened: it cannot be about somebody who got the id later.
        Ok(process.is_a_server().then_some(process))
    }

    /// The process that the file names, if it is of this very build and was told the same.
    pub(super) fn adopt(pid_file: &Path, arguments: &[OsString]) -> anyhow::Result<Option<Self>> {
        let found = Self::read(pid_file)?.filter(|process| {
            let same_arguments = process
                .command_line()
                .is_some_and(|words| words.get(1..) == Some(arguments));
            same_arguments && executable(process.pid()) == executable("self")
        });
        Ok(found)
    }

    /// Starts this program with other arguments and waits until it is ready.
    pub(super) async fn start(pid_file: &Path, arguments: &[OsString]) -> anyhow::Result<Self> {
        let own_name = std::env::args_os().next().unwrap_or_default();
        let mut child = Command::new("/proc/self/exe")
            .arg0(own_name)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // A signal to the agent's group is not for it.
            .process_group(0)
            .spawn()
            .context("start cluster DNS")?;
        let output = child.stdout.take().context("its output")?;
        let mut lines = BufReader::new(output).lines();
        let first = tokio::time::timeout(READY_WITHIN, lines.next_line()).await;
        match first {
            Ok(Ok(Some(line))) if line == READY => {}
            Ok(_) => bail!(
                "cluster DNS ended before it was ready: {}",
                child.wait().await?
            ),
            Err(_) => {
                child.kill().await.context("end a server that hangs")?;
                bail!("cluster DNS was not ready within {READY_WITHIN:?}");
            }
        }
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let process = Self::open(pid.context("cluster DNS ended at once")?)?;
        let new = pid_file.with_extension("new");
        fs::write(&new, format!("{}\n", process.pid()))
            .and_then(|()| fs::rename(&new, pid_file))
            .with_context(|| format!("write {}", pid_file.display()))?;
        Ok(process)
    }

    /// Others that serve in the same namespace. An agent that is killed between a server's start and the writing of
    /// its pid file leaves one that no file names.
    pub(super) fn strays(&self) -> Vec<Self> {
        let namespace = |process: &Self| process.command_line()?.into_iter().nth(3);
        let Some(own) = namespace(self) else {
            return Vec::new();
        };
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let others = processes.filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            Self::open(pid).ok()
        });
        let serves =
            |process: &Self| process.is_a_server() && namespace(process) == Some(own.clone());
        others
            .filter(|process| process.pid != self.pid && serves(process))
            .collect()
    }

    fn is_a_server(&self) -> bool {
        self.command_line()
            .is_some_and(|words| words.get(1).is_some_and(|word| word == "dns"))
    }

    fn open(pid: Pid) -> io::Result<Self> {
        let handle = Arc::new(pidfd_open(pid, PidfdFlags::empty())?);
        Ok(Self { pid, handle })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(super) async fn ended(&self) -> io::Result<()> {
        let handle = self.handle.clone();
        // Tokio takes no foreign descriptor without unsafe code; this one thread sleeps with the process.
        let wait = move || loop {
            match poll(&mut [PollFd::new(&*handle, PollFlags::IN)], None) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => return outcome.map(drop).map_err(io::Error::from),
            }
        };
        tokio::task::spawn_blocking(wait).await?
    }

    pub(super) fn terminate(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, Signal::TERM) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn command_line(&self) -> Option<Vec<OsString>> {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid())).ok()?;
        let line = line.strip_suffix(b"\0")?;
        let words = line.split(|byte| *byte == 0);
        Some(
            words
                .map(|word| OsString::from_vec(word.to_vec()))
                .collect(),
        )
    }
}

/// Which file a process runs, even if another one has its name by now.
fn executable(process: impl std::fmt::Display) -> Option<(u64, u64)> {
    let file = fs::metadata(format!("/proc/{process}/exe")).ok()?;
    Some((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_living_server_of_ours_is_found_by_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        assert!(Process::read(&file).unwrap().is_none());
        fs::write(&file, "nonsense\n").unwrap();
        assert!(Process::read(&file).unwrap().is_none());
        // A living process, but this test: its first argument is not `dns`.
        fs::write(&file, std::process::id().to_string()).unwrap();
        assert!(Process::read(&file).unwrap().is_none());

        let mut child = Command::new("/bin/sh")
            .arg0("windlass-node-agent")
            .args(["-c", "read line", "dns"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        let process = Process::open(Pid::from_raw(pid.cast_signed()).unwrap()).unwrap();
        // A moment after exec has closed the parent's pipe, the kernel shows no arguments yet.
        while process.command_line().is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(process.command_line().unwrap()[0], "windlass-node-agent");
        assert!(
            tokio::time::timeout(Duration::from_millis(50), process.ended())
                .await
                .is_err()
        );
        process.terminate().unwrap();
        process.ended().await.unwrap();
        child.wait().await.unwrap();
        process.terminate().unwrap();
        fs::write(&file, pid.to_string()).unwrap();
        assert!(Process::read(&file).unwrap().is_none());
    }
}
