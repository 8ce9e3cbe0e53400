//! How much is left of what a node can run out of, and what that means by its thresholds.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use windlass_cri::Runtime;

use super::thresholds::{Level, Signal, Thresholds};

/// What a node has too little of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shortage {
    /// Memory.
    pub memory: bool,
    /// Bytes or inodes of the disk that pods' files or images lie on.
    pub disk: bool,
    /// Process ids.
    pub pids: bool,
}

impl Shortage {
    fn by(thresholds: &Thresholds, levels: &BTreeMap<Signal, Level>) -> Self {
        let mut shortage = Self::default();
        for (signal, ..) in thresholds.crossed(levels) {
            match signal {
                Signal::MemoryAvailable => shortage.memory = true,
                Signal::PidAvailable => shortage.pids = true,
                _ => shortage.disk = true,
            }
        }
        shortage
    }
}

/// What the node is short of now: by the same thresholds at which pods are evicted, so that its
/// conditions never keep pods away that would not be evicted. What cannot be measured is not short.
pub async fn shortage(thresholds: &Thresholds, state_dir: &Path, runtime: &Runtime) -> Shortage {
    Shortage::by(thresholds, &measure(state_dir, runtime).await)
}

/// What is left of everything; what cannot be read is not judged.
pub(super) async fn measure(state_dir: &Path, runtime: &Runtime) -> BTreeMap<Signal, Level> {
    let mut levels = BTreeMap::new();
    if let Ok(text) = fs::read_to_string("/proc/meminfo")
        && let (Some(available), Some(capacity)) = (
            kilobytes(&text, "MemAvailable:"),
            kilobytes(&text, "MemTotal:"),
        )
    {
        let level = Level {
            available: available << 10,
            capacity: capacity << 10,
        };
        levels.insert(Signal::MemoryAvailable, level);
    }
    let node_fs = file_system(state_dir);
    let image_fs = match runtime.image_fs_info().await {
        Ok(infos) => infos
            .first()
            .and_then(|info| info.fs_id.as_ref())
            .and_then(|id| file_system(Path::new(&id.mountpoint))),
        Err(_) => None,
    };
    let pairs = [
        (Signal::NodeFsAvailable, Signal::NodeFsInodesFree, node_fs),
        (
            Signal::ImageFsAvailable,
            Signal::ImageFsInodesFree,
            image_fs,
        ),
    ];
    for (space, inodes, seen) in pairs {
        if let Some((bytes, files)) = seen {
            levels.insert(space, bytes);
            levels.extend(files.map(|files| (inodes, files)));
        }
    }
    if let Some(pids) = pids() {
        levels.insert(Signal::PidAvailable, pids);
    }
    levels
}

/// Bytes and, where the file system counts them, inodes.
pub(crate) fn file_system(path: &Path) -> Option<(Level, Option<Level>)> {
    let seen = statvfs(path).ok()?;
    let whole = |blocks: u64, size: u64| i64::try_from(blocks.saturating_mul(size)).ok();
    let bytes = Level {
        available: whole(seen.blocks_available(), seen.fragment_size())?,
        capacity: whole(seen.blocks(), seen.fragment_size())?,
    };
    let files = Level {
        available: whole(seen.files_available(), 1)?,
        capacity: whole(seen.files(), 1)?,
    };
    Some((bytes, Some(files).filter(|files| files.capacity > 0)))
}

fn kilobytes(meminfo: &str, name: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn pids() -> Option<Level> {
    let read = |file: &str| -> Option<i64> { fs::read_to_string(file).ok()?.trim().parse().ok() };
    let most = read("/proc/sys/kernel/pid_max")?.min(read("/proc/sys/kernel/threads-max")?);
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let tasks = load.split_whitespace().nth(3)?.split('/').nth(1)?;
    Some(Level {
        available: most - tasks.parse::<i64>().ok()?,
        capacity: most,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_a_threshold_can_be_short() {
        let nearly_full = Level {
            available: 1,
            capacity: 100,
        };
        let levels = [Signal::NodeFsInodesFree, Signal::PidAvailable].map(|it| (it, nearly_full));
        let of = |thresholds: &str| {
            Shortage::by(&thresholds.parse().unwrap(), &levels.into_iter().collect())
        };
        assert_eq!(of("memory.available<100Mi"), Shortage::default());
        assert_eq!(
            of("nodefs.inodesFree<5%"),
            Shortage {
                disk: true,
                ..Shortage::default()
            }
        );
        assert!(of("pid.available<2%").pids);
    }
}
