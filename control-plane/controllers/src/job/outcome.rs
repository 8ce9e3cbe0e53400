//! Whether a Job has come to its end, and which: pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    account::{Account, indexed},
    policy,
};

pub(super) const COMPLETE: &str = "Complete";
pub(super) const FAILED: &str = "Failed";
pub(super) const SUSPENDED: &str = "Suspended";
/// Decided but pods still run: the final condition follows when they are gone (KEP-3998, KEP-3329).
pub(super) const SUCCESS_CRITERIA_MET: &str = "SuccessCriteriaMet";
pub(super) const FAILURE_TARGET: &str = "FailureTarget";

/// The decided end of a Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) success: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

fn end(success: bool, reason: &str, message: impl Into<String>) -> Option<End> {
    Some(End {
        success,
        reason: reason.to_owned(),
        message: message.into(),
    })
}

pub(super) fn condition<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    job.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == kind && condition.status == "True")
}

pub(crate) fn is_finished(job: &Job) -> bool {
    condition(job, COMPLETE).is_some() || condition(job, FAILED).is_some()
}

pub(super) fn is_suspended(job: &Job) -> bool {
    job.spec
        .as_ref()
        .and_then(|spec| spec.suspend)
        .unwrap_or(false)
}

/// An end that was decided before stays decided.
pub(super) fn decided(job: &Job) -> Option<End> {
    let earlier = |kind, success| {
        condition(job, kind).and_then(|found| {
            end(
                success,
                found.reason.as_deref().unwrap_or_default(),
                found.message.clone().unwrap_or_default(),
            )
        })
    };
    earlier(FAILURE_TARGET, false).or_else(|| earlier(SUCCESS_CRITERIA_MET, true))
}

/// Restarts of containers in place count like failed pods when the pods restart themselves.
fn restarts(job: &Job, account: &Account) -> i32 {
    let spec = job
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    if spec.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
        return 0;
    }
    let of_pod = |pod: &Pod| -> i32 {
        let Some(status) = &pod.status else { return 0 };
        let all = status
            .init_container_statuses
            .iter()
            .chain(&status.container_statuses);
        all.flatten().map(|container| container.restart_count).sum()
    };
    account.active.iter().map(|pod| of_pod(pod)).sum()
}

/// Time left of activeDeadlineSeconds; `None` when there is no deadline running.
pub(super) fn deadline(job: &Job, now: Timestamp) -> Option<SignedDuration> {
    let seconds = job.spec.as_ref()?.active_deadline_seconds?;
    let started = job.status.as_ref()?.start_time.as_ref()?.0;
    if is_suspended(job) {
        return None;
    }
    Some(SignedDuration::from_secs(seconds) - now.duration_since(started))
}

/// Judges a Job by its books.
pub(super) fn decide(job: &Job, account: &Account, now: Timestamp) -> Option<End> {
    if let Some(end) = decided(job) {
        return Some(end);
    }
    let spec = job.spec.clone().unwrap_or_default();
    if let Some(why) = &account.fail_job {
        return end(false, "PodFailurePolicy", why.clone());
    }
    let limit = spec.backoff_limit.unwrap_or(6);
    let restarts = restarts(job, account);
    let restarted = if limit == 0 {
        restarts > 0
    } else {
        restarts >= limit
    };
    if account.failed > limit || restarted {
        let message = "Job has reached the specified backoff limit";
        return end(false, "BackoffLimitExceeded", message);
    }
    if deadline(job, now).is_some_and(|left| left.is_zero() || left.is_negative()) {
        let message = "Job was active longer than specified deadline";
        return end(false, "DeadlineExceeded", message);
    }
    if let Some(completions) = indexed(job) {
        let failed = account.failed_indexes.len();
        let most = spec
            .max_failed_indexes
            .and_then(|most| usize::try_from(most).ok());
        if most.is_some_and(|most| failed > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return end(false, "MaxFailedIndexesExceeded", message);
        }
        let over = account.done.len() + failed >= usize::try_from(completions).unwrap_or(0);
        if failed > 0 && over {
            return end(false, "FailedIndexes", "Job has failed indexes");
        }
        if let Some(message) = policy::succeeded(job, completions, &account.done) {
            return end(true, "SuccessPolicy", message);
        }
    }
    let complete = match spec.completions {
        Some(completions) => account.succeeded >= completions,
        // A work queue: one success means that the work is done, the others find out themselves.
        None => account.succeeded > 0 && account.active.is_empty(),
    };
    if complete && !is_suspended(job) {
        let message = "Reached expected number of succeeded pods";
        return end(true, "CompletionsReached", message);
    }
    None
}

/// Sets a condition to True.
pub(super) fn add(
    conditions: &mut Vec<JobCondition>,
    kind: &str,
    status: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let status = if status { "True" } else { "False" };
    if conditions
        .iter()
        .any(|c| c.type_ == kind && c.status == status)
    {
        return;
    }
    conditions.retain(|condition| condition.type_ != kind);
    conditions.push(JobCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::{super::account::account, *};

    fn reason(
        spec: Value,
        status: Value,
        failed: i32,
        succeeded: i32,
        active: usize,
    ) -> Option<String> {
        let mut spec = spec;
        spec["template"] = json!({});
        let job: Job = serde_json::from_value(json!({"spec": spec, "status": status})).unwrap();
        let mut books = account(&job, &[]);
        books.failed = failed;
        books.succeeded = succeeded;
        books.active = (0..active).map(|_| Arc::new(Pod::default())).collect();
        decide(&job, &books, Timestamp::from_second(1000).unwrap()).map(|end| end.reason)
    }

    #[test]
    fn a_job_ends_by_completions_failures_or_time() {
        let none = json!({});
        let started = json!({"startTime": Timestamp::from_second(900).unwrap().to_string()});
        let cases = [
            (json!({"completions": 3}), &none, 0, 2, 1, None),
            (
                json!({"completions": 3}),
                &none,
                0,
                3,
                0,
                Some("CompletionsReached"),
            ),
            (json!({}), &none, 0, 1, 1, None),
            (json!({}), &none, 0, 1, 0, Some("CompletionsReached")),
            (json!({"backoffLimit": 2}), &none, 2, 0, 0, None),
            (
                json!({"backoffLimit": 2}),
                &none,
                3,
                0,
                0,
                Some("BackoffLimitExceeded"),
            ),
            (
                json!({"activeDeadlineSeconds": 101}),
                &started,
                0,
                0,
                1,
                None,
            ),
            (
                json!({"activeDeadlineSeconds": 100}),
                &started,
                0,
                0,
                1,
                Some("DeadlineExceeded"),
            ),
            (
                json!({"activeDeadlineSeconds": 1, "suspend": true}),
                &started,
                0,
                0,
                0,
                None,
            ),
        ];
        for (spec, status, failed, succeeded, active, expected) in cases {
            let found = reason(spec.clone(), status.clone(), failed, succeeded, active);
            assert_eq!(
                found.as_deref(),
                expected,
                "{spec} {failed} {succeeded} {active}"
            );
        }
    }

    #[test]
    fn what_was_decided_stays_decided() {
        let status = json!({"conditions":
            [{"type": FAILURE_TARGET, "status": "True", "reason": "PodFailurePolicy"}]});
        let found = reason(json!({"completions": 1}), status, 0, 1, 0);
        assert_eq!(found.as_deref(), Some("PodFailurePolicy"));
    }
}
