//! What `/metrics` says, in Prometheus' text format.

use std::fmt::Write as _;
use std::sync::Arc;

use windlass_datapath::Datapath;
use windlass_pods::Pods;

/// What is said at the moment, made anew at each call.
pub(crate) type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// The present values; writing into a String cannot fail.
pub(crate) fn text(pods: Option<&Pods>, datapath: Option<&Arc<Datapath>>) -> String {
    let mut text = String::new();
    if let Some(bytes) = resident_bytes() {
        family(
            &mut text,
            "process_resident_memory_bytes",
            "gauge",
            "Memory in RAM.",
        );
        let _ = writeln!(text, "process_resident_memory_bytes {bytes}");
    }
    if let Some(pods) = pods {
        let views = pods.list();
        let running: usize = views
            .iter()
            .map(|view| {
                view.snapshot
                    .containers
                    .iter()
                    .filter(|it| it.is_running())
                    .count()
            })
            .sum();
        family(
            &mut text,
            "kubelet_running_pods",
            "gauge",
            "Pods that have a live sandbox.",
        );
        let live = views
            .iter()
            .filter(|view| view.snapshot.live_sandbox().is_some())
            .count();
        let _ = writeln!(text, "kubelet_running_pods {live}");
        family(
            &mut text,
            "kubelet_running_containers",
            "gauge",
            "Containers that run.",
        );
        let _ = writeln!(
            text,
            "kubelet_running_containers{{container_state=\"running\"}} {running}"
        );
    }
    if let Some(samples) = datapath.and_then(|datapath| datapath.metrics().ok()) {
        let packets = "windlass_datapath_packets_total";
        family(
            &mut text,
            packets,
            "counter",
            "Packets by what became of them.",
        );
        for sample in &samples {
            let (reason, direction) = (sample.reason.name(), sample.direction.name());
            let labels = format!("reason=\"{reason}\",direction=\"{direction}\"");
            let _ = writeln!(text, "{packets}{{{labels}}} {}", sample.packets);
        }
        let bytes = "windlass_datapath_bytes_total";
        family(
            &mut text,
            bytes,
            "counter",
            "Bytes by what became of their packets.",
        );
        for sample in &samples {
            let (reason, direction) = (sample.reason.name(), sample.direction.name());
            let labels = format!("reason=\"{reason}\",direction=\"{direction}\"");
            let _ = writeln!(text, "{bytes}{{{labels}}} {}", sample.bytes);
        }
    }
    text
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}
