//! What a figure is worth nothing without: the machine it was measured on, and what else that did.

use std::fs;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub processor: String,
    pub cores: usize,
    pub memory_mib: u64,
    /// Runnable tasks over the last minute, before the measurement began.
    pub load_before: f64,
    pub build: &'static str,
    pub tools: Vec<String>,
}

impl Machine {
    pub fn describe(tools: &[&str]) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let processor = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, name)| name)
            .to_owned();
        let memory = read("/proc/meminfo")
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemTotal:")?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()
            })
            .unwrap_or(0u64);
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory / 1024,
            load_before: load(),
            build: if cfg!(debug_assertions) {
                "dev"
            } else {
                "release"
            },
            tools: tools.iter().filter_map(|tool| version(tool)).collect(),
        }
    }

    /// What was measured on, for a report's first sentence.
    pub fn description(&self) -> String {
        let machine = format!(
            "{} x {}, {} MiB, kernel {}, {} build",
            self.cores, self.processor, self.memory_mib, self.kernel, self.build
        );
        let mut parts = vec![machine];
        parts.extend_from_slice(&self.tools);
        parts.join("; ")
    }

    /// A report's word on how far its figures are to be trusted.
    pub fn load_note(&self, load_after: f64) -> String {
        let preliminary = if self.was_busy() {
            " **Preliminary: others worked on this machine meanwhile.**"
        } else {
            ""
        };
        let before = self.load_before;
        format!(
            "Load of the machine before and after: {before:.1} and {load_after:.1}.{preliminary}"
        )
    }

    /// Somebody else worked while this was measured.
    pub fn was_busy(&self) -> bool {
        self.load_before > self.cores as f64 * 0.5
    }
}

/// For a folder or a cgroup that is nobody else's.
pub fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("windlass-bench-{}-{count}", process::id())
}

pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(0.0)
}

fn version(tool: &str) -> Option<String> {
    let output = Command::new(tool).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?.trim();
    Some(if line.starts_with(tool) {
        line.to_owned()
    } else {
        format!("{tool}: {line}")
    })
}

/// Resident memory of a process, in MiB.
pub fn resident_mib(pid: u32) -> Option<f64> {
    status_mib(pid, "VmRSS:")
}

/// The most that a process has had resident, in MiB.
pub fn peak_mib(pid: u32) -> Option<f64> {
    status_mib(pid, "VmHWM:")
}

fn status_mib(pid: u32, field: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}
