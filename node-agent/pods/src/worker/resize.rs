//! Giving a running pod other resources (KEP-1287): ask the node, write down what it agreed to,
//! and bring the containers there, each as its policy wants it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod, ResourceRequirements};
use serde::Serialize;

use super::{Report, Worker};
use crate::admission::Refusal;
use crate::allocation::needs_restart;
use crate::labels;
use crate::launch::resources::{self, Amounts};
use crate::memory::{InProgress, Pending, later};
use crate::model::{Role, is_terminal, slots, spec};
use crate::node::Node;
use crate::plan::Outcome;
use crate::recorder::Severity;

/// How soon something that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What of a pod's resize is left to be done to one running container.
pub(crate) struct Change {
    name: String,
    id: String,
    container: Spec,
    resources: ResourceRequirements,
}

impl Worker {
    /// The pod as the node agreed to run it.
    pub(crate) fn allocated(&self) -> Arc<Pod> {
        if self.allocation.differs_from(&self.pod) {
            return Arc::new(self.allocation.apply(&self.pod));
        }
        self.pod.clone()
    }

    /// Does what can be done now about a difference between what the pod asks for, what was
    /// agreed, and what its containers have.
    pub(super) fn tend_resize(&mut self, now: Timestamp) {
        if self.outcome != Outcome::Going || is_terminal(&self.pod) {
            return;
        }
        self.agree(now);
        self.actuate(now);
    }

    fn agree(&mut self, now: Timestamp) {
        if !self.allocation.differs_from(&self.pod) {
            self.memory.resize.pending = None;
            return;
        }
        if let Some(progress) = &self.memory.resize.in_progress
            && progress.error.is_none()
        {
            // One after the other: what is under way comes to its end first.
            return;
        }
        let (reason, message) = match self.node.ledger.resize(&self.id.uid, &self.pod) {
            Ok(()) => return self.begin(),
            Err(Refusal::Infeasible(message)) => ("Infeasible", message),
            Err(Refusal::Deferred(message)) => ("Deferred", message),
        };
        let generation = self.pod.metadata.generation;
        let pending = Pending {
            reason: reason.to_owned(),
            message,
            generation,
        };
        let known = self.memory.resize.pending.as_ref();
        if known.map(|known| &known.reason) != Some(&pending.reason) {
            let event = told(&self.pod, &format!("Pod resize {reason}"), &pending.message);
            let reason = match reason {
                "Infeasible" => "ResizeInfeasible",
                _ => "ResizeDeferred",
            };
            self.event(None, Severity::Warning, reason, &event);
        }
        if reason == "Deferred" {
            // Whoever leaves rings the ledger's bell, but only once.
            self.wake(later(now, RETRY));
        }
        self.memory.resize.pending = Some(pending);
    }

    fn begin(&mut self) {
        let before = Amounts::of_pod(&self.allocated());
        for container in self.snapshot.containers.iter().filter(|it| it.is_running()) {
            if let Some(actual) = self.allocation.actuated(&container.name).cloned() {
                self.allocation.set_actuated(&container.name, actual);
            }
        }
        self.allocation.agree(&self.pod);
        self.save_allocation();
        // The downward API tells of it.
        self.refresh_volumes();
        self.memory.resize.pending = None;
        self.memory.resize.in_progress = Some(InProgress {
            error: None,
            generation: self.pod.metadata.generation,
            before,
        });
        let message = told(&self.pod, "Pod resize started", "");
        self.event(None, Severity::Normal, "ResizeStarted", &message);
    }

    fn actuate(&mut self, now: Timestamp) {
        if self.resizing || now < self.resize_at {
            self.wake(self.resize_at.max(now));
            return;
        }
        let mut changes = Vec::new();
        let mut due = false;
        for slot in slots(&self.pod).filter(|slot| slot.role != Role::Init) {
            let newest = self
                .snapshot
                .newest(slot.name())
                .filter(|it| it.is_running());
            let Some(container) = newest.filter(|_| self.allocation.is_due(slot.name())) else {
                continue;
            };
            let (Some(from), Some(to)) = (
                self.allocation.actuated(slot.name()),
                self.allocation.allocated(slot.name()),
            ) else {
                continue;
            };
            due = true;
            if needs_restart(&slot.container, from, to) {
                self.memory.resized.insert(container.id.clone());
                continue;
            }
            changes.push(Change {
                name: slot.name().to_owned(),
                id: container.id.clone(),
                container: Spec {
                    resources: Some(to.clone()),
                    ..slot.container.clone().into_owned()
                },
                resources: to.clone(),
            });
        }
        if changes.is_empty() {
            if !due && self.memory.resize.in_progress.take().is_some() {
                let node = self.node.clone();
                let allocated = self.allocated();
                if let Err(error) = node.cgroups.prepare(&allocated) {
                    tracing::warn!(pod = %self.id, %error, "the pod's cgroup was not resized");
                }
                let message = told(&allocated, "Pod resize completed", "");
                self.event(None, Severity::Normal, "ResizeCompleted", &message);
            }
            return;
        }
        let before = self.memory.resize.in_progress.as_ref().map(|it| it.before);
        self.resizing = true;
        let (node, pod, uid) = (self.node.clone(), self.allocated(), self.id.uid.clone());
        self.tasks.spawn(async move {
            let result = bring(&node, &pod, &uid, before, changes).await;
            Report::Resized(result)
        });
    }

    pub(super) fn take_resized(
        &mut self,
        done: BTreeMap<String, ResourceRequirements>,
        problem: Option<String>,
        now: Timestamp,
    ) {
        self.resizing = false;
        for (name, resources) in done {
            self.allocation.set_actuated(&name, resources);
        }
        self.save_allocation();
        if let Some(problem) = &problem {
            let message = told(&self.allocated(), "Pod resize error", problem);
            self.event(None, Severity::Warning, "ResizeError", &message);
            self.resize_at = later(now, RETRY);
            self.wake(self.resize_at);
        }
        if let Some(progress) = &mut self.memory.resize.in_progress {
            progress.error = problem;
        }
    }

    pub(super) fn save_allocation(&self) {
        let folder = self.node.config.pod_folder(&self.id.uid);
        if let Err(error) = self.allocation.save(&folder) {
            tracing::warn!(pod = %self.id, %error, "what the pod was given is not written down");
        }
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

/// An event's message in the kubelet's form: what the pod's containers get, as JSON.
fn told(pod: &Pod, what: &str, error: &str) -> String {
    #[derive(Serialize)]
    struct Given<'a> {
        name: &'a str,
        resources: ResourceRequirements,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Summary<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_containers: Vec<Given<'a>>,
        containers: Vec<Given<'a>>,
        generation: i64,
        #[serde(skip_serializing_if = "str::is_empty")]
        error: &'a str,
    }
    fn given(container: &Spec) -> Given<'_> {
        Given {
            name: &container.name,
            resources: container.resources.clone().unwrap_or_default(),
        }
    }
    let spec = spec(pod);
    let summary = Summary {
        init_containers: spec.init_containers.iter().flatten().map(given).collect(),
        containers: spec.containers.iter().map(given).collect(),
        generation: pod.metadata.generation.unwrap_or(0),
        error,
    };
    match serde_json::to_string(&summary) {
        Ok(summary) => format!("{what}: {summary}"),
        Err(_) => what.to_owned(),
    }
}

/// What was brought to its new resources, and why the rest was not.
pub(crate) type Brought = (BTreeMap<String, ResourceRequirements>, Option<String>);

/// The pod's own cgroup has to hold what its containers have at any moment: it grows before
/// them, and shrinks (by the caller) after them.
async fn bring(
    node: &Node,
    pod: &Pod,
    uid: &str,
    before: Option<Amounts>,
    changes: Vec<Change>,
) -> Brought {
    let mut done = BTreeMap::new();
    let most = before.map_or(Amounts::of_pod(pod), |before| {
        before.or_more(Amounts::of_pod(pod))
    });
    if let Err(error) = node.cgroups.prepare_with(pod, &most) {
        return (done, Some(format!("resize the pod's cgroup: {error}")));
    }
    for change in changes {
        match bring_one(node, pod, uid, &change).await {
            Ok(()) => {
                done.insert(change.name, change.resources);
            }
            Err(problem) => return (done, Some(problem)),
        }
    }
    (done, None)
}

async fn bring_one(node: &Node, pod: &Pod, uid: &str, change: &Change) -> Result<(), String> {
    let unified = node.cgroups.is_unified();
    let limits = resources::container(pod, &change.container, &node.config, unified);
    if limits.memory_limit_in_bytes > 0 {
        // The second generation of cgroups would kill at once what is above its new limit.
        let used = memory_used(node, uid, &change.id).await;
        let limit = u64::try_from(limits.memory_limit_in_bytes).unwrap_or(0);
        if let Some(used) = used.filter(|used| *used > limit) {
            return Err(format!(
                "attempting to set container {:?} memory limit ({limit}) below current usage ({used})",
                change.name
            ));
        }
    }
    let updated = node.runtime.update_container_resources(&change.id, limits);
    updated.await.map_err(|error| error.message())
}

async fn memory_used(node: &Node, uid: &str, id: &str) -> Option<u64> {
    let of_pod = [(labels::POD_UID, uid)];
    let stats = node.runtime.list_container_stats(&of_pod).await.ok()?;
    let mut stats = stats.into_iter();
    let of_container =
        stats.find(|stats| stats.attributes.as_ref().is_some_and(|it| it.id == id))?;
    Some(of_container.memory?.working_set_bytes?.value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_tell_what_the_containers_get() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"generation": 2}, "spec": {
            "containers": [{"name": "c", "resources": {
                "requests": {"cpu": "300m"}, "limits": {"cpu": "500m", "memory": "256Mi"},
            }}],
        }}))
        .unwrap();
        let c = r#"{"name":"c","resources":{"limits":{"cpu":"500m","memory":"256Mi"},"requests":{"cpu":"300m"}}}"#;
        assert_eq!(
            told(&pod, "Pod resize started", ""),
            format!(r#"Pod resize started: {{"containers":[{c}],"generation":2}}"#)
        );
        assert_eq!(
            told(&pod, "Pod resize Deferred", "no room"),
            format!(
                r#"Pod resize Deferred: {{"containers":[{c}],"generation":2,"error":"no room"}}"#
            )
        );
    }
}
