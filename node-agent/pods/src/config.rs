//! What the pods role is told about its node.

use std::path::PathBuf;

use windlass_volumes::NodeFacts;

use crate::eviction::Thresholds;
use crate::huge_pages::HugePages;

/// Settings that last as long as the process.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name, addresses and allocatable resources.
    pub node: NodeFacts,
    /// The node's memory in bytes, by which containers' chances against the OOM killer
    /// are weighed.
    pub memory_capacity: i64,
    /// Which of these the node has.
    pub huge_pages: HugePages,
    /// Pods' logs lie in `log/pods/`.
    pub state_dir: PathBuf,
    /// The kubelet's folder, as plugins know it: `pods/`, `plugins/` and `plugins_registry/` lie in it.
    pub root_dir: PathBuf,
    /// The parent of all pods' cgroups, in each hierarchy: `/kubepods`.
    pub cgroup_root: String,
    /// Where the cgroup hierarchies are mounted.
    pub cgroup_mount: PathBuf,
    /// Where pods ask for names.
    pub cluster_dns: Vec<String>,
    /// The end of all names of the cluster.
    pub cluster_domain: String,
    /// The node's own resolver configuration.
    pub resolv_conf: PathBuf,
    /// Sysctls that pods may set beside the safe ones; a trailing `*` stands for anything.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Where manifests of static pods lie, if anywhere.
    pub manifests: Option<PathBuf>,
    /// Below what the node ends pods.
    pub eviction: Thresholds,
    /// Percent of the images' file system: from the first on unused images go, until the
    /// second is reached.
    pub image_gc: (u8, u8),
    /// A log file is put aside when it is larger than this.
    pub log_max_bytes: u64,
    /// How many files of a container's log are kept, with the current one.
    pub log_max_files: usize,
}

impl Config {
    /// Everything that a pod leaves on the node, but its logs.
    pub fn pod_folder(&self, uid: &str) -> PathBuf {
        self.pods_folder().join(uid)
    }

    /// All pods' folders.
    pub fn pods_folder(&self) -> PathBuf {
        self.root_dir.join("pods")
    }

    /// Where plugins make themselves known.
    pub fn registry(&self) -> PathBuf {
        self.root_dir.join("plugins_registry")
    }

    /// All pods' logs, each in `<namespace>_<name>_<uid>/<container>/<n>.log`.
    pub fn logs_folder(&self) -> PathBuf {
        self.state_dir.join("log/pods")
    }
}
