//! Listening: what tasks and probes report, and what users are told of it.

use std::time::Duration;

use jiff::Timestamp;

use super::{Report, Worker};
use crate::launch::start;
use crate::memory::{Condemned, CrashBackoff, FailedStep, Failure, Health};
use crate::model::all_slots;
use crate::plan::Outcome;
use crate::probe::{Finding, Kind, ProbeNews};
use crate::recorder::Severity;

impl Worker {
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
                self.refreshing = false;
                self.resizing = false;
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
                self.replacement.over();
                match result {
                    Ok(_) => {
                        self.memory.failures.remove(&name);
                        if let Some(given) = self.allocation.allocated(&name).cloned() {
                            self.allocation.set_actuated(&name, given);
                            self.save_allocation();
                        }
                    }
                    Err(error) => self.take_start_error(&name, error, now),
                }
                self.refresh(None).await;
                self.collect_garbage();
                return;
            }
            Report::Stopped { id, result } => {
                self.memory.stopping.retain(|stopping| *stopping != id);
                self.replacement.ended(&id, now);
                if let Err(message) = result {
                    tracing::warn!(pod = %self.id, id, message, "not stopped, trying again");
                    self.event(None, Severity::Warning, "FailedKillPod", &message);
                }
            }
            Report::Resized((done, problem)) => return self.take_resized(done, problem, now),
            Report::VolumesRefreshed(result) => {
                self.refreshing = false;
                if std::mem::take(&mut self.refresh_again) {
                    self.refresh_volumes();
                    return;
                }
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

    pub(super) fn take_start_error(
        &mut self,
        name: &str,
        error: start::StartError,
        now: Timestamp,
    ) {
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
        if let Some(failure) = self.memory.failures.get_mut(name) {
            failure.image = error.image;
        }
    }

    pub(crate) fn take_probe(&mut self, news: ProbeNews) {
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
            Finding::Warned { kind, message } => {
                let message = format!("{} probe warning: {message}", kind.name());
                self.event(Some(&name), Severity::Warning, "ProbeWarning", &message);
            }
            Finding::Errored { kind, message } => {
                let message = format!(
                    "{} probe errored and resulted in unknown state: {message}",
                    kind.name()
                );
                self.event(Some(&name), Severity::Warning, "Unhealthy", &message);
            }
            Finding::Failed { kind, message } => {
                let message = format!("{} probe failed: {message}", kind.name());
                self.event(Some(&name), Severity::Warning, "Unhealthy", &message);
            }
        }
    }

    /// Tells of each back-off once: users look for it in the events.
    pub(super) fn announce_backoffs(&mut self, now: Timestamp) {
        let mut news = Vec::new();
        for slot in all_slots(&self.pod) {
            let name = slot.name();
            if let Some(failure) = self.memory.failures.get(name)
                && failure.step == FailedStep::ImagePull
                && now >= failure.shows_until()
                && self.announced.insert(announcement(name, failure.step))
            {
                let image = failure.image.as_deref().unwrap_or_default();
                let message = format!("Back-off pulling image {image:?}");
                news.push((name.to_owned(), Severity::Normal, "BackOff", message));
                let message = "Error: ImagePullBackOff".to_owned();
                news.push((name.to_owned(), Severity::Warning, "Failed", message));
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
                news.push((name.to_owned(), Severity::Warning, "BackOff", message));
            }
        }
        for (name, severity, reason, message) in news {
            self.event(Some(&name), severity, reason, &message);
        }
    }

    pub(crate) fn event(
        &self,
        container: Option<&str>,
        severity: Severity,
        reason: impl Into<std::borrow::Cow<'static, str>>,
        message: &str,
    ) {
        self.node
            .recorder
            .pod(&self.pod, container, severity, reason, message);
    }
}

pub(super) fn announcement(name: &str, step: FailedStep) -> String {
    format!("{step:?}/{name}")
}
