//! One supervised process and the thread that keeps it running.

use std::fs::{self, OpenOptions};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::definition::Definition;
use super::orphans;
use super::process::{self, Process};

/// A process that dies is started again at once; one that keeps dying, less and less often.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// A process that ran for this long counts as healthy: the next death starts from the first delay again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
const CONDITION_INTERVAL: Duration = Duration::from_millis(10);

pub(super) struct Service {
    shared: Arc<Shared>,
}

struct Shared {
    definition: Definition,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The process, from its start until it has been reaped: only while this is set may it be signalled.
    pid: Option<Pid>,
    stopping: bool,
    ended: bool,
}

impl Service {
    pub(super) fn start(definition: Definition) -> Self {
        let shared = Arc::new(Shared {
            definition,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let for_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for_thread.keep_running();
            for_thread.lock().ended = true;
            for_thread.changed.notify_all();
        });
        Self { shared }
    }

    /// Returns when the process is gone.
    pub(super) fn stop(&self) {
        let definition = &self.shared.definition;
        let running = self.shared.lock().pid.is_some();
        if running && let [program, arguments @ ..] = definition.before_stop.as_slice() {
            let outcome = run(Command::new(program).args(arguments));
            if !outcome.as_ref().is_ok_and(ExitStatus::success) {
                println!(
                    "{}: what runs before its stop failed: {outcome:?}",
                    definition.name
                );
            }
        }
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
        self.shared.signal(Signal::SIGTERM);
        if !self.shared.wait_for_end(definition.stop_limit) {
            println!(
                "{} did not stop within {:?}: killing it",
                definition.name, definition.stop_limit
            );
            self.shared.signal(Signal::SIGKILL);
            self.shared.wait_for_end(Duration::MAX);
        }
    }
}

impl Shared {
    fn keep_running(&self) {
        let name = &self.definition.name;
        while self.definition.after.iter().any(|file| !file.exists()) {
            if self.stopping_within(CONDITION_INTERVAL) {
                return;
            }
        }
        let mut delay = FIRST_DELAY;
        loop {
            let started = Instant::now();
            match self.run_once() {
                Ok(Some(how)) => println!("{name}: ended, {how}"),
                Ok(None) => return,
                Err(error) => println!("{name}: {error:#}"),
            }
            if started.elapsed() >= HEALTHY_AFTER {
                delay = FIRST_DELAY;
            }
            if self.stopping_within(delay) {
                return;
            }
            println!("{name}: starting it again after {delay:?}");
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }

    /// Starts the process, or finds it running, and returns when it has ended; `None` when it is not to be started any
    /// more.
    fn run_once(&self) -> Result<Option<String>> {
        let process = {
            let mut state = self.lock();
            if state.stopping {
                return Ok(None);
            }
            let process = match process::find(&self.definition) {
                Some(running) => Process::Adopted(running),
                None => Process::own(self.spawn()?)?,
            };
            state.pid = Some(process.pid());
            process
        };
        let (name, pid) = (&self.definition.name, process.pid());
        fs::write(&self.definition.pid_file, format!("{pid}\n"))
            .unwrap_or_else(|error| println!("{name}: writing its pid: {error}"));
        match &process {
            Process::Own(..) => println!("{name}: started, pid {pid}"),
            Process::Adopted(_) => println!("{name}: goes on, pid {pid}"),
        }
        process.wait();
        let mut state = self.lock();
        state.pid = None;
        fs::remove_file(&self.definition.pid_file).ok();
        Ok(Some(process.reap()?))
    }

    fn spawn(&self) -> Result<Child> {
        let (program, arguments) = self
            .definition
            .command
            .split_first()
            .context("the command is empty")?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.definition.log)
            .with_context(|| format!("opening {}", self.definition.log.display()))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            // Their log is a file.
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        orphans::spawn_own(&mut command).with_context(|| format!("could not start {program}"))
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.lock().pid {
            kill(pid, signal).ok();
        }
    }

    fn stopping_within(&self, time: Duration) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), time, |state| !state.stopping)
            .unwrap_or_else(PoisonError::into_inner);
        state.stopping
    }

    fn wait_for_end(&self, limit: Duration) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), limit, |state| !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        state.ended
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(command: &mut Command) -> std::io::Result<ExitStatus> {
    let mut child = orphans::spawn_own(command)?;
    let status = child.wait();
    orphans::forget(&child);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::signals;
    use crate::wait;

    fn service(folder: &std::path::Path, command: &[&str]) -> Definition {
        fs::create_dir_all(folder).unwrap();
        Definition {
            name: "test".into(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log: folder.join("log"),
            pid_file: folder.join("pid"),
            after: vec![],
            before_stop: vec![],
            stop_limit: Duration::from_millis(500),
        }
    }

    fn folder(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("windlass-supervise-{name}-{}", std::process::id()))
    }

    fn pid(folder: &std::path::Path) -> Option<i32> {
        fs::read_to_string(folder.join("pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    fn lives(pid: i32) -> bool {
        kill(Pid::from_raw(pid), None).is_ok()
    }

    #[test]
    fn a_killed_process_is_started_again() {
        let folder = folder("killed");
        let service = Service::start(service(&folder, &["sleep", "1000"]));
        let limit = Duration::from_secs(10);
        assert!(wait::until(limit, || pid(&folder).is_some()));
        let first = pid(&folder).unwrap();
        kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
        assert!(wait::until(limit, || pid(&folder).is_some_and(|now| now != first)));
        let second = pid(&folder).unwrap();
        service.stop();
        assert!(!lives(second));
        assert_eq!(pid(&folder), None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_an_earlier_supervisor_left_is_adopted_and_looked_after() {
        let folder = folder("adopted");
        let definition = || service(&folder, &["sleep", "1001"]);
        // Somebody else's child, as the services of a killed supervisor are.
        let script = format!("sleep 1001 & echo $! > {}", folder.join("pid").display());
        let limit = Duration::from_secs(10);
        definition();
        assert!(
            Command::new("sh")
                .args(["-c", &script])
                .status()
                .unwrap()
                .success()
        );
        let left = pid(&folder).unwrap();
        assert!(wait::until(limit, || process::find(&definition()).is_some()));
        assert!(process::find(&service(&folder, &["sleep", "1002"])).is_none());

        let service = Service::start(definition());
        assert!(!wait::until(Duration::from_millis(100), || pid(&folder) != Some(left)));
        kill(Pid::from_raw(left), Signal::SIGKILL).unwrap();
        assert!(wait::until(limit, || pid(&folder).is_some_and(|now| now != left)));
        let second = pid(&folder).unwrap();
        service.stop();
        assert!(!lives(second));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_process_that_ignores_sigterm_is_killed() {
        let folder = folder("stubborn");
        let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
        let service = Service::start(service(&folder, &["sh", "-c", script]));
        let limit = Duration::from_secs(10);
        // Only once the shell has said so does it ignore the signal.
        assert!(wait::until(limit, || {
            fs::read_to_string(folder.join("log")).is_ok_and(|log| log.contains("ready"))
        }));
        let process = pid(&folder).unwrap();
        service.stop();
        assert!(!lives(process));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_service_waits_for_its_files_and_can_be_stopped_while_it_waits() {
        let folder = folder("waits");
        let mut definition = service(&folder, &["sleep", "1000"]);
        definition.after = vec![folder.join("condition")];
        let waiting = Service::start(definition);
        assert!(!wait::until(Duration::from_millis(100), || pid(&folder).is_some()));
        fs::write(folder.join("condition"), "").unwrap();
        assert!(wait::until(Duration::from_secs(10), || pid(&folder).is_some()));
        waiting.stop();

        let mut never = service(&folder, &["sleep", "1000"]);
        never.after = vec![folder.join("never")];
        Service::start(never).stop();
        assert_eq!(pid(&folder), None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_process_gets_no_blocked_signals() {
        let folder = folder("signals");
        signals::block().unwrap();
        // Not through a shell: some clear the mask themselves.
        let service = Service::start(service(&folder, &["grep", "SigBlk", "/proc/self/status"]));
        assert!(wait::until(Duration::from_secs(10), || {
            fs::read_to_string(folder.join("log")).is_ok_and(|log| log.contains("SigBlk"))
        }));
        let log = fs::read_to_string(folder.join("log")).unwrap();
        assert!(log.starts_with("SigBlk:\t0000000000000000"), "{log}");
        service.stop();
        fs::remove_dir_all(folder).unwrap();
    }
}
