//! What the machine has, and how much of it pods may ask for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use k8s_openapi::api::core::v1::NodeStatus;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nix::sys::statvfs::statvfs;
use windlass_pods::HugePages;

/// Memory that is never promised to pods: below it the kernel begins to kill.
const MEMORY_RESERVE: i64 = 100 << 20;
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// The machine's resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capacity {
    cores: usize,
    /// Bytes.
    memory: i64,
    /// Bytes of the file system that holds pods' folders.
    storage: i64,
    pods: u32,
    huge_pages: HugePages,
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
            huge_pages: HugePages::of_machine(Path::new(HUGE_PAGES)).context(HUGE_PAGES)?,
        })
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> i64 {
        self.memory
    }

    pub(crate) fn huge_pages(&self) -> &HugePages {
        &self.huge_pages
    }

    pub(crate) fn capacity(&self) -> BTreeMap<String, Quantity> {
        self.list(self.memory, self.storage)
    }

    /// What remains for pods.
    pub(crate) fn allocatable(&self) -> BTreeMap<String, Quantity> {
        let memory = self.memory - MEMORY_RESERVE - self.huge_pages.bytes();
        // The kubelet's own defaults: it evicts when a tenth of the disk is left.
        self.list(memory.max(0), self.storage / 10 * 9)
    }

    fn list(&self, memory: i64, storage: i64) -> BTreeMap<String, Quantity> {
        let huge_pages = self.huge_pages.resources();
        let huge_pages = huge_pages.map(|(name, bytes)| (name, format!("{}Ki", bytes / 1024)));
        [
            ("cpu", self.cores.to_string()),
            ("memory", format!("{}Ki", memory / 1024)),
            ("ephemeral-storage", format!("{}Ki", storage / 1024)),
            ("pods", self.pods.to_string()),
        ]
        .into_iter()
        .map(|(name, amount)| (name.to_owned(), amount))
        .chain(huge_pages)
        .map(|(name, amount)| (name, Quantity(amount)))
        .collect()
    }
}

/// Extended resources are written into a node's capacity by whoever offers them; what of them pods may
/// have is for the node to say, as the kubelet does: all. The changes, `None` for what is gone.
pub(crate) fn extended(status: &NodeStatus) -> BTreeMap<String, Option<Quantity>> {
    let empty = BTreeMap::new();
    let capacity = status.capacity.as_ref().unwrap_or(&empty);
    let allocatable = status.allocatable.as_ref().unwrap_or(&empty);
    let offered = capacity
        .iter()
        .filter(|(name, amount)| is_extended(name) && allocatable.get(*name) != Some(*amount))
        .map(|(name, amount)| (name.clone(), Some(amount.clone())));
    let gone = allocatable
        .keys()
        .filter(|name| is_extended(name) && !capacity.contains_key(*name))
        .map(|name| (name.clone(), None));
    offered.chain(gone).collect()
}

/// Of a status, what nobody but the node can know: the rest of it, extended resources and addresses too, others may write.
pub(crate) fn own(status: &NodeStatus) -> NodeStatus {
    let native = |amounts: &Option<BTreeMap<String, Quantity>>| {
        let amounts = amounts.iter().flatten();
        let native = amounts.filter(|(name, _)| !name.contains('/'));
        Some(
            native
                .map(|(name, amount)| (name.clone(), amount.clone()))
                .collect(),
        )
    };
    NodeStatus {
        capacity: native(&status.capacity),
        allocatable: native(&status.allocatable),
        daemon_endpoints: status.daemon_endpoints.clone(),
        node_info: status.node_info.clone(),
        ..NodeStatus::default()
    }
}

/// Named by a domain that is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
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
            huge_pages: HugePages::default(),
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

    #[test]
    fn extended_resources_of_the_capacity_may_be_had() {
        let status: NodeStatus = serde_json::from_value(serde_json::json!({
            "capacity": {"cpu": "2", "example.com/new": "5", "example.com/same": "1"},
            "allocatable": {"cpu": "1", "example.com/same": "1", "example.com/gone": "3"},
        }))
        .unwrap();
        let changes = extended(&status);
        let expected = [("example.com/gone", None), ("example.com/new", Some("5"))];
        let found: Vec<_> = changes
            .iter()
            .map(|(name, amount)| (name.as_str(), amount.as_ref().map(|it| it.0.as_str())))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_the_node_alone_knows_is_told_from_what_others_write() {
        let status = |field: &str, value: serde_json::Value| -> NodeStatus {
            let mut status = serde_json::json!({
                "capacity": {"cpu": "2"},
                "allocatable": {"cpu": "2"},
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            });
            status[field] = value;
            serde_json::from_value(status).unwrap()
        };
        let version = |version: &str| serde_json::json!({"kubeletVersion": version});
        let cpu = |amount: &str| serde_json::json!({"cpu": amount});
        let ours = own(&status("nodeInfo", version("v1.35.0")));
        let cases = [
            ("nodeInfo", version(""), false),
            (
                "daemonEndpoints",
                serde_json::json!({"kubeletEndpoint": {"Port": 0}}),
                false,
            ),
            ("capacity", cpu("64"), false),
            ("allocatable", serde_json::json!({}), false),
            (
                "capacity",
                serde_json::json!({"cpu": "2", "example.com/new": "5"}),
                true,
            ),
            (
                "addresses",
                serde_json::json!([{"type": "ExternalIP", "address": "192.0.2.1"}]),
                true,
            ),
        ];
        for (field, value, same) in cases {
            let mut found = status(field, value.clone());
            found.node_info = found.node_info.or(ours.node_info.clone());
            assert_eq!(own(&found) == ours, same, "{field} {value}");
        }
    }
}
