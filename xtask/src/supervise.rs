//! The supervisor: starts the cluster's processes, restarts what dies, and stops them in order, as systemd
//! does on a real host.
//!
//! One thread belongs to each service and is the only one that starts and reaps its process. The main thread
//! waits for SIGTERM and then stops the services in reverse order.
//!
//! Nobody supervises the supervisor but its own last service, the guard: a second supervisor that has the first as
//! its one service. Either may be killed, and is started again by the other; what ran meanwhile is adopted.

mod definition;
mod orphans;
mod process;
mod service;
mod signals;

use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

pub use definition::{Definition, write};

use crate::{cargo, layout, wait};
use service::Service;

/// The names of the two processes that look after each other.
const SUPERVISOR: &str = "supervisor";
const GUARD: &str = "guard";
const AS_GUARD: &str = "--guard";

/// The process that `up` leaves behind. Its standard output is its log.
pub fn run(arguments: &[String]) -> Result<()> {
    match arguments {
        [file] => supervise(Path::new(file)),
        [flag, file] if flag == AS_GUARD => guard(Path::new(file)),
        _ => bail!("usage: xtask supervise DEFINITION.json"),
    }
}

fn supervise(file: &Path) -> Result<()> {
    let definitions = definition::read(file)?;
    let signals = detach()?;
    let _lock = take_lock()?;
    let pid_file = layout::pid_file(SUPERVISOR);
    fs::write(&pid_file, format!("{}\n", std::process::id()))
        .with_context(|| format!("writing {}", pid_file.display()))?;

    let definitions = definitions.into_iter().chain([guarding(GUARD, file)]);
    let services: Vec<Service> = definitions.map(Service::start).collect();
    let signal = signals.wait().context("waiting for a signal")?;
    println!("{signal}: stopping");
    for service in services.iter().rev() {
        service.stop();
    }
    orphans::reap_remaining();
    fs::remove_file(pid_file).ok();
    println!("stopped");
    Ok(())
}

/// Ends without a word to the supervisor, who is the one to tell it to.
fn guard(file: &Path) -> Result<()> {
    let signals = detach()?;
    let _supervisor = Service::start(guarding(SUPERVISOR, file));
    signals.wait().context("waiting for a signal")?;
    Ok(())
}

fn guarding(name: &str, file: &Path) -> Definition {
    let command = start_command(name == GUARD, file);
    Definition {
        name: name.to_owned(),
        command,
        log: layout::log(SUPERVISOR),
        pid_file: layout::pid_file(name),
        after: vec![],
        before_stop: vec![],
        stop_limit: Duration::from_secs(5),
    }
}

/// What starts the supervisor, or its guard, of the services that a file defines. Each knows the other by it.
fn start_command(as_guard: bool, file: &Path) -> Vec<String> {
    let flag = as_guard.then(|| AS_GUARD.to_owned());
    [
        cargo::own_binary().display().to_string(),
        "supervise".to_owned(),
    ]
    .into_iter()
    .chain(flag)
    .chain([file.display().to_string()])
    .collect()
}

/// A session of its own, nobody's files, and the signals that end it, blocked before the first thread starts, so that
/// every thread leaves them to `wait`.
fn detach() -> Result<SigSet> {
    nix::unistd::setsid().context("detaching from the terminal")?;
    close_inherited().context("letting go of the caller's files")?;
    let signals = signals::block().context("blocking signals")?;
    orphans::adopt().context("becoming the parent of orphans")?;
    Ok(signals)
}

/// Starts the supervisor in the background, in a session of its own.
pub fn spawn(definition: &Path) -> Result<()> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(layout::log(SUPERVISOR))?;
    let command = start_command(false, definition);
    let [program, arguments @ ..] = command.as_slice() else {
        bail!("the command is empty")
    };
    Command::new(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("could not start the supervisor")?;
    Ok(())
}

/// Whether services run that no supervisor looks after: it was killed, and its guard as well.
pub fn orphaned() -> bool {
    let told = definition::read(&layout::supervisor_definition()).unwrap_or_default();
    running().is_none() && told.iter().any(|service| process::find(service).is_some())
}

/// Nobody starts the supervisor again after this.
pub fn dismiss_guard() {
    let guard = guarding(GUARD, &layout::supervisor_definition());
    if let Some(guard) = process::find(&guard) {
        guard.signal(Signal::SIGKILL);
    }
}

/// Whoever called `up` may hold a lock or a pipe open, and would wait for us for as long as the cluster runs.
fn close_inherited() -> Result<()> {
    const STANDARD_ERROR: i32 = 2;
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&file| file > STANDARD_ERROR)
        .collect();
    for file in open {
        // The one that read the folder is closed by now.
        nix::unistd::close(file).ok();
    }
    Ok(())
}

/// The pid of the running supervisor and the repository that it belongs to.
pub fn running() -> Option<(i32, String)> {
    let file = File::open(layout::supervisor_lock()).ok()?;
    if file.try_lock_shared().is_ok() {
        return None;
    }
    let content = fs::read_to_string(layout::supervisor_lock()).ok()?;
    let (pid, repository) = content.trim().split_once(' ')?;
    Some((pid.parse().ok()?, repository.to_owned()))
}

/// The names of the services that the last `up` told the supervisor of.
pub fn services() -> Vec<String> {
    let told = definition::read(&layout::supervisor_definition()).unwrap_or_default();
    told.into_iter().map(|service| service.name).collect()
}

fn take_lock() -> Result<File> {
    fs::create_dir_all(layout::RUN)?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(layout::supervisor_lock())
        .context("opening the supervisor's lock")?;
    // `status` takes the lock for an instant, to see whether somebody has it.
    if !wait::until(Duration::from_secs(1), || file.try_lock().is_ok()) {
        bail!("another supervisor runs on this machine");
    }
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    write!(
        file,
        "{} {}",
        std::process::id(),
        layout::repository().display()
    )?;
    Ok(file)
}
