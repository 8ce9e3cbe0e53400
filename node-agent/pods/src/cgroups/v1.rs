//! The first generation: a tree per controller.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::write;
use crate::launch::resources::{Amounts, CPU_PERIOD};

/// Every hierarchy mounted below `mount`: the controllers', systemd's, and on hybrid
/// systems the unified one, in which eBPF programs tell pods apart.
pub(super) fn hierarchies(mount: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mounts")?;
    let mut found = Vec::new();
    for line in table.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(target), Some(kind)) = (words.next(), words.next()) else {
            continue;
        };
        let target = PathBuf::from(target);
        if matches!(kind, "cgroup" | "cgroup2") && target.starts_with(mount) {
            found.push(target);
        }
    }
    found.sort();
    found.dedup();
    if found.is_empty() {
        let message = format!("no cgroup hierarchy is mounted below {}", mount.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    Ok(found)
}

/// Makes one folder in one hierarchy and sets what its controller has a say in.
pub(super) fn make(folder: &Path, amounts: Option<&Amounts>) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    inherit(folder, "cpuset.cpus")?;
    inherit(folder, "cpuset.mems")?;
    let Some(amounts) = amounts else {
        return Ok(());
    };
    if folder.join("cpu.shares").exists() {
        write(folder, "cpu.shares", &amounts.cpu_shares().to_string())?;
    }
    if folder.join("cpu.cfs_quota_us").exists() {
        write(folder, "cpu.cfs_period_us", &CPU_PERIOD.to_string())?;
        let quota = amounts.cpu_quota();
        let quota = if quota == 0 { -1 } else { quota };
        write(folder, "cpu.cfs_quota_us", &quota.to_string())?;
    }
    if folder.join("memory.limit_in_bytes").exists() && amounts.memory_limit > 0 {
        write(
            folder,
            "memory.limit_in_bytes",
            &amounts.memory_limit.to_string(),
        )?;
    }
    Ok(())
}

/// A new cpuset is empty and takes no process until it is filled from its parent's, from
/// the top down.
fn inherit(folder: &Path, file: &str) -> io::Result<()> {
    let path = folder.join(file);
    let Ok(current) = fs::read_to_string(&path) else {
        return Ok(());
    };
    if !current.trim().is_empty() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        inherit(parent, file)?;
        let from_parent = fs::read_to_string(parent.join(file))?;
        write(folder, file, from_parent.trim())?;
    }
    Ok(())
}
