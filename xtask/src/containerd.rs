//! A containerd of our own for each node, beside the one that a machine may already run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::layout::NodeLayout;
use crate::preflight::Host;
use crate::{layout, process, setup};

/// The namespace in which containerd keeps what comes through the CRI.
const NAMESPACE: &str = "k8s.io";
pub const PAUSE_IMAGE: &str = "windlass.dev/pause:dev";

/// Writes the configuration and the CNI folders that it names.
pub fn prepare(host: &Host, node: NodeLayout) -> Result<()> {
    for folder in [node.cni_conf(), node.cni_bin(), node.containerd_root()] {
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let loopback = node.cni_bin().join("loopback");
    fs::remove_file(&loopback).ok();
    let plugin = setup::loopback_plugin().context("the CNI loopback plugin is missing")?;
    std::os::unix::fs::symlink(plugin, &loopback)
        .with_context(|| format!("linking {}", loopback.display()))?;
    let file = node.containerd_config();
    fs::write(&file, configuration(host, node))
        .with_context(|| format!("writing {}", file.display()))
}

/// Version 2 of the format: containerd 1.x reads it as it is, 2.x translates it when it starts.
fn configuration(host: &Host, node: NodeLayout) -> String {
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
  # As by default since 2.0: whoever is not root may listen below 1024, and ping.
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
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
        root = quoted(&node.containerd_root()),
        state = quoted(&node.containerd_state()),
        socket = quoted(&node.containerd_socket()),
        restrict_oom_score_adj = !host.may_lower_oom_score,
        cni_bin = quoted(&node.cni_bin()),
        cni_conf = quoted(&node.cni_conf()),
        snapshotter = host.snapshotter,
    )
}

/// Puts an OCI or docker archive where the CRI finds it; returns the names of the images.
pub fn import(node: NodeLayout, archive: &Path, snapshotter: Option<&str>) -> Result<Vec<String>> {
    let mut ctr = ctr(node, &["images", "import"]);
    if let Some(snapshotter) = snapshotter {
        ctr.args(["--snapshotter", snapshotter]);
    }
    Ok(imported(&process::output(ctr.arg(archive))?))
}

/// The names in what `ctr` says: `unpacking NAME (sha256:…)...done` until 1.7, `NAME saved` since 2.0.
fn imported(said: &str) -> Vec<String> {
    let name = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["unpacking", name, ..] | [name, "saved"] => Some(name.to_owned()),
            _ => None,
        }
    };
    said.lines().filter_map(name).collect()
}

pub fn answers(node: NodeLayout) -> bool {
    node.containerd_socket().exists() && process::succeeds(&mut ctr(node, &["version"]))
}

/// Ends every container and forgets it. `down` has the supervisor call this when the agent has stopped and
/// containerd has not: nobody starts the pods again, and nothing of them is left for the next `up`.
pub fn remove_pods(arguments: &[String]) -> Result<()> {
    let number = arguments.first().map(String::as_str).unwrap_or("1");
    let node = layout::all_nodes()
        .find(|node| node.number().to_string() == number)
        .with_context(|| format!("there is no node {number}"))?;
    let names = |listing: String| -> Vec<String> { listing.lines().map(str::to_owned).collect() };
    let tasks = names(process::output(&mut ctr(
        node,
        &["tasks", "list", "--quiet"],
    ))?);
    if !tasks.is_empty() {
        process::output(ctr(node, &["tasks", "delete", "--force"]).args(&tasks))?;
    }
    let containers = names(process::output(&mut ctr(
        node,
        &["containers", "list", "--quiet"],
    ))?);
    if !containers.is_empty() {
        process::output(ctr(node, &["containers", "delete"]).args(&containers))?;
    }
    println!("removed {} containers", containers.len());
    Ok(())
}

fn ctr(node: NodeLayout, arguments: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command
        .arg("--address")
        .arg(node.containerd_socket())
        .args(["--namespace", NAMESPACE])
        .args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_imported_images_are_read_whichever_ctr_says_them() {
        let old = "unpacking windlass.dev/echo:dev (sha256:d650)...done\n";
        let new = "windlass.dev/echo:dev                   \tsaved\t\n\
                   application/vnd.oci.image.manifest.v1+json sha256:d650\n\
                   Importing\telapsed: 0.9 s\ttotal:   0.0 B\t(0.0 B/s)\t\n";
        for said in [old, new] {
            assert_eq!(imported(said), ["windlass.dev/echo:dev"]);
        }
    }

    #[test]
    fn the_runtime_restricts_oom_scores_only_where_it_must() {
        let node = layout::all_nodes().next().unwrap();
        let mut host = Host {
            nodes: vec![],
            address: [192, 0, 2, 1].into(),
            outside: crate::outside::Addresses {
                host: [198, 51, 100, 1].into(),
                outside: [198, 51, 100, 2].into(),
            },
            families: crate::up::families::Families::Ipv4,
            uplink: None,
            cgroup2: "/sys/fs/cgroup".into(),
            may_lower_oom_score: true,
            snapshotter: "overlayfs",
        };
        assert!(configuration(&host, node).contains("restrict_oom_score_adj = false"));
        host.may_lower_oom_score = false;
        assert!(configuration(&host, node).contains("restrict_oom_score_adj = true"));
    }
}
