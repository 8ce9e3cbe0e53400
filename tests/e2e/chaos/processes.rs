//! Processes of pods, as the kernel knows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use nix::unistd::Pid;
use windlass_tests::eventually::pause;

use super::faults::pids;
use super::witnesses::INTERVAL;

/// A process of our test image, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodProcess {
    pub(super) pid: Pid,
    /// The shim.
    pub(super) parent: Pid,
    pub(super) namespace: String,
    pub(super) pod: String,
    started: String,
}

impl PodProcess {
    fn of(pid: Pid) -> Option<Self> {
        let (name, fields) = stat(pid)?;
        if name != "echo" || matches!(fields.first()?.as_str(), "Z" | "X") {
            return None;
        }
        let environment = fs::read_to_string(format!("/proc/{pid}/environ")).ok()?;
        // The same names may be in another test's namespace, which is just being emptied.
        let account = "var/run/secrets/kubernetes.io/serviceaccount/namespace";
        let namespace = fs::read_to_string(format!("/proc/{pid}/root/{account}")).ok()?;
        let mut variables = environment.split('\0');
        Some(Self {
            pid,
            parent: Pid::from_raw(fields.get(1)?.parse().ok()?),
            namespace,
            pod: variables
                .find_map(|variable| variable.strip_prefix("HOSTNAME="))?
                .to_owned(),
            started: fields.get(19)?.clone(),
        })
    }
}

/// Its name, and what the kernel says after that.
fn stat(pid: Pid) -> Option<(String, Vec<String>)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    Some((
        name.to_owned(),
        rest.split(' ').map(str::to_owned).collect(),
    ))
}

/// Who has a child.
pub(super) fn parents() -> Result<BTreeSet<i32>> {
    let parents = pids()?.filter_map(|pid| stat(pid)?.1.get(1)?.parse().ok());
    Ok(parents.collect())
}

pub(super) fn pod_processes() -> Result<Vec<PodProcess>> {
    Ok(pids()?.filter_map(PodProcess::of).collect())
}

/// A pod's name stands for one running container at any time: that is what a StatefulSet promises.
pub(super) fn look_for_doubles(stop: &AtomicBool) -> Result<u64> {
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut seen: BTreeMap<_, PodProcess> = BTreeMap::new();
        for process in pod_processes()? {
            let name = (process.namespace.clone(), process.pod.clone());
            let Some(other) = seen.insert(name, process.clone()) else {
                continue;
            };
            // The first may have ended since it was seen.
            let still = PodProcess::of(other.pid) == Some(other.clone());
            if still && PodProcess::of(process.pid) == Some(process.clone()) {
                bail!("{} runs twice: {other:?} and {process:?}", process.pod);
            }
        }
        looks += 1;
        pause(INTERVAL);
    }
    Ok(looks)
}
