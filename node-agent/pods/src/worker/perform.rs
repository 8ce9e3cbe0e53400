//! Doing: the plan's steps, each in a task of its own, and the clearing away.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::Duration;

use jiff::Timestamp;

use super::{Report, Worker};
use crate::launch::{sandbox, start};
use crate::memory::CrashBackoff;
use crate::model::{grace_seconds, slot};
use crate::plan::{Step, StopReason};
use crate::recorder::Severity;
use crate::stop;

/// Ended containers that are kept per name, beside the newest one.
const KEPT_ENDED: usize = 1;

impl Worker {
    pub(super) fn perform(&mut self, step: Step, now: Timestamp) {
        tracing::debug!(pod = %self.id, ?step, "step");
        let (node, pod) = (self.node.clone(), self.allocated());
        match step {
            Step::StartSandbox { attempt } => {
                self.memory.starting = Some("sandbox".to_owned());
                if attempt > 0 {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.event(None, Severity::Normal, "SandboxChanged", message);
                }
                self.tasks.spawn(async move {
                    Report::SandboxStarted(start::start_sandbox(&node, &pod, attempt).await)
                });
            }
            Step::StartContainer {
                name,
                attempt,
                sandbox,
                after,
            } => {
                let Some(sandbox) = self
                    .snapshot
                    .sandboxes
                    .iter()
                    .find(|it| it.id == sandbox)
                    .cloned()
                else {
                    return;
                };
                if let Some(finished) = after {
                    let next = CrashBackoff::next(self.memory.crashes.get(&name), finished, now);
                    self.memory.crashes.insert(name.clone(), next);
                }
                let target = slot(&pod, &name).and_then(|slot| slot.target);
                let target = target.and_then(|name| self.snapshot.newest(name));
                let target = target.filter(|it| it.is_running()).map(|it| it.id.clone());
                self.memory.starting = Some(name.clone());
                let in_runtime = self.in_runtime.clone();
                self.tasks.spawn(async move {
                    let target = target.as_deref();
                    let start = start::start_container(
                        &node, &pod, &name, attempt, &sandbox, target, in_runtime,
                    );
                    let result = start.await;
                    Report::ContainerStarted { name, result }
                });
            }
            Step::StopContainer { id, name, why } => self.stop_one(id, name, why),
            Step::StopSandbox { id } => {
                self.memory.stopping.push(id.clone());
                self.tasks.spawn(async move {
                    let result = node.runtime.stop_pod_sandbox(&id).await;
                    Report::Stopped {
                        id,
                        result: result.map_err(|error| error.to_string()),
                    }
                });
            }
        }
    }

    pub(super) fn stop_one(&mut self, id: String, name: String, why: StopReason) {
        let mut grace = grace_seconds(&self.pod);
        let replaced = matches!(why, StopReason::Changed | StopReason::Resized);
        let message = match why {
            StopReason::Unhealthy {
                message,
                grace: own,
            } => {
                grace = own.unwrap_or(grace);
                format!("Container {name} {message}, will be restarted")
            }
            StopReason::Changed => {
                format!("Container {name} definition changed, will be restarted")
            }
            StopReason::Resized => format!("Container {name} resize requires restart"),
            StopReason::PodEnded(own) => {
                grace = own.unwrap_or(grace);
                format!("Stopping container {name}")
            }
        };
        self.event(Some(&name), Severity::Normal, "Killing", &message);
        self.memory.stopping.push(id.clone());
        if replaced {
            self.replacement.stopping(&id);
        }
        let (node, pod) = (self.node.clone(), self.pod.clone());
        let ip = self.pod_ip();
        self.tasks.spawn(async move {
            let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
            let result = stop::stop_container(&node, &pod, &name, &id, ip, grace).await;
            Report::Stopped { id, result }
        });
    }

    pub(crate) fn pod_ip(&self) -> Option<std::net::IpAddr> {
        let sandbox = self.snapshot.sandboxes.first()?;
        self.node.pod_ips(&self.pod, sandbox).first()?.parse().ok()
    }

    /// Brings volumes up to date with the cluster.
    pub(super) fn refresh_volumes(&mut self) {
        if self.snapshot.live_sandbox().is_none() {
            return;
        }
        self.volumes_due = None;
        // Two at a time could end in the wrong order, with the older content in place.
        if self.refreshing {
            self.refresh_again = true;
            return;
        }
        self.refreshing = true;
        let (node, pod) = (self.node.clone(), self.allocated());
        self.tasks
            .spawn(async move { Report::VolumesRefreshed(node.set_up_volumes(&pod).await) });
    }

    /// Removes ended containers that nobody needs any more, and sandboxes without any.
    pub(super) fn collect_garbage(&mut self) {
        let mut doomed = Vec::new();
        let mut kept: HashMap<&str, usize> = HashMap::new();
        let mut used = HashSet::new();
        for container in &self.snapshot.containers {
            let count = kept.entry(container.name.as_str()).or_default();
            *count += 1;
            if *count > KEPT_ENDED + 1 && container.exit().is_some() {
                doomed.push((container.id.clone(), container.log_path.clone()));
            } else {
                used.insert(container.sandbox.as_str());
            }
        }
        let unused = self.snapshot.sandboxes.iter().skip(1);
        let sandboxes: Vec<String> = unused
            .filter(|sandbox| !sandbox.ready && !used.contains(sandbox.id.as_str()))
            .map(|sandbox| sandbox.id.clone())
            .collect();
        if doomed.is_empty() && sandboxes.is_empty() {
            return;
        }
        let node = self.node.clone();
        self.tasks.spawn(async move {
            for (id, log) in doomed {
                let removed = node.runtime.remove_container(&id).await;
                let removed = removed.map_err(|error| error.to_string()).and_then(|()| {
                    crate::logs::remove(log.as_ref()).map_err(|error| error.to_string())
                });
                if let Err(error) = removed {
                    tracing::debug!(id, error, "ended container not removed");
                }
                node.owners.lock().remove(&id);
            }
            for id in sandboxes {
                if let Err(error) = node.runtime.remove_pod_sandbox(&id).await {
                    tracing::debug!(id, %error, "old sandbox not removed");
                }
                node.owners.lock().remove(&id);
            }
            Report::Nothing
        });
    }

    /// Gives back what a pod that came to its end holds of the node: volumes and cgroup.
    /// Its logs and its ended containers stay until it is deleted.
    pub(crate) async fn clean_up(&self) -> bool {
        let volumes = self.node.take_down(&self.id.uid).await;
        let cgroup = self.node.cgroups.remove(&self.id.uid).await;
        for problem in [volumes.err(), cgroup.err().map(|error| error.to_string())] {
            let Some(problem) = problem else { continue };
            tracing::warn!(pod = %self.id, problem, "not cleaned up, trying again");
            return false;
        }
        true
    }

    /// Forgets the pod's place in everything shared; its logs go too.
    pub(crate) fn forget(&self) {
        self.node.owners.lock().retain(|_, uid| *uid != self.id.uid);
        self.node.ledger.release(&self.id.uid);
        self.views.hide(&self.id);
        let logs = sandbox::log_folder(&self.node.config, &self.id);
        if let Err(error) = fs::remove_dir_all(&logs)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(pod = %self.id, %error, "logs not removed");
        }
    }
}
