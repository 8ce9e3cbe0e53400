//! One pod's task: it alone acts on its pod.
//!
//! Whatever happens (the object changed, the runtime tells of an exit, a probe spoke, a
//! start ended, a timer rang) ends in the same three steps: look at the runtime again if
//! needed, ask `plan` what to do, publish the status that `status` computes. Long work runs
//! in tasks of its own and reports back, so the worker is always ready to listen.

mod observe;
mod perform;
mod replacement;
mod report;
mod resize;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use windlass_volumes::Mounted;

use crate::allocation::Allocation;
use crate::launch::start;
use crate::manager::Views;
use crate::memory::{FailedStep, Memory, Verdict};
use crate::model::{PodId, Slot, container_hash, is_static, slot as slot_of, slots};
use crate::node::Node;
use crate::objects::Held;
use crate::plan::{Outcome, plan};
use crate::probe::{self, ProbeNews};
use crate::snapshot::Snapshot;
use crate::status::writer::StatusWriter;
use crate::status::{self, Inputs};

/// How soon the runtime is asked again when it did not answer.
const RUNTIME_RETRY: Duration = Duration::from_millis(500);

/// What a worker is told of its pod.
#[derive(Debug, Clone)]
pub(crate) struct Desired {
    /// The newest object.
    pub(crate) pod: Arc<Pod>,
    /// The object is not in the API any more.
    pub(crate) gone: bool,
}

/// Something about the pod's sandboxes or containers changed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kick {
    /// This one ended, says an event that may be ahead of the runtime's records.
    pub(crate) exited: Option<String>,
    /// The node ends the pod.
    pub(crate) verdict: Option<Verdict>,
}

/// What a task of the worker brings back.
pub(crate) enum Report {
    SandboxStarted(Result<(), start::StartError>),
    ContainerStarted {
        name: String,
        result: Result<String, start::StartError>,
    },
    Stopped {
        id: String,
        result: Result<(), String>,
    },
    VolumesRefreshed(Result<HashMap<String, Mounted>, String>),
    Resized(resize::Brought),
    Nothing,
}

/// What the node decided of a pod when it came.
pub(crate) struct Admitted {
    /// What it may have.
    pub(crate) allocation: Allocation,
    /// Why it is not taken, if it is not.
    pub(crate) verdict: Option<Verdict>,
    /// The uid of its mirror in the API, of a static pod.
    pub(crate) mirror: Option<watch::Receiver<Option<String>>>,
}

/// A pod's task.
pub(crate) struct Worker {
    pub(crate) node: Arc<Node>,
    pub(crate) id: PodId,
    pub(crate) pod: Arc<Pod>,
    pub(crate) desired: watch::Receiver<Desired>,
    pub(crate) kicks: mpsc::Receiver<Kick>,
    pub(crate) snapshot: Snapshot,
    pub(crate) memory: Memory,
    pub(crate) outcome: Outcome,
    pub(crate) tasks: JoinSet<Report>,
    /// Held while the runtime starts a container.
    pub(crate) in_runtime: Arc<tokio::sync::Mutex<()>>,
    pub(crate) status: StatusWriter,
    allocation: Allocation,
    /// Of containers that make way for their successors.
    replacement: replacement::Replacement,
    /// Whether containers are being brought to other resources.
    resizing: bool,
    /// Not before then.
    resize_at: Timestamp,
    /// The status of a static pod as it was told last.
    told: Mutex<Option<PodStatus>>,
    views: Arc<Views>,
    held: Held,
    /// Whether the snapshot could not be renewed.
    stale: bool,
    wake_at: Option<Timestamp>,
    volumes_due: Option<Timestamp>,
    /// Whether volumes are being brought up to date, and must be once more after that.
    refreshing: bool,
    refresh_again: bool,
    probes: HashMap<String, Option<probe::Running>>,
    pub(crate) probe_news: (mpsc::Sender<ProbeNews>, mpsc::Receiver<ProbeNews>),
    messages: HashMap<String, String>,
    /// Back-offs that were told as events.
    announced: HashSet<String>,
    cleaned: bool,
}

impl Worker {
    pub(crate) fn new(
        node: Arc<Node>,
        views: Arc<Views>,
        desired: watch::Receiver<Desired>,
        kicks: mpsc::Receiver<Kick>,
        admitted: Admitted,
    ) -> Self {
        let pod = desired.borrow().pod.clone();
        let memory = Memory {
            verdict: admitted.verdict,
            ..Memory::default()
        };
        Self {
            id: PodId::of(&pod),
            held: node.objects.hold(&pod),
            status: StatusWriter::new(node.client.clone(), &pod, admitted.mirror),
            node,
            views,
            pod,
            desired,
            kicks,
            snapshot: Snapshot::default(),
            memory,
            allocation: admitted.allocation,
            replacement: replacement::Replacement::default(),
            resizing: false,
            resize_at: Timestamp::UNIX_EPOCH,
            told: Mutex::default(),
            outcome: Outcome::Going,
            tasks: JoinSet::new(),
            in_runtime: Arc::default(),
            stale: true,
            wake_at: None,
            volumes_due: None,
            refreshing: false,
            refresh_again: false,
            probes: HashMap::new(),
            probe_news: mpsc::channel(16),
            messages: HashMap::new(),
            announced: HashSet::new(),
            cleaned: false,
        }
    }

    /// Runs until the pod is gone from the node.
    pub(crate) async fn run(mut self) {
        self.refresh(None).await;
        // Volumes of containers that were running before the agent follow their objects too.
        if self.snapshot.live_sandbox().is_some() {
            self.refresh_volumes();
        }
        loop {
            if self.desired.borrow().gone || self.pod.metadata.deletion_timestamp.is_some() {
                return self.terminate().await;
            }
            if !self.stale {
                self.act().await;
            }
            self.wait().await;
        }
    }

    /// Waits for the next thing to happen and takes it in.
    async fn wait(&mut self) {
        let wake_at = match self.stale {
            true => Some(crate::memory::later(Timestamp::now(), RUNTIME_RETRY)),
            false => self.wake_at,
        };
        tokio::select! {
            changed = self.desired.changed() => {
                if changed.is_ok() {
                    let newest = self.desired.borrow_and_update().pod.clone();
                    let before = std::mem::replace(&mut self.pod, newest);
                    for name in redefined(&before, &self.pod) {
                        self.memory.renew(&name);
                        self.announced.remove(&report::announcement(&name, FailedStep::ImagePull));
                    }
                    if tells_differently(&before, &self.pod) {
                        self.refresh_volumes();
                    }
                }
            }
            () = self.node.ledger.freed.notified(), if self.memory.resize.pending.is_some() => {}
            Some(kick) = self.kicks.recv() => self.take_kick(kick).await,
            Some(report) = self.tasks.join_next() => self.take(report).await,
            Some(news) = self.probe_news.1.recv() => self.take_probe(news),
            () = self.held.changed.notified() => {
                // What was missing may be there now.
                self.memory.failures.retain(|_, failure| failure.step != FailedStep::Config);
                self.memory.sandbox_failure = None;
                self.refresh_volumes();
            }
            () = until(wake_at) => if self.stale { self.refresh(None).await },
            () = until(self.volumes_due) => self.refresh_volumes(),
        }
    }

    /// Does what is to be done now, and says how things are.
    async fn act(&mut self) {
        let now = Timestamp::now();
        let plan = plan(&self.pod, &self.snapshot, &self.memory, now);
        self.outcome = plan.outcome;
        self.wake_at = plan.wake_at;
        self.tend_resize(now);
        for step in plan.steps {
            self.perform(step, now);
        }
        self.announce_backoffs(now);
        match self.replacement.quiet_until(now) {
            Some(until) if self.outcome == Outcome::Going => {
                self.wake_at = Some(self.wake_at.map_or(until, |earlier| earlier.min(until)));
            }
            _ => self.publish(now),
        }
        if self.outcome != Outcome::Going
            && self.tasks.is_empty()
            && !self.snapshot.anything_runs()
            && !self.snapshot.sandboxes.iter().any(|sandbox| sandbox.ready)
            && !self.cleaned
        {
            self.cleaned = self.clean_up().await;
            self.node.ledger.release(&self.id.uid);
        }
    }

    pub(crate) fn publish(&self, now: Timestamp) {
        // No API gives a static pod its last status back: it is kept here.
        let remembered = is_static(&self.pod).then(|| {
            let mut pod = (*self.pod).clone();
            pod.status = self.told.lock().clone();
            pod
        });
        let status = status::compute(&Inputs {
            pod: remembered.as_ref().unwrap_or(&self.pod),
            snapshot: &self.snapshot,
            memory: &self.memory,
            allocation: &self.allocation,
            outcome: &self.outcome,
            node_ips: &self.node.config.node.ips,
            runtime_name: &self.node.runtime_name,
            now,
        });
        self.views.tell(&self.id, &status);
        self.status.publish(&status);
        if remembered.is_some() {
            *self.told.lock() = Some(status);
        }
    }
}

/// The containers that are to be others than they were.
fn redefined(before: &Pod, now: &Pod) -> Vec<String> {
    let other = |slot: &Slot<'_>| {
        let old = slot_of(before, slot.name());
        old.is_some_and(|old| container_hash(&old.container) != container_hash(&slot.container))
    };
    let changed = slots(now).filter(other);
    changed.map(|slot| slot.name().to_owned()).collect()
}

/// Whether the downward API has other things to tell.
fn tells_differently(before: &Pod, now: &Pod) -> bool {
    let resources = |pod: &Pod| -> Vec<_> {
        slots(pod)
            .map(|slot| slot.container.resources.clone())
            .collect()
    };
    before.metadata.labels != now.metadata.labels
        || before.metadata.annotations != now.metadata.annotations
        || resources(before) != resources(now)
}

/// Sleeps until then; for ever if it is never.
pub(crate) async fn until(at: Option<Timestamp>) {
    let Some(at) = at else {
        return std::future::pending().await;
    };
    let wait = at.duration_since(Timestamp::now());
    let wait = Duration::try_from(wait).unwrap_or_default();
    // Timers count whole milliseconds: a little later beats a loop that wakes too early.
    tokio::time::sleep(wait + Duration::from_millis(1)).await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_with_another_image_waits_for_nothing() {
        let pod = |image: &str| -> Pod {
            let containers = json!([{"name": "a", "image": image}, {"name": "b", "image": "x:1"}]);
            serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
        };
        assert_eq!(redefined(&pod("x:1"), &pod("x:1")), Vec::<String>::new());
        let renewed = redefined(&pod("x:1"), &pod("x:2"));
        assert_eq!(renewed, ["a"]);
        let mut memory = Memory::default();
        let now = Timestamp::UNIX_EPOCH;
        for name in ["a", "b"] {
            memory.failed(name, FailedStep::ImagePull, "no such image".into(), now);
        }
        memory.renew(&renewed[0]);
        assert_eq!(memory.failures.keys().collect::<Vec<_>>(), ["b"]);
    }
}
