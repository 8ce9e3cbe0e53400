//! A containerd of our own, beside the one that a machine may already run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::preflight::Host;
use crate::{layout, process, setup};

/// The namespace in which containerd keeps what comes through the CRI.
const NAMESPACE: &str = "k8s.io";
pub const PAUSE_IMAGE: &str = "windlass.dev/pause:dev";

/// Writes the configuration and the CNI folders that it names.
pub fn prepare(host: &Host) -> Result<()> {
    for folder in [
        layout::cni_conf(),
        layout::cni_bin(),
        layout::containerd_root(),
    ] {
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let loopback = layout::cni_bin().join("loopback");
    fs::remove_file(&loopback).ok();
    let plugin = setup::loopback_plugin().context("the CNI loopback plugin is missing")?;
    std::os::unix::fs::symlink(plugin, &loopback)
        .with_context(|| format!("linking {}", loopback.display()))?;
    let file = layout::containerd_config();
    fs::write(&file, configuration(host)).with_context(|| format!("writing {}", file.display()))
}

/// Version 2 of the format: containerd 1.x reads it as it is, 2.x translates it when it starts.
fn configuration(host: &Host) -> String {
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    format!(
        r#"# Written by `cargo xtask up`.
version = 2
root = {root}
state = {state}
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = {socket}

[plugins."io.containerd.nri.v1.nri"]
  # Its socket has one fixed path for all containerds of a machine.
  disable = true

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE no sandbox could get the lower score that the CRI asks for.
  restrict_oom_score_adj = {restrict_oom_score_adj}
  # So that `down` finds every network namespace.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {cni_bin}
    conf_dir = {cni_conf}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#,
        root = quoted(&layout::containerd_root()),
        state = quoted(&layout::containerd_state()),
        socket = quoted(&layout::containerd_socket()),
        restrict_oom_score_adj = !host.may_lower_oom_score,
        cni_bin = quoted(&layout::cni_bin()),
        cni_conf = quoted(&layout::cni_conf()),
        snapshotter = host.snapshotter,
    )
}

/// Puts an OCI or docker archive where the CRI finds it; returns the names of the images.
pub fn import(archive: &Path, snapshotter: Option<&str>) -> Result<Vec<String>> {
    let mut ctr = ctr(&["images", "import"]);
    if let Some(snapshotter) = snapshotter {
        ctr.args(["--snapshotter", snapshotter]);
    }
    let said = process::output(ctr.arg(archive))?;
    Ok(said
        .lines()
        .filter_map(|line| line.strip_prefix("unpacking "))
        .filter_map(|rest| rest.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

pub fn answers() -> bool {
    layout::containerd_socket().exists() && process::succeeds(&mut ctr(&["version"]))
}

/// Ends every container and forgets it. `down` has the supervisor call this when the agent has stopped and
/// containerd has not: nobody starts the pods again, and nothing of them is left for the next `up`.
pub fn remove_pods() -> Result<()> {
    let names = |listing: String| -> Vec<String> { listing.lines().map(str::to_owned).collect() };
    let tasks = names(process::output(&mut ctr(&["tasks", "list", "--quiet"]))?);
    if !tasks.is_empty() {
        process::output(ctr(&["tasks", "delete", "--force"]).args(&tasks))?;
    }
    let containers = names(process::output(&mut ctr(&[
        "containers",
        "list",
        "--quiet",
    ]))?);
    if !containers.is_empty() {
        process::output(ctr(&["containers", "delete"]).args(&containers))?;
    }
    println!("removed {} containers", containers.len());
    Ok(())
}

fn ctr(arguments: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command
        .arg("--address")
        .arg(layout::containerd_socket())
        .args(["--namespace", NAMESPACE])
        .args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_restricts_oom_scores_only_where_it_must() {
        let mut host = Host {
            name: "n".into(),
            address: [192, 0, 2, 1].into(),
            outside: crate::outside::Addresses {
                host: [198, 51, 100, 1].into(),
                outside: [198, 51, 100, 2].into(),
            },
            uplink: None,
            cgroup2: "/sys/fs/cgroup".into(),
            may_lower_oom_score: true,
            snapshotter: "overlayfs",
        };
        assert!(configuration(&host).contains("restrict_oom_score_adj = false"));
        host.may_lower_oom_score = false;
        assert!(configuration(&host).contains("restrict_oom_score_adj = true"));
    }
}
