//! What a cluster has on its nodes, in counts: whoever has deleted everything shall find them as before.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use windlass_tests::cluster::{self, Cluster, Node};
use windlass_tests::netns;

use super::faults::pids;
use super::processes::parents;

/// By kind (and node), the names of what is there.
#[derive(Debug, Default)]
pub(super) struct Remains(BTreeMap<String, Vec<String>>);

impl Remains {
    pub(super) fn of(cluster: &Cluster, nodes: &[Node]) -> Result<Self> {
        let mut found = Self::default();
        for (number, node) in nodes.iter().enumerate() {
            let variable = |name: &str| match number {
                0 => cluster.variable(name),
                _ => cluster.variable(&format!("{name}_{}", number + 1)),
            };
            let mut add = |kind: &str, names: Vec<String>| {
                found.0.insert(format!("{kind} of {}", node.name), names);
            };
            add("pod interfaces", interfaces(node)?);
            add("leases", leases(number)?);
            let socket = variable("WINDLASS_AGENT_SOCKET")?;
            for table in ["services", "backends"] {
                add(table, rows(socket, table)?);
            }
            let runtime = variable("WINDLASS_CONTAINERD")?;
            for kind in ["containers", "tasks"] {
                add(kind, of_runtime(runtime, kind)?);
            }
        }
        found.0.insert("shims".into(), shims()?);
        found.0.insert("mounts".into(), mounts()?);
        found.0.insert("cgroups".into(), cgroups()?);
        Ok(found)
    }

    /// What is more than `before`, in words.
    pub(super) fn beyond(&self, before: &Self) -> Vec<String> {
        let more = self.0.iter().filter_map(|(kind, names)| {
            let known = before.0.get(kind).map(Vec::as_slice).unwrap_or_default();
            let new: Vec<&String> = names.iter().filter(|name| !known.contains(name)).collect();
            // Another process, address or id may stand for the same thing after a restart.
            (names.len() > known.len())
                .then(|| format!("{kind}: {} more: {new:?}", names.len() - known.len()))
        });
        more.collect()
    }
}

fn interfaces(node: &Node) -> Result<Vec<String>> {
    let list = || -> Result<Vec<String>> {
        let all = nix::net::if_::if_nameindex().context("listing interfaces")?;
        let names = all
            .iter()
            .map(|one| one.name().to_string_lossy().into_owned());
        Ok(names
            .filter(|name| name.len() == 13 && name.starts_with("wl"))
            .collect())
    };
    match &node.netns {
        Some(netns) => netns::inside(netns, list),
        None => list(),
    }
}

/// Addresses in use: those that rest are free again soon.
fn leases(number: usize) -> Result<Vec<String>> {
    let agent = match number {
        0 => "agent".to_owned(),
        _ => format!("agent-{}", number + 1),
    };
    let folder = cluster::repository()
        .join(".windlass/data")
        .join(agent)
        .join("network/leases");
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let file = entry?;
        let Ok(text) = fs::read_to_string(file.path()) else {
            continue;
        };
        let lease: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        if lease["released_at"].is_null() {
            found.push(format!("{} {text}", file.file_name().to_string_lossy()));
        }
    }
    Ok(found)
}

/// What the kernel holds, as the agent tells it.
fn rows(socket: &str, table: &str) -> Result<Vec<String>> {
    let agent = std::env::current_exe()?;
    let folder = agent.ancestors().nth(2).context("the target folder")?;
    let mut ask = Command::new(folder.join("windlass-node-agent"));
    said(ask.args([table, "--socket", socket]))
}

fn of_runtime(socket: &str, kind: &str) -> Result<Vec<String>> {
    said(Command::new("ctr").args([
        "--address",
        socket,
        "--namespace",
        "k8s.io",
        kind,
        "ls",
        "-q",
    ]))
}

fn said(command: &mut Command) -> Result<Vec<String>> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

/// Those that hold a process. The others are the runtime's own: containerd 1.6, killed between the end of a sandbox and
/// that of its shim, forgets this one.
fn shims() -> Result<Vec<String>> {
    let parents = parents()?;
    let holding = pids()?.filter(|pid| parents.contains(&pid.as_raw()));
    let lines = holding.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok());
    Ok(lines
        .map(|line| line.replace('\0', " "))
        .filter(|line| line.contains("containerd-shim") && line.contains("/run/windlass/"))
        .collect())
}

fn mounts() -> Result<Vec<String>> {
    let own = [
        Path::new("/run/windlass").to_path_buf(),
        cluster::repository().join(".windlass"),
    ];
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points
        .filter(|point| {
            own.iter()
                .any(|folder| Path::new(point).starts_with(folder))
        })
        .map(str::to_owned)
        .collect())
}

/// Folders of pods in every hierarchy. Those of the classes of service come with the first pod of a class, and stay.
fn cgroups() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
        for root in fs::read_dir(hierarchy.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            if root.file_name().to_string_lossy().starts_with("windlass") {
                collect(&root.path(), &mut found);
            }
        }
    }
    found.retain(|folder| !folder.ends_with("/besteffort") && !folder.ends_with("/burstable"));
    Ok(found)
}

fn collect(folder: &PathBuf, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
            found.push(entry.path().display().to_string());
        }
    }
}
