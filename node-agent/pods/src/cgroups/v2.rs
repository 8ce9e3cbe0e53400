//! The second generation: one tree, controllers handed down level by level.

use std::fs;
use std::io;
use std::path::Path;

use super::write;
use crate::launch::resources::{Amounts, CPU_PERIOD};

const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "io"];

/// Makes a folder with every controller that its parents have, and sets its limits.
pub(super) fn make(mount: &Path, path: &str, amounts: Option<&Amounts>) -> io::Result<()> {
    let mut folder = mount.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        hand_down(&folder)?;
        folder.push(part);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    hand_down(&folder)?;
    let Some(amounts) = amounts else {
        return Ok(());
    };
    let quota = match amounts.cpu_quota() {
        0 => "max".to_owned(),
        quota => quota.to_string(),
    };
    let mut settings = vec![
        ("cpu.weight", weight(amounts.cpu_shares()).to_string()),
        ("cpu.max", format!("{quota} {CPU_PERIOD}")),
    ];
    if amounts.memory_limit > 0 {
        settings.push(("memory.max", amounts.memory_limit.to_string()));
    }
    for (file, value) in settings {
        // A controller that the node does not have has no file, and nothing to limit.
        if folder.join(file).exists() {
            write(&folder, file, &value)?;
        }
    }
    Ok(())
}

/// Lets the children of `folder` use what it has itself.
fn hand_down(folder: &Path) -> io::Result<()> {
    let available = fs::read_to_string(folder.join("cgroup.controllers"))?;
    let enabled = fs::read_to_string(folder.join("cgroup.subtree_control"))?;
    let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    for name in CONTROLLERS {
        if has(&available, name) && !has(&enabled, name) {
            write(folder, "cgroup.subtree_control", &format!("+{name}"))?;
        }
    }
    Ok(())
}

/// Shares (2 to 262144) as a weight (1 to 10000), as runtimes convert them.
fn weight(shares: i64) -> i64 {
    1 + (shares - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::weight;

    #[test]
    fn weights_span_the_range_of_shares() {
        assert_eq!(weight(2), 1);
        assert_eq!(weight(1024), 39);
        assert_eq!(weight(262_144), 10_000);
    }
}
