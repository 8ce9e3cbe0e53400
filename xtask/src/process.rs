//! Running other programs: what was run and what it said become part of the error.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait;

/// Runs a command whose output belongs on the user's screen.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("could not start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs a command for its standard output; what it says on standard error goes into the error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = captured(command)?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}\n{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command quietly and says whether it succeeded; a program that is not there is a failure.
pub fn succeeds(command: &mut Command) -> bool {
    captured(command).is_ok_and(|output| output.status.success())
}

/// Runs a command with its output on the screen, and kills it when it takes longer than `limit`.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child = command
        .spawn()
        .with_context(|| format!("could not start `{}`", shown(command)))?;
    let mut status = None;
    wait::until(limit, || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("`{}` failed: {status}", shown(command)),
        None => {
            child.kill().ok();
            child.wait().ok();
            bail!(
                "`{}` took longer than {} s",
                shown(command),
                limit.as_secs()
            )
        }
    }
}

/// Finds a program the way a shell does, and also where administrators' programs lie.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn captured(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not start `{}`", shown(command)))
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
