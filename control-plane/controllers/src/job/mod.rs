//! Job: runs pods until enough of them succeed.

mod account;
mod backoff;
mod indexes;
mod outcome;
mod pods_of;
mod policy;

use std::{sync::Arc, time::Duration};

use ahash::AHashMap;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
    core::Selector,
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tracing::info;
use windlass_informers::{
    Informer, Key,
    recorder::{EventType, Recorder},
};

use self::{
    account::{Account, FINALIZER, JOB_NAME, account, is_tracked},
    outcome::{
        COMPLETE, End, FAILED, FAILURE_TARGET, SUCCESS_CRITERIA_MET, SUSPENDED, add, deadline,
        decide, is_suspended,
    },
};
use crate::runtime::{
    Context, Controller, Freshness, Outcome, Owner, Queue, Result, ResultExt, claim_pods,
    controlled_by, delete, follow_owned, patch_status, run_workers, usable,
};

pub(crate) use outcome::is_finished;

const OURS: &str = "kubernetes.io/job-controller";

struct Jobs {
    context: Context,
    jobs: Arc<Informer<Job>>,
    pods: Arc<Informer<Pod>>,
    freshness: Freshness<Pod>,
    /// Of the books, by which pods are released: a view that shows pods as released and not yet that they were counted
    /// would have them made anew.
    books: Freshness<Job>,
    recorder: Recorder,
    /// Failures since the last success, and when the last one was seen.
    failures: Mutex<AHashMap<Key, (u32, Instant)>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (jobs, pods) = context.synced::<(Job, Pod)>().await;

    let _own = queue.follow(&jobs);
    let _of_pods = follow_owned(&queue, &jobs, &pods, |_| true);
    let controller = Arc::new(Jobs {
        freshness: Freshness::new(Arc::clone(&pods)),
        books: Freshness::new(Arc::clone(&jobs)),
        recorder: context.recorder.named("job-controller"),
        context: context.clone(),
        jobs,
        pods,
        failures: Mutex::new(AHashMap::new()),
    });
    run_workers(controller, queue, 5, &context.cancel).await;
}

impl Owner for Job {
    fn selector(&self) -> Option<Selector> {
        usable(self.spec.as_ref()?.selector.as_ref())
    }

    const FINALIZER: Option<&'static str> = Some(FINALIZER);
}

fn is_ours(job: &Job) -> bool {
    let by = job
        .spec
        .as_ref()
        .and_then(|spec| spec.managed_by.as_deref());
    by.is_none_or(|by| by == OURS)
}

impl Controller for Jobs {
    type Key = Key;
    const NAME: &'static str = "job";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        // Asked before the look: what comes meanwhile makes it no older.
        let is_fresh = self.freshness.is_fresh(key) && self.books.is_fresh(key);
        let job = self.jobs.by_key(key);
        self.release_lost(key, job.as_deref()).await?;
        let Some(job) = job else {
            self.freshness.forget(key);
            self.books.forget(key);
            self.failures.lock().remove(key);
            return Ok(Outcome::Done);
        };
        if job.selector().is_none() || !is_ours(&job) || !is_fresh {
            return Ok(Outcome::Done);
        }
        let owned = claim_pods(
            &self.context,
            key,
            job.as_ref(),
            &self.pods,
            &self.freshness,
            |_| true,
        )
        .await?;
        if job.metadata.deletion_timestamp.is_some() || is_finished(&job) {
            // Nobody counts any more, and the pods must be able to go.
            let tracked = owned
                .iter()
                .filter(|pod| is_tracked(pod))
                .cloned()
                .collect::<Vec<_>>();
            return self.release(key, &tracked).await.map(|()| Outcome::Done);
        }
        self.work(key, &job, &owned).await
    }
}

impl Jobs {
    async fn work(&self, key: &Key, job: &Arc<Job>, owned: &[Arc<Pod>]) -> Result<Outcome> {
        let now = Timestamp::now();
        let books = account(job, owned);
        let pause = self.note_failures(key, job, &books);
        let end = decide(job, &books, now);
        let mut status = books.status.clone();
        let mut conditions = status.conditions.take().unwrap_or_default();
        if status.start_time.is_none() && !is_suspended(job) {
            status.start_time = Some(Time(now));
        }
        let managed = match &end {
            Some(end) => {
                let interim = if end.success {
                    SUCCESS_CRITERIA_MET
                } else {
                    FAILURE_TARGET
                };
                add(
                    &mut conditions,
                    interim,
                    true,
                    &end.reason,
                    &end.message,
                    now,
                );
                let gone = self.stop(key, &books.active).await;
                let over = books.active.is_empty()
                    && books.is_settled()
                    && books.status.terminating.unwrap_or(0) == 0;
                if over {
                    self.finish(job, end, &mut conditions, &mut status, now);
                }
                gone
            }
            None => {
                self.note_suspension(job, &mut conditions, &mut status, now);
                self.manage(key, job, &books, pause).await
            }
        };
        status.conditions = (!conditions.is_empty()).then_some(conditions);
        let updated = Job {
            status: Some(status),
            ..job.as_ref().clone()
        };
        let observer = self.books.observer(key);
        let written =
            patch_status(&self.context.api(&key.namespace), job.as_ref(), &updated).await?;
        if let Some(written) = &written {
            observer.wrote(written);
        }
        self.release(key, &books.release).await?;
        managed?;
        let left = deadline(job, now).and_then(|left| Duration::try_from(left).ok());
        let next = left
            .into_iter()
            .chain(pause)
            .chain(backoff::next(&books, now))
            .filter(|left| !left.is_zero())
            .min();
        Ok(next.map_or(Outcome::Done, Outcome::Again))
    }

    /// Counts failures in a row; returns how long no new pod is to be made.
    fn note_failures(&self, key: &Key, job: &Job, books: &Account) -> Option<Duration> {
        let per_index = job
            .spec
            .as_ref()
            .is_some_and(|spec| spec.backoff_limit_per_index.is_some());
        let mut failures = self.failures.lock();
        let succeeded = job
            .status
            .as_ref()
            .and_then(|status| status.succeeded)
            .unwrap_or(0);
        if books.succeeded > succeeded {
            failures.remove(key);
        }
        if books.news > 0 {
            let entry = failures.entry(key.clone()).or_insert((0, Instant::now()));
            entry.0 += u32::try_from(books.news).unwrap_or(1);
            entry.1 = Instant::now();
        }
        let (count, last) = failures.get(key).copied().filter(|_| !per_index)?;
        Some(backoff::after(count).saturating_sub(last.elapsed()))
    }

    fn note_suspension(
        &self,
        job: &Arc<Job>,
        conditions: &mut Vec<k8s_openapi::api::batch::v1::JobCondition>,
        status: &mut JobStatus,
        now: Timestamp,
    ) {
        let was = conditions
            .iter()
            .any(|c| c.type_ == SUSPENDED && c.status == "True");
        match (is_suspended(job), was) {
            (true, false) => {
                add(
                    conditions,
                    SUSPENDED,
                    true,
                    "JobSuspended",
                    "Job suspended",
                    now,
                );
                // Time spent suspended must not count against the deadline.
                status.start_time = None;
                let message = "Job suspended".to_owned();
                self.recorder
                    .record(job.as_ref(), EventType::Normal, "Suspended", message);
            }
            (false, true) => {
                add(
                    conditions,
                    SUSPENDED,
                    false,
                    "JobResumed",
                    "Job resumed",
                    now,
                );
                status.start_time = Some(Time(now));
                let message = "Job resumed".to_owned();
                self.recorder
                    .record(job.as_ref(), EventType::Normal, "Resumed", message);
            }
            (true, true) => status.start_time = None,
            (false, false) => {}
        }
    }

    fn finish(
        &self,
        job: &Arc<Job>,
        end: &End,
        conditions: &mut Vec<k8s_openapi::api::batch::v1::JobCondition>,
        status: &mut JobStatus,
        now: Timestamp,
    ) {
        info!(
            namespace = job.namespace(),
            name = job.name_any(),
            reason = end.reason,
            "job ended"
        );
        if end.success {
            add(conditions, COMPLETE, true, &end.reason, &end.message, now);
            status.completion_time = Some(Time(now));
            let message = "Job completed".to_owned();
            self.recorder
                .record(job.as_ref(), EventType::Normal, "Completed", message);
        } else {
            add(conditions, FAILED, true, &end.reason, &end.message, now);
            let message = end.message.clone();
            self.recorder
                .record(job.as_ref(), EventType::Warning, &end.reason, message);
        }
        self.failures.lock().remove(&Key::of(job.as_ref()));
    }

    /// Stops what still runs of a Job whose end is decided.
    async fn stop(&self, key: &Key, active: &[Arc<Pod>]) -> Result<()> {
        let api = self.context.api::<Pod>(&key.namespace);
        let deletions = active.iter().map(|pod| delete(&api, pod.as_ref()));
        join_all(deletions).await.into_iter().collect()
    }

    /// Releases pods that were counted for a job that is gone, or for an earlier one of its name: with the finalizer on
    /// them neither they nor their namespace could go. Pods that were orphaned on purpose are known by their label.
    async fn release_lost(&self, key: &Key, job: Option<&Job>) -> Result<()> {
        let living = job.and_then(|job| job.metadata.uid.as_deref());
        let mut pods = self.pods.in_namespace(&key.namespace);
        pods.retain(|pod| {
            is_tracked(pod)
                && match controlled_by::<Job>(pod.as_ref()) {
                    Some(owner) => owner.name == key.name && Some(owner.uid.as_str()) != living,
                    None => living.is_none() && pod.labels().get(JOB_NAME) == Some(&key.name),
                }
        });
        self.release(key, &pods).await
    }

    /// Takes the tracking finalizer off pods that are in the books.
    async fn release(&self, key: &Key, pods: &[Arc<Pod>]) -> Result<()> {
        let releases = pods.iter().map(|pod| self.release_one(key, pod));
        join_all(releases).await.into_iter().collect()
    }

    async fn release_one(&self, key: &Key, pod: &Pod) -> Result<()> {
        let kept: Vec<_> = pod
            .finalizers()
            .iter()
            .filter(|finalizer| *finalizer != FINALIZER)
            .collect();
        let body = json!({ "metadata": {
            "uid": pod.metadata.uid,
            "resourceVersion": pod.metadata.resource_version,
            "finalizers": if kept.is_empty() { json!(null) } else { json!(kept) },
        }});
        let name = pod.name_any();
        let api = self.context.api::<Pod>(&key.namespace);
        match api
            .patch(&name, &PatchParams::default(), &Patch::Merge(&body))
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).doing(|| format!("release pod {name} of job {key}")),
        }
    }
}
