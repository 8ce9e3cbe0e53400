//! The supervisor: starts the cluster's processes, restarts what dies, and stops them in order, as systemd
//! does on a real host.
//!
//! One thread belongs to each service and is the only one that starts and reaps its process. The main thread
//! waits for SIGTERM and then stops the services in reverse order.

mod definition;
mod orphans;
mod service;
mod signals;

use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use definition::{Definition, write};

use crate::{layout, wait};
use service::Service;

/// The process that `up` leaves behind. Its standard output is its log.
pub fn run(arguments: &[String]) -> Result<()> {
    let [file] = arguments else {
        bail!("usage: xtask supervise DEFINITION.json")
    };
    nix::unistd::setsid().context("detaching from the terminal")?;
    close_inherited().context("letting go of the caller's files")?;
    let definitions = definition::read(Path::new(file))?;
    let _lock = take_lock()?;

    // Before the first thread starts, so that every thread leaves them to `wait`.
    let signals = signals::block().context("blocking signals")?;
    orphans::adopt().context("becoming the parent of orphans")?;

    let services: Vec<Service> = definitions.into_iter().map(Service::start).collect();
    let signal = signals.wait().context("waiting for a signal")?;
    println!("{signal}: stopping");
    for service in services.iter().rev() {
        service.stop();
    }
    orphans::reap_remaining();
    println!("stopped");
    Ok(())
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
