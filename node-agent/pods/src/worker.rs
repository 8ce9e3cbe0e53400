//! One pod's task: it alone acts on its pod.
//!
//! Whatever happens (the object changed, the runtime tells of an exit, a probe spoke, a
//! start ended, a timer rang) ends in the same three steps: look at the runtime again if
//! needed, ask `plan` what to do, publish the status that `status` computes. Long work runs
//! in tasks of its own and reports back, so the worker is always ready to listen.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use windlass_volumes::Mounted;

use crate::launch::mounts::message_file;
use crate::launch::{sandbox, start};
use crate::manager::Views;
use crate::memory::{Condemned, CrashBackoff, FailedStep, Failure, Health, Memory};
use crate::model::{PodId, Slot, grace_seconds, slots};
use crate::node::Node;
use crate::objects::Held;
use crate::plan::{Outcome, Step, StopReason, plan};
use crate::probe::{self, Finding, Kind, ProbeNews, Target};
use crate::recorder::Severity;
use crate::snapshot::{Container, Snapshot, State};
use crate::status::writer::StatusWriter;
use crate::status::{self, Inputs};
use crate::stop;

/// How soon the runtime is asked again when it did not answer.
const RUNTIME_RETRY: Duration = Duration::from_millis(500);
/// The runtime's records may lag behind its own event of an exit by this much.
const EXIT_LAG: Duration = Duration::from_secs(2);
const EXIT_LAG_STEP: Duration = Duration::from_millis(5);
/// The most that a container may say last.
const MESSAGE_MOST: u64 = 4096;
/// Ended containers that are kept per name, beside the newest one.
const KEPT_ENDED: usize = 1;

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
    Nothing,
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
    pub(crate) status: StatusWriter,
    views: Arc<Views>,
    held: Held,
    /// Whether the snapshot could not be renewed.
    stale: bool,
    wake_at: Option<Timestamp>,
    volumes_due: Option<Timestamp>,
    probes: HashMap<String, Option<probe::Running>>,
    probe_news: (mpsc::Sender<ProbeNews>, mpsc::Receiver<ProbeNews>),
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
    ) -> Self {
        let pod = desired.borrow().pod.clone();
        Self {
            id: PodId::of(&pod),
            held: node.objects.hold(&pod),
            status: StatusWriter::new(node.client.clone(), &pod),
            node,
            views,
            pod,
            desired,
            kicks,
            snapshot: Snapshot::default(),
            memory: Memory::default(),
            outcome: Outcome::Going,
            tasks: JoinSet::new(),
            stale: true,
            wake_at: None,
            volumes_due: None,
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
                    self.pod = self.desired.borrow_and_update().pod.clone();
                }
            }
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

    /// An end is told before the runtime has recorded how it was: a dead container must not
    /// count as ready for the time that takes.
    pub(crate) async fn take_kick(&mut self, kick: Kick) {
        let Some(id) = kick.exited else {
            return self.refresh(None).await;
        };
        if let Some(container) = self
            .snapshot
            .by_id(&id)
            .filter(|container| container.is_running())
            && let Some(health) = self.memory.health.get_mut(&container.name)
            && health.container_id == id
        {
            health.ready = false;
            self.publish(Timestamp::now());
        }
        self.refresh(Some(&id)).await;
    }

    /// Looks at the runtime again. If `exited` is given, until it is seen to have ended.
    pub(crate) async fn refresh(&mut self, exited: Option<&str>) {
        let end = tokio::time::Instant::now() + EXIT_LAG;
        loop {
            match Snapshot::take(&self.node.runtime, &self.id.uid).await {
                Ok(snapshot) => self.snapshot = snapshot,
                Err(error) => {
                    if !self.stale {
                        tracing::warn!(pod = %self.id, %error, "runtime not readable");
                    }
                    self.stale = true;
                    return;
                }
            }
            let lags = exited.is_some_and(|id| self.still_looks_alive(id));
            if !lags || tokio::time::Instant::now() > end {
                break;
            }
            tokio::time::sleep(EXIT_LAG_STEP).await;
        }
        self.stale = false;
        self.note_owners();
        self.read_messages();
        self.tend_probes();
        self.views
            .show(&self.id, self.pod.clone(), self.snapshot.clone());
    }

    fn still_looks_alive(&self, id: &str) -> bool {
        let sandbox = self
            .snapshot
            .sandboxes
            .iter()
            .any(|sandbox| sandbox.id == id && sandbox.ready);
        sandbox || self.snapshot.by_id(id).is_some_and(Container::is_running)
    }

    fn note_owners(&self) {
        let ids = self.snapshot.sandboxes.iter().map(|sandbox| &sandbox.id);
        let ids = ids.chain(
            self.snapshot
                .containers
                .iter()
                .map(|container| &container.id),
        );
        let mut owners = self.node.owners.lock();
        owners.extend(ids.map(|id| (id.clone(), self.id.uid.clone())));
    }

    /// Collects the last words of containers that ended.
    fn read_messages(&mut self) {
        let folder = self.node.config.pod_folder(&self.id.uid);
        for container in &mut self.snapshot.containers {
            let State::Exited(exit) = &container.state else {
                continue;
            };
            let message = self
                .messages
                .entry(container.id.clone())
                .or_insert_with(|| {
                    let path = message_file(&folder, &container.name, container.attempt);
                    let mut said = Vec::new();
                    if let Ok(file) = fs::File::open(path) {
                        // An unreadable file counts as silence.
                        let _ = file.take(MESSAGE_MOST).read_to_end(&mut said);
                    }
                    let from_log = said.is_empty()
                        && exit.code != 0
                        && slots(&self.pod).any(|slot| {
                            let policy = slot.container.termination_message_policy.as_deref();
                            slot.name() == container.name && policy == Some("FallbackToLogsOnError")
                        });
                    if from_log {
                        return crate::logs::tail(container.log_path.as_ref()).unwrap_or_default();
                    }
                    String::from_utf8_lossy(&said).into_owned()
                });
            container.exit_message = Some(message.clone()).filter(|text| !text.is_empty());
        }
        let known = &self.snapshot;
        self.messages.retain(|id, _| known.by_id(id).is_some());
    }

    /// Starts the probes of containers that run, and ends those of others.
    fn tend_probes(&mut self) {
        let snapshot = &self.snapshot;
        self.probes
            .retain(|id, _| snapshot.by_id(id).is_some_and(Container::is_running));
        if self.pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        for slot in slots(&self.pod) {
            let Some(container) = self.snapshot.newest(slot.name()) else {
                continue;
            };
            let State::Running { since } = container.state else {
                continue;
            };
            if self.probes.contains_key(&container.id) {
                continue;
            }
            let health = self.first_health(slot, container);
            let started = health.started;
            self.memory.health.insert(slot.name().to_owned(), health);
            let sandbox = self
                .snapshot
                .sandboxes
                .iter()
                .find(|it| it.id == container.sandbox);
            let ips = sandbox.map(|sandbox| self.node.pod_ips(&self.pod, sandbox));
            let target = Target {
                runtime: self.node.runtime.clone(),
                container: slot.container.clone(),
                container_id: container.id.clone(),
                ip: ips
                    .unwrap_or_default()
                    .first()
                    .and_then(|ip| ip.parse().ok()),
                age: Timestamp::now()
                    .duration_since(since)
                    .try_into()
                    .unwrap_or_default(),
                started,
            };
            let running = probe::start(target, self.probe_news.0.clone());
            self.probes.insert(container.id.clone(), running);
        }
    }

    /// What a container's health is before its probes spoke: for one that ran before the
    /// agent did, what the API says, so that a restart of the agent makes no pod unready.
    fn first_health(&self, slot: Slot<'_>, container: &Container) -> Health {
        let status = self.pod.status.as_ref();
        let mut known = status
            .into_iter()
            .flat_map(|status| {
                status
                    .container_statuses
                    .iter()
                    .chain(&status.init_container_statuses)
                    .flatten()
            })
            .filter(|known| {
                let id = known.container_id.as_deref().unwrap_or_default();
                id.ends_with(&container.id)
            });
        let known = known.next();
        let probed = slot.container.readiness_probe.is_some();
        Health {
            container_id: container.id.clone(),
            started: !slot.has_startup_probe()
                || known.is_some_and(|known| known.started == Some(true)),
            ready: !probed || known.is_some_and(|known| known.ready),
            condemned: None,
        }
    }

    /// Does what is to be done now, and says how things are.
    async fn act(&mut self) {
        let now = Timestamp::now();
        let plan = plan(&self.pod, &self.snapshot, &self.memory, now);
        self.outcome = plan.outcome;
        self.wake_at = plan.wake_at;
        for step in plan.steps {
            self.perform(step, now);
        }
        self.announce_backoffs(now);
        self.publish(now);
        if self.outcome != Outcome::Going
            && self.tasks.is_empty()
            && !self.snapshot.anything_runs()
            && !self.snapshot.sandboxes.iter().any(|sandbox| sandbox.ready)
            && !self.cleaned
        {
            self.cleaned = self.clean_up().await;
        }
    }

    pub(crate) fn publish(&self, now: Timestamp) {
        let status = status::compute(&Inputs {
            pod: &self.pod,
            snapshot: &self.snapshot,
            memory: &self.memory,
            outcome: &self.outcome,
            node_ips: &self.node.config.node.ips,
            runtime_name: &self.node.runtime_name,
            now,
        });
        self.status.publish(&status);
    }

    fn perform(&mut self, step: Step, now: Timestamp) {
        tracing::debug!(pod = %self.id, ?step, "step");
        let (node, pod) = (self.node.clone(), self.pod.clone());
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
                self.memory.starting = Some(name.clone());
                self.tasks.spawn(async move {
                    let result =
                        start::start_container(&node, &pod, &name, attempt, &sandbox).await;
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

    fn stop_one(&mut self, id: String, name: String, why: StopReason) {
        let mut grace = grace_seconds(&self.pod);
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
            StopReason::PodEnded => format!("Stopping container {name}"),
        };
        self.event(Some(&name), Severity::Normal, "Killing", &message);
        self.memory.stopping.push(id.clone());
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

    /// Takes in what a task brought back.
    pub(crate) async fn take(&mut self, report: Result<Report, tokio::task::JoinError>) {
        let now = Timestamp::now();
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(pod = %self.id, %error, "a pod's task panicked");
                }
                self.memory.starting = None;
                self.memory.stopping.clear();
                return self.refresh(None).await;
            }
        };
        match report {
            Report::Nothing => return,
            Report::SandboxStarted(result) => {
                self.memory.starting = None;
                self.memory.sandbox_failure = result.err().map(|error| {
                    let previous = self.memory.sandbox_failure.as_ref();
                    Failure::after(previous, error.step, error.message, now)
                });
                if self.memory.sandbox_failure.is_none() {
                    self.refresh_volumes();
                }
            }
            Report::ContainerStarted { name, result } => {
                self.memory.starting = None;
                match result {
                    Ok(_) => {
                        self.memory.failures.remove(&name);
                    }
                    Err(error) => self.take_start_error(&name, error, now),
                }
                self.refresh(None).await;
                self.collect_garbage();
                return;
            }
            Report::Stopped { id, result } => {
                self.memory.stopping.retain(|stopping| *stopping != id);
                if let Err(message) = result {
                    tracing::warn!(pod = %self.id, id, message, "not stopped, trying again");
                    self.event(None, Severity::Warning, "FailedKillPod", &message);
                }
            }
            Report::VolumesRefreshed(result) => {
                return match result {
                    Ok(volumes) => {
                        self.volumes_due =
                            volumes.values().filter_map(|volume| volume.renew_at).min();
                    }
                    Err(message) => {
                        self.event(None, Severity::Warning, "FailedMount", &message);
                        self.volumes_due = Some(crate::memory::later(now, Duration::from_secs(10)));
                    }
                };
            }
        }
        self.refresh(None).await;
    }

    fn take_start_error(&mut self, name: &str, error: start::StartError, now: Timestamp) {
        tracing::info!(
            pod = %self.id, container = name, step = ?error.step, message = error.message,
            "container not started"
        );
        let word = match error.step {
            FailedStep::ImagePull => Some("ErrImagePull".to_owned()),
            FailedStep::ImageNeverPull => Some("ErrImageNeverPull".to_owned()),
            FailedStep::ImageName => Some("InvalidImageName".to_owned()),
            FailedStep::Config | FailedStep::Create | FailedStep::Start => {
                Some(error.message.clone())
            }
            FailedStep::PostStart | FailedStep::Sandbox => None,
        };
        if let Some(word) = word {
            let message = format!("Error: {word}");
            self.event(Some(name), Severity::Warning, "Failed", &message);
        }
        if error.step == FailedStep::PostStart {
            // The container runs, and must not: its hook is a part of its start.
            if let Some(container) = self.snapshot.newest(name) {
                let condemned = Condemned {
                    message: "failed its postStart hook".to_owned(),
                    grace: None,
                };
                let id = container.id.clone();
                let health = self.memory.health.entry(name.to_owned()).or_insert(Health {
                    container_id: id.clone(),
                    started: false,
                    ready: false,
                    condemned: None,
                });
                health.container_id = id;
                health.condemned = Some(condemned);
            }
            return;
        }
        self.announced
            .remove(&announcement(name, FailedStep::ImagePull));
        self.memory.failed(name, error.step, error.message, now);
    }

    fn take_probe(&mut self, news: ProbeNews) {
        let ProbeNews {
            name,
            container_id,
            finding,
        } = news;
        let Some(health) = self.memory.health.get_mut(&name) else {
            return;
        };
        if health.container_id != container_id {
            return;
        }
        match finding {
            Finding::Started => health.started = true,
            Finding::Ready(ready) => health.ready = ready,
            Finding::Condemned { kind, grace } => {
                health.ready &= kind != Kind::Startup;
                let message = format!("failed {} probe", kind.name().to_lowercase());
                health.condemned = Some(Condemned { message, grace });
            }
            Finding::Failed { kind, message } => {
                let message = format!("{} probe failed: {message}", kind.name());
                self.event(Some(&name), Severity::Warning, "Unhealthy", &message);
            }
        }
    }

    /// Tells of each back-off once: users look for it in the events.
    fn announce_backoffs(&mut self, now: Timestamp) {
        let mut news = Vec::new();
        for slot in slots(&self.pod) {
            let name = slot.name();
            if let Some(failure) = self.memory.failures.get(name)
                && failure.step == FailedStep::ImagePull
                && now >= failure.shows_until()
                && self.announced.insert(announcement(name, failure.step))
            {
                let image = slot.container.image.as_deref().unwrap_or_default();
                let message = format!("Back-off pulling image {image:?}");
                news.push((name.to_owned(), Severity::Normal, message));
            }
            let newest = self.snapshot.newest(name);
            if let Some((container, exit)) = newest.and_then(|it| Some((it, it.exit()?)))
                && self.outcome == Outcome::Going
                && self.memory.starting.is_none()
                && CrashBackoff::allows_at(self.memory.crashes.get(name), exit.finished) > now
                && self.announced.insert(container.id.clone())
            {
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}",
                    self.id
                );
                news.push((name.to_owned(), Severity::Warning, message));
            }
        }
        for (name, severity, message) in news {
            self.event(Some(&name), severity, "BackOff", &message);
        }
    }

    pub(crate) fn event(
        &self,
        container: Option<&str>,
        severity: Severity,
        reason: &'static str,
        message: &str,
    ) {
        self.node
            .recorder
            .pod(&self.pod, container, severity, reason, message);
    }

    /// Brings volumes up to date with the cluster.
    fn refresh_volumes(&mut self) {
        if self.snapshot.live_sandbox().is_none() {
            return;
        }
        self.volumes_due = None;
        let (node, pod) = (self.node.clone(), self.pod.clone());
        self.tasks
            .spawn(async move { Report::VolumesRefreshed(node.set_up_volumes(&pod).await) });
    }

    /// Removes ended containers that nobody needs any more, and sandboxes without any.
    fn collect_garbage(&mut self) {
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
        let folder = self.node.config.pod_folder(&self.id.uid);
        let torn = tokio::task::spawn_blocking(move || windlass_volumes::tear_down(&folder)).await;
        let volumes = match torn {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
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
        self.views.hide(&self.id);
        let logs = sandbox::log_folder(&self.node.config, &self.id);
        if let Err(error) = fs::remove_dir_all(&logs)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(pod = %self.id, %error, "logs not removed");
        }
    }

    /// Whether the runtime did not answer when it was last asked.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    pub(crate) fn stop_probes(&mut self) {
        self.probes.clear();
    }
}

fn announcement(name: &str, step: FailedStep) -> String {
    format!("{step:?}/{name}")
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
