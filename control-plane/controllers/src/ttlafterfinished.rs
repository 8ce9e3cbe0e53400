//! Deletes finished Jobs when their ttlSecondsAfterFinished are over.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::api::PropagationPolicy;
use tracing::info;
use windlass_informers::{Informer, Key};

use crate::runtime::{
    Context, Controller, Outcome, Queue, Result, ResultExt, delete_with, run_workers,
};

struct TtlAfterFinished {
    context: Context,
    jobs: Arc<Informer<Job>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (jobs,) = context.synced::<(Job,)>().await;
    let _own = queue.follow_to(&jobs, |job| expiry(job).map(|_| Key::of(job)));
    let controller = Arc::new(TtlAfterFinished {
        context: context.clone(),
        jobs,
    });
    run_workers(controller, queue, 2, &context.cancel).await;
}

/// When the Job is to go; `None` when it has no limit or is not finished.
fn expiry(job: &Job) -> Option<Timestamp> {
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let finished = job
        .status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| {
            condition.status == "True" && matches!(condition.type_.as_str(), "Complete" | "Failed")
        })?;
    let at = finished.last_transition_time.as_ref()?.0;
    at.checked_add(SignedDuration::from_secs(i64::from(ttl)))
        .ok()
}

impl Controller for TtlAfterFinished {
    type Key = Key;
    const NAME: &'static str = "ttlafterfinished";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let due = |job: &Job| {
            job.metadata
                .deletion_timestamp
                .is_none()
                .then(|| expiry(job))?
        };
        let Some(at) = self.jobs.by_key(key).and_then(|job| due(&job)) else {
            return Ok(Outcome::Done);
        };
        let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
        if !left.is_zero() {
            return Ok(Outcome::Again(left));
        }
        // The limit may have been raised a moment ago: a deletion needs the newest word.
        let api = self.context.api::<Job>(&key.namespace);
        let fresh = api
            .get_opt(&key.name)
            .await
            .doing(|| format!("get job {key}"))?;
        let Some(job) = fresh.filter(|job| due(job).is_some_and(|at| at <= Timestamp::now()))
        else {
            return Ok(Outcome::Done);
        };
        info!(
            namespace = key.namespace,
            name = key.name,
            "deleting finished job"
        );
        delete_with(&api, &job, PropagationPolicy::Foreground, None).await?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_finished_job_with_a_limit_expires() {
        let job = |ttl: Option<i32>, kind: &str| -> Job {
            serde_json::from_value(json!({
                "spec": {"template": {}, "ttlSecondsAfterFinished": ttl},
                "status": {"conditions": [{"type": kind, "status": "True",
                    "lastTransitionTime": "1970-01-01T00:01:40Z"}]},
            }))
            .unwrap()
        };
        assert_eq!(
            expiry(&job(Some(20), "Complete")),
            Timestamp::from_second(120).ok()
        );
        assert_eq!(
            expiry(&job(Some(0), "Failed")),
            Timestamp::from_second(100).ok()
        );
        assert_eq!(expiry(&job(None, "Complete")), None);
        assert_eq!(expiry(&job(Some(0), "Suspended")), None);
    }
}
