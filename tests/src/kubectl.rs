//! The real kubectl, as a user calls it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cluster;

/// What kubectl said, whether it succeeded or not.
#[derive(Debug)]
pub struct Said {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

/// Runs it and returns standard output; anything but success is an error that carries what it said.
pub fn kubectl(arguments: &[&str]) -> Result<String> {
    kubectl_with_input(arguments, "")
}

/// Runs it with `input` on its standard input, as `kubectl … -f -` reads a manifest.
pub fn kubectl_with_input(arguments: &[&str], input: &str) -> Result<String> {
    let said = try_kubectl(arguments, input)?;
    if !said.success {
        bail!(
            "`kubectl {}` failed:\n{}{}",
            arguments.join(" "),
            said.stdout,
            said.stderr
        );
    }
    Ok(said.stdout)
}

/// Waits until every node is ready, for as many seconds at the most.
pub fn nodes_ready(seconds: u32) -> Result<()> {
    let limit = format!("--timeout={seconds}s");
    kubectl(&["wait", "node", "--all", "--for=condition=Ready", &limit])?;
    Ok(())
}

/// For calls whose failure is what the test is about.
pub fn try_kubectl(arguments: &[&str], input: &str) -> Result<Said> {
    let mut child = command()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("could not start kubectl")?;
    let mut stdin = child.stdin.take().context("kubectl has a standard input")?;
    // kubectl may refuse its arguments and be gone before it reads.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    let output = child.wait_with_output()?;
    Ok(Said {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// kubectl with the cluster's kubeconfig and nothing else of the caller's environment that it heeds.
pub fn command() -> Command {
    let mut command = Command::new("kubectl");
    command
        .env("KUBECONFIG", cluster::kubeconfig())
        .current_dir(cluster::repository());
    command
}
