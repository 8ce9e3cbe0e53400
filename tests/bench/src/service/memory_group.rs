//! A memory cgroup for what loads a way's rules: what the kernel keeps for them is charged to it, and can be
//! read when the program that loaded them has ended.

use std::fs;
use std::path::{Path, PathBuf};

use crate::machine;

pub struct MemoryGroup {
    pub path: PathBuf,
    kernel: &'static str,
}

impl MemoryGroup {
    /// `None` where no memory controller can be used.
    pub fn create() -> Option<Self> {
        let name = machine::unique_name();
        [
            ("/sys/fs/cgroup/memory", "memory.kmem.usage_in_bytes"),
            ("/sys/fs/cgroup", "memory.stat"),
        ]
        .into_iter()
        .find_map(|(root, kernel)| {
            let group = Self {
                path: Path::new(root).join(&name),
                kernel,
            };
            fs::create_dir(&group.path).ok()?;
            group.kernel_bytes().is_some().then_some(group)
        })
    }

    /// What the kernel holds for the processes that were in here, in bytes.
    pub fn kernel_bytes(&self) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(self.kernel)).ok()?;
        if self.kernel == "memory.stat" {
            let line = text.lines().find_map(|line| line.strip_prefix("kernel "))?;
            return line.trim().parse().ok();
        }
        text.trim().parse().ok()
    }
}

impl Drop for MemoryGroup {
    /// What is still charged moves to the parent.
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
