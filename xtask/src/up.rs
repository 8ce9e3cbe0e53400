//! `cargo xtask up`: from a clone to a Node that is Ready.

mod cluster;

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::progress::Progress;
use crate::{cargo, containerd, image, layout, preflight, process, setup, summary, supervise};

pub fn run(arguments: &[String]) -> Result<()> {
    let build = match arguments {
        [] => true,
        [flag] if flag == "--no-build" => false,
        _ => bail!("usage: cargo xtask up [--no-build]"),
    };
    preflight::require_root("up")?;
    let progress = Progress::start();
    let _lock = command_lock("up")?;
    if already_running(&progress)? {
        return Ok(());
    }
    if build {
        let missing = setup::unsatisfied();
        if !missing.is_empty() {
            progress.say(format!("installing {}", missing.join(", ")));
            setup::run()?;
        }
        build_everything(&progress)?;
    }
    start(&progress)
}

/// Starts what is built; the clock of the promise "Node Ready within 3 s" runs from here.
pub fn start(progress: &Progress) -> Result<()> {
    let since_start = Progress::start();
    progress.say("checking this machine");
    let host = preflight::host()?;
    progress.say(format!(
        "node {} at {}, uplink {}, snapshotter {}",
        host.name,
        host.address,
        host.uplink.as_deref().unwrap_or("none"),
        host.snapshotter
    ));
    if let Err(error) = cluster::start(&host, progress) {
        return Err(error.context(format!(
            "the cluster did not start (logs: {}; `cargo xtask down` removes what has started)",
            layout::logs().display()
        )));
    }
    summary::write_environment(&host)?;
    progress.say(format!(
        "up: Node {} is Ready, {:.1} s after the start of the cluster",
        host.name,
        since_start.elapsed().as_secs_f64()
    ));
    summary::print();
    Ok(())
}

/// The binaries and the images, in one profile.
pub fn build_everything(progress: &Progress) -> Result<()> {
    progress.say("building (the first time takes some minutes)");
    process::run(cargo::workspace("build").arg("--bins"))?;
    progress.say(format!("writing the images {}", image::FOR_UP.join(", ")));
    for name in image::FOR_UP {
        image::write(name)?;
    }
    Ok(())
}

fn already_running(progress: &Progress) -> Result<bool> {
    let Some((pid, repository)) = supervise::running() else {
        return Ok(false);
    };
    if repository != layout::repository().display().to_string() {
        bail!(
            "a cluster of {repository} already runs on this machine (supervisor {pid}): run `cargo xtask down` there"
        );
    }
    progress.say(format!(
        "a cluster already runs (supervisor {pid}); `cargo xtask down` stops it"
    ));
    cluster::wait_until_ready("", progress)?;
    summary::print();
    Ok(true)
}

/// Waits until no other `up` or `down` works on this machine's cluster.
pub fn command_lock(command: &str) -> Result<File> {
    let path = layout::command_lock();
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    if file.try_lock().is_err() {
        let other = fs::read_to_string(&path).unwrap_or_default();
        println!(
            "another `cargo xtask {}` is at work: waiting for it",
            other.trim()
        );
        file.lock().context("waiting for the other command")?;
    }
    file.set_len(0)?;
    write!(file, "{command} (pid {})", std::process::id())?;
    Ok(file)
}

/// Starts the supervisor in the background, in a session of its own.
fn spawn_supervisor() -> Result<()> {
    let log = File::create(layout::log("supervisor"))?;
    Command::new(cargo::own_binary())
        .arg("supervise")
        .arg(layout::supervisor_definition())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("could not start the supervisor")?;
    Ok(())
}

/// Loads what `up` promises to load.
fn import_images(snapshotter: &str) -> Result<()> {
    for name in image::FOR_UP {
        let archive = layout::images().join(format!("{name}.tar"));
        if !archive.exists() {
            bail!(
                "{} is missing: run `cargo xtask up` without --no-build",
                archive.display()
            );
        }
        containerd::import(&archive, Some(snapshotter))?;
    }
    Ok(())
}
