//! `cargo xtask down`: stops the cluster and leaves nothing of it on the machine.
//!
//! The store, the images and the volumes stay in `.windlass/data`, as on a host that is switched off; the next
//! `up` goes on with them. `--purge` removes them too.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::layout::NodeLayout;
use crate::progress::Progress;
use crate::{cargo, layout, preflight, process, supervise, sweep, up, wait};

/// The supervisor stops agent, control plane, pods and containerd one after the other.
const ORDERLY_STOP: Duration = Duration::from_secs(90);

pub fn run(arguments: &[String]) -> Result<()> {
    let purge = match arguments {
        [] => false,
        [flag] if flag == "--purge" => true,
        _ => bail!("usage: cargo xtask down [--purge]"),
    };
    preflight::require_root("down")?;
    let _lock = up::command_lock("down")?;
    stop(&Progress::start())?;
    if purge {
        fs::remove_dir_all(layout::dot_windlass())
            .or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })
            .with_context(|| format!("removing {}", layout::dot_windlass().display()))?;
    }
    Ok(())
}

pub fn stop(progress: &Progress) -> Result<()> {
    match supervise::running() {
        Some((pid, repository)) if repository != layout::repository().display().to_string() => {
            bail!(
                "the running cluster (supervisor {pid}) belongs to {repository}: run `down` there"
            );
        }
        Some((pid, _)) => {
            progress.say(format!(
                "stopping the agent, the control plane, the pods and containerd (supervisor {pid})"
            ));
            kill(Pid::from_raw(pid), Signal::SIGTERM).context("signalling the supervisor")?;
            if !wait::until(ORDERLY_STOP, || supervise::running().is_none()) {
                progress.say("the supervisor does not end: killing it");
                supervise::dismiss_guard();
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
        None => {
            supervise::dismiss_guard();
            progress.say("no cluster runs; looking for remains");
        }
    }
    layout::all_nodes().for_each(agent_cleanup);
    let left = sweep::everything()?;
    let of_nodes = layout::all_nodes().map(NodeLayout::kubeconfig);
    for file in of_nodes.chain([layout::environment_file(), layout::kubeconfig()]) {
        fs::remove_file(file).ok();
    }
    fs::remove_dir_all(
        layout::pid_file("any")
            .parent()
            .context("the folder of pid files")?,
    )
    .ok();
    if !left.is_empty() {
        bail!("could not remove:\n  - {}", left.join("\n  - "));
    }
    progress.say("down: nothing is left on this machine");
    Ok(())
}

/// Only the agent knows what it attached to interfaces and cgroups that are not its own.
fn agent_cleanup(node: NodeLayout) {
    let agent = cargo::binary("windlass-node-agent");
    if !agent.exists() || !may_have_run(node) {
        return;
    }
    let command = [
        agent.as_path(),
        "cleanup".as_ref(),
        "--state-dir".as_ref(),
        &node.agent_data(),
        "--socket".as_ref(),
        &node.agent_socket(),
        "--bpffs".as_ref(),
        &node.bpffs(),
        "--cgroup-root".as_ref(),
        node.pod_cgroups().as_ref(),
        "--cni-conf-dir".as_ref(),
        &node.cni_conf(),
    ]
    .map(|word| word.display().to_string());
    let command = node.command(command.to_vec());
    if let [program, arguments @ ..] = command.as_slice()
        && let Err(error) = process::output(Command::new(program).args(arguments))
    {
        println!("the agent's own cleanup failed: {error:#}");
    }
}

/// What a namespace held is gone with it.
fn may_have_run(node: NodeLayout) -> bool {
    node.netns()
        .is_none_or(|netns| Path::new(layout::NETNS_FOLDER).join(netns).exists())
}
