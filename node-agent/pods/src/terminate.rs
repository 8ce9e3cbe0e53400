//! The orderly end of a pod that is being deleted.
//!
//! First the datapath stops sending new connections, then the main containers are
//! stopped, then the sidecars, then the sandbox gives its address back, then volumes and
//! cgroup go, and only when nothing is left on the node is the object itself deleted.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};

use crate::model::grace_seconds;
use crate::plan::next_to_stop;
use crate::recorder::Severity;
use crate::snapshot::Container;
use crate::stop;
use crate::worker::{Report, Worker};

/// The most that a pod waits for the datapath before it is stopped all the same.
const DRAIN_MOST: Duration = Duration::from_secs(5);
/// How long a start may take that the runtime is at.
const START_MOST: Duration = Duration::from_secs(5);
/// How soon something that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How long the last status may take before the object is deleted without it.
const LAST_STATUS: Duration = Duration::from_secs(5);

impl Worker {
    /// Brings the pod to its end; returns when nothing of it is left here.
    pub(crate) async fn terminate(mut self) {
        tracing::info!(pod = %self.id, "terminating");
        // Starts that are under way are given up; what they made is found below.
        self.tasks.shutdown().await;
        let started = self.in_runtime.clone();
        // Late is as good as never: what starts after that goes with its sandbox.
        drop(tokio::time::timeout(START_MOST, started.lock()).await);
        self.memory.starting = None;
        self.memory.stopping.clear();
        self.probe_only_readiness();
        let begun = Instant::now();
        self.look().await;

        self.drain(begun).await;
        self.stop_containers(begun).await;
        self.stop_sandboxes().await;
        self.memory.ended = true;
        self.publish(Timestamp::now());
        while !self.clean_up().await {
            tokio::time::sleep(RETRY).await;
        }
        // Who waits for its place sees the object go: the place must be free by then.
        self.node.ledger.release(&self.id.uid);
        self.remove_object().await;
        self.remove_sandboxes().await;
        self.forget();
        tracing::info!(pod = %self.id, took_ms = begun.elapsed().as_millis(), "terminated");
    }

    /// Looks until the runtime answers, and says how things are.
    async fn look(&mut self) {
        while !self.try_refresh().await {
            tokio::time::sleep(RETRY).await;
        }
        self.publish(Timestamp::now());
    }

    async fn try_refresh(&mut self) -> bool {
        self.refresh(None).await;
        !self.is_stale()
    }

    async fn drain(&mut self, begun: Instant) {
        let grace = self.grace();
        if grace.is_zero() || !self.snapshot.anything_runs() {
            return;
        }
        let Some(sandbox) = self.snapshot.sandboxes.first() else {
            return;
        };
        // Addresses of the node itself are never taken out of service for one pod.
        let ips: Vec<_> = sandbox
            .ips
            .iter()
            .filter_map(|ip| ip.parse().ok())
            .collect();
        if !ips.is_empty() {
            let deadline = begun + DRAIN_MOST.min(grace);
            let node = self.node.clone();
            let mut drained = node.drain.wait_until_unreferenced(&ips, deadline);
            loop {
                tokio::select! {
                    () = &mut drained => return,
                    Some(news) = self.probe_news.1.recv() => {
                        self.take_probe(news);
                        self.publish(Timestamp::now());
                    }
                }
            }
        }
    }

    /// How long containers may take, as of now: the user may shorten it at any time.
    fn grace(&self) -> Duration {
        let pod = &self.desired.borrow().pod;
        Duration::from_secs(u64::try_from(grace_seconds(pod)).unwrap_or(0))
    }

    /// Stops all containers, each stage when the one before is through.
    async fn stop_containers(&mut self, begun: Instant) {
        // Each container that was told to stop, and when it is killed at the latest.
        let mut told: HashMap<String, Instant> = HashMap::new();
        loop {
            let end = begun + self.grace();
            let due: Vec<_> = next_to_stop(&self.pod, &self.snapshot)
                .into_iter()
                .map(|container| (container.name.clone(), container.id.clone()))
                .collect();
            if due.is_empty() {
                return;
            }
            for (name, id) in due {
                if told.get(&id).is_some_and(|known| *known <= end) {
                    continue;
                }
                if told.insert(id.clone(), end).is_none() {
                    let message = format!("Stopping container {name}");
                    self.event(Some(&name), Severity::Normal, "Killing", &message);
                }
                self.stop_by(name, id, end);
            }
            self.next_sign().await;
            // What could not be stopped is told again.
            let stopping = &self.memory.stopping;
            told.retain(|id, _| stopping.contains(id));
        }
    }

    fn stop_by(&mut self, name: String, id: String, end: Instant) {
        self.memory.stopping.push(id.clone());
        let (node, pod, ip) = (self.node.clone(), self.pod.clone(), self.pod_ip());
        self.tasks.spawn(async move {
            let grace = end.saturating_duration_since(Instant::now());
            let result = stop::stop_container(&node, &pod, &name, &id, ip, grace).await;
            Report::Stopped { id, result }
        });
    }

    /// Waits for an end, an event, word of a probe, or a change of the grace period.
    async fn next_sign(&mut self) {
        tokio::select! {
            Some(report) = self.tasks.join_next() => {
                let failed = matches!(&report, Ok(Report::Stopped { result: Err(_), .. }));
                self.take(report).await;
                if failed {
                    tokio::time::sleep(RETRY).await;
                }
            }
            Some(kick) = self.kicks.recv() => self.take_kick(kick).await,
            Some(news) = self.probe_news.1.recv() => self.take_probe(news),
            changed = self.desired.changed() => if changed.is_ok() {
                self.pod = self.desired.borrow_and_update().pod.clone();
            },
        }
        self.publish(Timestamp::now());
    }

    async fn stop_sandboxes(&mut self) {
        // A start that was given up may have come through after all.
        while self.snapshot.sandboxes.iter().any(|sandbox| sandbox.ready)
            || self.snapshot.anything_runs()
        {
            let mut failed = false;
            for sandbox in &self.snapshot.sandboxes {
                if let Err(error) = self.node.runtime.stop_pod_sandbox(&sandbox.id).await {
                    tracing::warn!(pod = %self.id, %error, "sandbox not stopped, trying again");
                    failed = true;
                }
            }
            if failed {
                tokio::time::sleep(RETRY).await;
            }
            self.look().await;
        }
        self.tasks.shutdown().await;
    }

    /// Deletes the object for good, unless it is gone already.
    async fn remove_object(&mut self) {
        if self.desired.borrow().gone {
            return;
        }
        if !self.status.flush(LAST_STATUS).await {
            tracing::warn!(pod = %self.id, "deleted without its last status");
        }
        let pods: Api<Pod> = Api::namespaced(self.node.client.clone(), &self.id.namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.id.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        loop {
            match pods.delete(&self.id.name, &params).await {
                Ok(_) => return,
                // Gone, or another pod has the name by now.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => {
                    tracing::warn!(pod = %self.id, %error, "object not deleted, trying again");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                changed = self.desired.changed() => {
                    if changed.is_err() || self.desired.borrow_and_update().gone {
                        return;
                    }
                }
            }
        }
    }

    /// Removes what the runtime still keeps on record. If that fails, the node's garbage
    /// collection finds it as something that belongs to no pod.
    async fn remove_sandboxes(&self) {
        for sandbox in &self.snapshot.sandboxes {
            if let Err(error) = self.node.runtime.remove_pod_sandbox(&sandbox.id).await {
                tracing::debug!(pod = %self.id, %error, "sandbox not removed");
            }
        }
        let left = self
            .snapshot
            .containers
            .iter()
            .map(|container: &Container| &container.id);
        for id in left {
            if let Err(error) = self.node.runtime.remove_container(id).await {
                tracing::debug!(pod = %self.id, %error, "container not removed");
            }
        }
    }
}
