//! The Node's conditions, computed.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NodeCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use nix::sys::statvfs::statvfs;

/// The kubelet's own defaults for when a node is short of something.
const MEMORY_LEAST: i64 = 100 << 20;
const DISK_LEAST_PERCENT: u64 = 10;
const INODES_LEAST_PERCENT: u64 = 5;
const PIDS_LEAST_PERCENT: u64 = 5;

/// What the conditions are computed from; an absent problem is none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    pub(crate) runtime: Option<String>,
    pub(crate) network: Option<String>,
    pub(crate) pressure: Pressure,
}

/// What the node is short of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pids: bool,
}

/// All four conditions; the time of a transition is kept while the status is.
pub(crate) fn compute(
    observed: &Observed,
    known: &[NodeCondition],
    now: Timestamp,
) -> Vec<NodeCondition> {
    let problems: Vec<&str> = [&observed.runtime, &observed.network]
        .into_iter()
        .filter_map(|problem| problem.as_deref())
        .collect();
    let ready = match problems.is_empty() {
        true => (
            "True",
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
        false => ("False", "KubeletNotReady", problems.join(", ")),
    };
    let pressure = |short: bool, yes: [&'static str; 2], no: [&'static str; 2]| match short {
        true => ("True", yes[0], yes[1].to_owned()),
        false => ("False", no[0], no[1].to_owned()),
    };
    let memory = pressure(
        observed.pressure.memory,
        [
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ],
        [
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ],
    );
    let disk = pressure(
        observed.pressure.disk,
        ["KubeletHasDiskPressure", "kubelet has disk pressure"],
        ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
    );
    let pids = pressure(
        observed.pressure.pids,
        [
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
        ],
        [
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ],
    );
    let all = [
        ("MemoryPressure", memory),
        ("DiskPressure", disk),
        ("PIDPressure", pids),
        ("Ready", ready),
    ];
    all.into_iter()
        .map(|(type_, (status, reason, message))| {
            let before = known.iter().find(|condition| condition.type_ == type_);
            let unchanged = before.filter(|before| before.status == status);
            let since = unchanged.and_then(|before| before.last_transition_time.clone());
            NodeCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(since.unwrap_or(Time(now))),
            }
        })
        .collect()
}

/// Whether the Ready condition is true.
pub(crate) fn is_ready(conditions: &[NodeCondition]) -> bool {
    conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether `known` says all that `conditions` say, whenever it was said.
pub(crate) fn same(conditions: &[NodeCondition], known: &[NodeCondition]) -> bool {
    conditions.iter().all(|condition| {
        known.iter().any(|known| {
            known.type_ == condition.type_
                && known.status == condition.status
                && known.reason == condition.reason
                && known.message == condition.message
        })
    })
}

/// What the node is short of now. What cannot be measured is not short.
pub(crate) fn pressure(state_dir: &Path) -> Pressure {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let disk = statvfs(state_dir).is_ok_and(|disk| {
        let scarce = |free: u64, all: u64, percent: u64| all > 0 && free * 100 < all * percent;
        scarce(disk.blocks_available(), disk.blocks(), DISK_LEAST_PERCENT)
            || scarce(disk.files_available(), disk.files(), INODES_LEAST_PERCENT)
    });
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let loadavg = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let pids = match (processes(&loadavg), number("/proc/sys/kernel/pid_max")) {
        (Some(used), Some(most)) => most.saturating_sub(used) * 100 < most * PIDS_LEAST_PERCENT,
        _ => false,
    };
    let memory = memory_available(&meminfo).is_some_and(|bytes| bytes < MEMORY_LEAST);
    Pressure { memory, disk, pids }
}

fn memory_available(meminfo: &str) -> Option<i64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: i64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// `0.1 0.2 0.3 2/345 6789`: the number behind the slash counts processes and threads.
fn processes(loadavg: &str) -> Option<u64> {
    loadavg.split(' ').nth(3)?.split_once('/')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_node_is_ready_when_runtime_and_network_are() {
        let of = |runtime: Option<&str>, network: Option<&str>| {
            let observed = Observed {
                runtime: runtime.map(str::to_owned),
                network: network.map(str::to_owned),
                pressure: Pressure::default(),
            };
            compute(&observed, &[], at(1)).pop().unwrap()
        };
        assert_eq!(of(None, None).status, "True");
        assert_eq!(of(None, None).reason.as_deref(), Some("KubeletReady"));
        assert_eq!(of(Some("a"), None).status, "False");
        assert_eq!(of(Some("a"), Some("b")).message.as_deref(), Some("a, b"));
    }

    #[test]
    fn the_time_of_a_transition_stays_until_the_next() {
        let well = compute(&Observed::default(), &[], at(1));
        let later = compute(&Observed::default(), &well, at(9));
        assert_eq!(later[3].last_transition_time, Some(Time(at(1))));
        assert_eq!(later[3].last_heartbeat_time, Some(Time(at(9))));
        assert!(same(&later, &well));

        let short = Pressure {
            memory: true,
            ..Pressure::default()
        };
        let ill = compute(
            &Observed {
                pressure: short,
                ..Observed::default()
            },
            &later,
            at(10),
        );
        assert_eq!(ill[0].status, "True");
        assert_eq!(ill[0].last_transition_time, Some(Time(at(10))));
        assert!(!same(&ill, &later));
        assert!(is_ready(&ill), "a node under pressure still runs pods");
    }

    #[test]
    fn the_kernels_files_are_read() {
        assert_eq!(memory_available("MemAvailable:   2 kB\n"), Some(2048));
        assert_eq!(processes("0.00 0.01 0.05 2/345 6789"), Some(345));
    }
}
