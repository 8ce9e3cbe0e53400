//! Looking: the runtime's state, last words, probes.

use std::fs;
use std::io::Read;
use std::time::Duration;

use jiff::Timestamp;

use super::{Kick, Worker};
use crate::launch::mounts::message_file;
use crate::memory::Health;
use crate::model::{PodId, Slot, all_slots, slot};
use crate::probe::{self, Target};
use crate::recorder::Severity;
use crate::snapshot::{Container, Snapshot, State};

/// The runtime's records may lag behind its own event of an exit by this much.
const EXIT_LAG: Duration = Duration::from_secs(2);
const EXIT_LAG_STEP: Duration = Duration::from_millis(5);
/// The most that a container may say last.
const MESSAGE_MOST: u64 = 4096;

impl Worker {
    /// An end is told before the runtime has recorded how it was: a dead container must not
    /// count as ready for the time that takes.
    pub(crate) async fn take_kick(&mut self, kick: Kick) {
        if let Some(verdict) = kick.verdict {
            if self.memory.verdict.is_none() {
                let reason = verdict.reason.clone();
                self.event(None, Severity::Warning, reason, &verdict.message);
                self.memory.verdict = Some(verdict);
            }
            return;
        }
        let Some(id) = kick.exited else {
            return self.refresh(None).await;
        };
        let now = Timestamp::now();
        self.replacement.ended(&id, now);
        if let Some(container) = self
            .snapshot
            .by_id(&id)
            .filter(|container| container.is_running())
            && let Some(health) = self.memory.health.get_mut(&container.name)
            && health.container_id == id
        {
            health.ready = false;
            if self.replacement.quiet_until(now).is_none() {
                self.publish(now);
            }
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

    pub(super) fn still_looks_alive(&self, id: &str) -> bool {
        let sandbox = self
            .snapshot
            .sandboxes
            .iter()
            .any(|sandbox| sandbox.id == id && sandbox.ready);
        sandbox || self.snapshot.by_id(id).is_some_and(Container::is_running)
    }

    pub(super) fn note_owners(&self) {
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
    pub(super) fn read_messages(&mut self) {
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
                        && slot(&self.pod, &container.name).is_some_and(|slot| {
                            let policy = slot.container.termination_message_policy.as_deref();
                            policy == Some("FallbackToLogsOnError")
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
    pub(super) fn tend_probes(&mut self) {
        let snapshot = &self.snapshot;
        self.probes
            .retain(|id, _| snapshot.by_id(id).is_some_and(Container::is_running));
        if self.pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        for slot in all_slots(&self.pod) {
            let Some(container) = self.snapshot.newest(slot.name()) else {
                continue;
            };
            let State::Running { since } = container.state else {
                continue;
            };
            if self.probes.contains_key(&container.id) {
                continue;
            }
            let health = self.first_health(&slot, container);
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
                pod: PodId::of(&self.pod),
                container: slot.container.clone().into_owned(),
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
                results: self.node.probe_results.clone(),
            };
            let running = probe::start(target, self.probe_news.0.clone());
            self.probes.insert(container.id.clone(), running);
        }
    }

    /// What a container's health is before its probes spoke: for one that ran before the
    /// agent did, what the API says, so that a restart of the agent makes no pod unready.
    pub(super) fn first_health(&self, slot: &Slot<'_>, container: &Container) -> Health {
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

    /// Whether the runtime did not answer when it was last asked.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    pub(crate) fn probe_only_readiness(&mut self) {
        let running = self.probes.values_mut().flatten();
        running.for_each(probe::Running::only_readiness);
    }
}
