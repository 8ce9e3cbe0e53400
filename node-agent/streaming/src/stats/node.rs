//! The node's own usage, from `/proc`.

use std::fs;

use nix::sys::statvfs::statvfs;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NodeUsage {
    /// Unix nanoseconds.
    pub(super) at: i64,
    pub(super) cpu_nanoseconds: u64,
    pub(super) cpu_nano_cores: Option<u64>,
    pub(super) memory_available_bytes: u64,
    pub(super) memory_usage_bytes: u64,
    pub(super) working_set_bytes: u64,
    pub(super) filesystem: Filesystem,
    /// Name, received bytes, sent bytes.
    pub(super) interfaces: Vec<(String, u64, u64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Filesystem {
    pub(super) capacity_bytes: u64,
    pub(super) available_bytes: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

/// What cannot be read is zero, as on a kernel that does not count it.
pub(super) fn read() -> NodeUsage {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let meminfo = |name| meminfo(&memory, name).unwrap_or_default();
    let (total, available) = (meminfo("MemTotal"), meminfo("MemAvailable"));
    let cpu = fs::read_to_string("/proc/stat").unwrap_or_default();
    let network = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    NodeUsage {
        at: i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or_default(),
        cpu_nanoseconds: cpu_nanoseconds(&cpu).unwrap_or_default(),
        cpu_nano_cores: None,
        memory_available_bytes: available,
        memory_usage_bytes: total.saturating_sub(meminfo("MemFree")),
        working_set_bytes: total.saturating_sub(available),
        filesystem: filesystem("/"),
        interfaces: interfaces(&network),
    }
}

fn filesystem(path: &str) -> Filesystem {
    let Ok(stat) = statvfs(path) else {
        return Filesystem::default();
    };
    let block = stat.fragment_size();
    Filesystem {
        capacity_bytes: stat.blocks() * block,
        available_bytes: stat.blocks_available() * block,
        inodes: stat.files(),
        inodes_free: stat.files_available(),
    }
}

fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes * 1_024)
}

/// Time that all processors did not idle.
fn cpu_nanoseconds(text: &str) -> Option<u64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map_while(|ticks| ticks.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is part of user time.
    let busy = ticks
        .iter()
        .take(8)
        .enumerate()
        .filter(|(column, _)| ![3, 4].contains(column));
    let ticks: u64 = busy.map(|(_, ticks)| ticks).sum();
    // USER_HZ is 100 on every architecture that this runs on.
    Some(ticks * 10_000_000)
}

fn interfaces(text: &str) -> Vec<(String, u64, u64)> {
    let rows = text.lines().skip(2).filter_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters
            .split_whitespace()
            .map_while(|n| n.parse().ok())
            .collect();
        let name = name.trim();
        let is_ours = name == "lo" || name.starts_with("wl") || name.starts_with("veth");
        (!is_ours).then_some((name.to_owned(), *counters.first()?, *counters.get(8)?))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let memory = "MemTotal:       2000 kB\nMemFree:  10 kB\nMemAvailable:    500 kB\n";
        assert_eq!(meminfo(memory, "MemAvailable"), Some(512_000));
        assert_eq!(meminfo(memory, "Mem"), None);
        let cpu = "cpu  10 1 2 1000 500 3 4 5 9 9\ncpu0 1 1 1 1\n";
        assert_eq!(cpu_nanoseconds(cpu), Some(25 * 10_000_000));
        let network = "Inter-| Receive\n face |bytes\n  eth0: 11 1 0 0 0 0 0 0 22 1 0 0 0 0 0 0\n    lo: 1 1 0 0 0 0 0 0 1\n";
        assert_eq!(interfaces(network), [("eth0".to_owned(), 11, 22)]);
    }

    #[test]
    fn this_machine_has_memory_and_has_worked() {
        let usage = read();
        assert!(usage.memory_available_bytes > 0 && usage.cpu_nanoseconds > 0);
        assert!(usage.filesystem.capacity_bytes >= usage.filesystem.available_bytes);
    }
}
