//! What the process uses, as every Prometheus client tells it.

use std::fs;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Of the kernel's accounting in `/proc`, on every architecture that Linux has had for long.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Default)]
pub(super) struct Process {
    resident: Gauge<u64, AtomicU64>,
    cpu: Counter<f64, AtomicU64>,
    files: Gauge<u64, AtomicU64>,
    started: Gauge<f64, AtomicU64>,
}

impl Process {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let process = Self::default();
        registry.register_with_unit(
            "process_resident_memory",
            "Resident memory",
            Unit::Bytes,
            process.resident.clone(),
        );
        registry.register_with_unit(
            "process_cpu",
            "Processor time",
            Unit::Seconds,
            process.cpu.clone(),
        );
        registry.register(
            "process_open_fds",
            "Open file descriptors",
            process.files.clone(),
        );
        registry.register_with_unit(
            "process_start_time",
            "When the process started, since 1970",
            Unit::Seconds,
            process.started.clone(),
        );
        process
    }

    /// Reads what there is to know now; what cannot be read stays as it was.
    pub(super) fn note(&self) {
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        if let Some(kibibytes) = number(resident.and_then(|it| it.split_whitespace().next())) {
            self.resident.set(kibibytes << 10);
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One is the folder itself, which is being read.
            self.files.set((files.count() as u64).saturating_sub(1));
        }
        let Ok(stat) = fs::read_to_string("/proc/self/stat") else {
            return;
        };
        // The program's name, in brackets, may hold anything.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let field = |at: usize| number(rest.split_whitespace().nth(at));
        if let (Some(user), Some(system)) = (field(11), field(12)) {
            let seconds = (user + system) as f64 / TICKS_PER_SECOND;
            let more = seconds - self.cpu.get();
            if more > 0.0 {
                self.cpu.inc_by(more);
            }
        }
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "));
        if let (Some(boot), Some(ticks)) = (number(boot), field(19)) {
            self.started
                .set(boot as f64 + ticks as f64 / TICKS_PER_SECOND);
        }
    }
}
