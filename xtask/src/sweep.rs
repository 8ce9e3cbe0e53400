//! Removes what a cluster has left on the machine, whether it was stopped in order or not.
//!
//! `down` calls this after the orderly stop, when there should be nothing left to find; after a crash or a
//! kill -9 of everything it is what cleans up. Things are recognised by where they are: mounts and sockets
//! below our folders, shims by the socket they serve, links and cgroups by our names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{layout, outside, process, wait};

/// The agent's device between nodes.
const TUNNEL: &str = "wlvxlan0";
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Removes everything and returns what could not be removed.
pub fn everything() -> Result<Vec<String>> {
    kill_all(own_processes());
    kill_all(cgroup_processes());
    outside::remove();
    remove_links();
    unmount_below(&[layout::run().to_path_buf(), layout::dot_windlass()])?;
    remove_cgroups();
    for node in layout::all_nodes() {
        fs::remove_dir_all(node.bpffs()).ok();
    }
    unmount_bpffs();
    fs::remove_dir_all(layout::RUN).ok();
    leftovers()
}

/// What is still there, in words.
pub fn leftovers() -> Result<Vec<String>> {
    let mut found = Vec::new();
    found.extend(
        own_processes()
            .into_iter()
            .map(|pid| format!("process {pid}")),
    );
    found.extend(
        own_links()
            .into_iter()
            .map(|link| format!("interface {link}")),
    );
    found.extend(
        mounts_below(&[layout::run().to_path_buf(), layout::dot_windlass()])?
            .into_iter()
            .map(|mount| format!("mount {}", mount.display())),
    );
    found.extend(
        cgroups()
            .into_iter()
            .map(|cgroup| format!("cgroup {}", cgroup.display())),
    );
    let pins = layout::all_nodes().map(layout::NodeLayout::bpffs);
    for path in pins.chain([layout::RUN.into()]) {
        if path.exists() {
            found.push(format!("folder {}", path.display()));
        }
    }
    let namespaces = outside::existing().into_iter();
    found.extend(namespaces.map(|netns| format!("network namespace {netns}")));
    Ok(found)
}

/// The supervisor's services and containerd's shims: whatever was started with one of our sockets or files.
fn own_processes() -> Vec<Pid> {
    let of_nodes = layout::all_nodes().flat_map(|node| {
        [
            node.containerd_socket(),
            node.containerd_config(),
            node.agent_socket(),
        ]
    });
    let marks: Vec<String> = of_nodes
        .chain([
            layout::supervisor_definition(),
            layout::control_plane_data(),
        ])
        .map(|path| path.display().to_string())
        .collect();
    let programs = ["containerd", "containerd-shim", "windlass-", "xtask"];
    all_processes()
        .into_iter()
        .filter(|&pid| pid != Pid::this() && Some(pid) != Some(Pid::parent()))
        .filter(|pid| {
            let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
                return false;
            };
            let line = String::from_utf8_lossy(&line);
            let mut words = line.split('\0');
            let program = words
                .next()
                .and_then(|path| path.rsplit('/').next())
                .unwrap_or_default();
            programs.iter().any(|name| program.starts_with(name))
                && words.any(|word| marks.iter().any(|mark| word.contains(mark)))
        })
        .collect()
}

fn all_processes() -> Vec<Pid> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .collect()
}

/// What runs in a pod's cgroup, when its shim is already gone.
fn cgroup_processes() -> Vec<Pid> {
    cgroups()
        .iter()
        .filter_map(|cgroup| fs::read_to_string(cgroup.join("cgroup.procs")).ok())
        .flat_map(|list| {
            list.lines()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .map(Pid::from_raw)
        .collect()
}

fn kill_all(processes: Vec<Pid>) {
    for &pid in &processes {
        kill(pid, Signal::SIGKILL).ok();
    }
    wait::until(GONE_WITHIN, || processes.iter().all(|&pid| is_gone(pid)));
}

/// A zombie holds nothing any more; whether it is reaped is its parent's business.
fn is_gone(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

/// Every folder of a pod's cgroup in every hierarchy, the deepest first.
fn cgroups() -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        if let Some(mount) = before.split(' ').nth(4)
            && after.starts_with("cgroup")
        {
            for node in layout::all_nodes() {
                let cgroup = node.pod_cgroups();
                collect_folders(
                    &Path::new(mount).join(cgroup.trim_start_matches('/')),
                    &mut found,
                );
            }
        }
    }
    found
}

fn collect_folders(folder: &Path, found: &mut Vec<PathBuf>) {
    if !folder.is_dir() {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_folders(&entry.path(), found);
        }
    }
    found.push(folder.to_path_buf());
}

fn remove_cgroups() {
    // A process that was killed leaves its cgroup a moment later.
    wait::until(GONE_WITHIN, || {
        cgroups()
            .iter()
            .for_each(|folder| drop(fs::remove_dir(folder)));
        cgroups().is_empty()
    });
}

fn remove_links() {
    for link in own_links() {
        process::succeeds(Command::new("ip").args(["link", "delete", &link]));
    }
}

fn own_links() -> Vec<String> {
    fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_own_link(name))
        .collect()
}

/// `wlout0`, the tunnel, and `wl` with 11 hexadecimal digits: wireless cards have names like `wlan0` and `wlp3s0`.
fn is_own_link(name: &str) -> bool {
    name == layout::OUTSIDE_LINK
        || name == TUNNEL
        || name
            .strip_prefix("wl")
            .is_some_and(|rest| rest.len() == 11 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Only if `up` has mounted it, and nobody else has pinned anything in it since.
fn unmount_bpffs() {
    let mount_point = Path::new(layout::BPFFS);
    let empty = fs::read_dir(mount_point).is_ok_and(|mut entries| entries.next().is_none());
    if empty && layout::run().join("mounted-bpffs").exists() {
        umount2(mount_point, MntFlags::empty()).ok();
    }
}

fn unmount_below(folders: &[PathBuf]) -> Result<()> {
    for mount in mounts_below(folders)? {
        umount2(&mount, MntFlags::MNT_DETACH).ok();
    }
    Ok(())
}

/// The last mounted first, because it may lie on top of another. `.windlass` itself may be a mount of the user's.
fn mounts_below(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let users = layout::dot_windlass();
    let mut mounts: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| folders.iter().any(|folder| path.starts_with(folder)) && *path != users)
        .collect();
    mounts.reverse();
    Ok(mounts)
}

/// The kernel writes a space as `\040`.
pub fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_links_are_recognised() {
        assert!(is_own_link("wlout0"));
        assert!(is_own_link("wl0123456789a"));
        assert!(!is_own_link("wlan0"));
        assert!(!is_own_link("wlp3s0"));
        assert!(!is_own_link("wl0123456789x"));
    }
}
