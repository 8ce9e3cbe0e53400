//! What the machine has, and how much of it pods may ask for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nix::sys::statvfs::statvfs;

/// Memory that is never promised to pods: below it the kernel begins to kill.
const MEMORY_RESERVE: i64 = 100 << 20;

/// The machine's resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capacity {
    cores: usize,
    /// Bytes.
    memory: i64,
    /// Bytes of the file system that holds pods' folders.
    storage: i64,
    pods: u32,
}

impl Capacity {
    pub(crate) fn measure(state_dir: &Path, max_pods: u32) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let meminfo = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
        let memory = memory_total(&meminfo).context("/proc/meminfo does not say MemTotal")?;
        let disk = statvfs(state_dir)
            .with_context(|| format!("examine the file system of {}", state_dir.display()))?;
        let storage = i64::try_from(disk.blocks() * disk.fragment_size()).unwrap_or(i64::MAX);
        Ok(Self {
            cores,
            memory,
            storage,
            pods: max_pods,
        })
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> i64 {
        self.memory
    }

    pub(crate) fn capacity(&self) -> BTreeMap<String, Quantity> {
        self.list(self.memory, self.storage)
    }

    /// What remains for pods.
    pub(crate) fn allocatable(&self) -> BTreeMap<String, Quantity> {
        // The kubelet's own defaults: it evicts when a tenth of the disk is left.
        self.list((self.memory - MEMORY_RESERVE).max(0), self.storage / 10 * 9)
    }

    fn list(&self, memory: i64, storage: i64) -> BTreeMap<String, Quantity> {
        [
            ("cpu", self.cores.to_string()),
            ("memory", format!("{}Ki", memory / 1024)),
            ("ephemeral-storage", format!("{}Ki", storage / 1024)),
            ("pods", self.pods.to_string()),
        ]
        .into_iter()
        .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
        .collect()
    }
}

fn memory_total(meminfo: &str) -> Option<i64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: i64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_may_not_ask_for_the_whole_machine() {
        let capacity = Capacity {
            cores: 2,
            memory: 1 << 30,
            storage: 10 << 30,
            pods: 110,
        };
        let text = |map: BTreeMap<String, Quantity>, name: &str| map[name].0.clone();
        assert_eq!(text(capacity.capacity(), "memory"), "1048576Ki");
        assert_eq!(text(capacity.allocatable(), "memory"), "946176Ki");
        assert_eq!(
            text(capacity.allocatable(), "ephemeral-storage"),
            "9437184Ki"
        );
        assert_eq!(text(capacity.allocatable(), "cpu"), "2");
        assert_eq!(text(capacity.allocatable(), "pods"), "110");
    }

    #[test]
    fn memory_is_read_as_the_kernel_tells_it() {
        assert_eq!(
            memory_total("MemTotal:       16 kB\nMemFree: 1 kB\n"),
            Some(16_384)
        );
        assert_eq!(memory_total("MemFree: 1 kB\n"), None);
    }
}
