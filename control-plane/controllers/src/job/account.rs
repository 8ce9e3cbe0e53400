//! The books of a Job: how many pods succeeded and failed, exactly once each: pure.
//!
//! A pod that ended keeps the tracking finalizer until its uid is written into the status as uncounted;
//! then the finalizer goes; once the pod is seen without it, the uid leaves the list and the counter goes
//! up, in one write. A crash between any two steps repeats a step and never counts twice (KEP-2307).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{Job, JobStatus, UncountedTerminatedPods},
    core::v1::Pod,
};
use kube::ResourceExt;

use super::{
    indexes::{Indexes, format, parse},
    policy::{Verdict, judge},
};
use crate::pods;

pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// The label that the API server gives to a Job's pods.
pub(super) const JOB_NAME: &str = "batch.kubernetes.io/job-name";
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub(super) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.finalizers()
        .iter()
        .any(|finalizer| finalizer == FINALIZER)
}

pub(super) fn index_of(pod: &Pod) -> Option<i32> {
    pod.annotations().get(INDEX)?.parse().ok()
}

pub(super) fn index_failures(pod: &Pod) -> i32 {
    pod.annotations()
        .get(INDEX_FAILURES)
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

/// `Some(completions)` for an Indexed Job.
pub(super) fn indexed(job: &Job) -> Option<i32> {
    let spec = job.spec.as_ref()?;
    (spec.completion_mode.as_deref() == Some("Indexed")).then(|| spec.completions.unwrap_or(0))
}

/// Only a pod that has ended is replaced, not one that is about to; nor is one judged by podFailurePolicy
/// before it has ended, because only then there are exit codes to judge by (KEP-3939).
pub(super) fn replaces_only_failed(job: &Job) -> bool {
    job.spec.as_ref().is_some_and(|spec| {
        spec.pod_replacement_policy.as_deref() == Some("Failed")
            || spec.pod_failure_policy.is_some()
    })
}

fn has_failed(job: &Job, pod: &Pod) -> bool {
    let gone = pods::is_terminating(pod) && pods::phase(pod) != "Succeeded";
    pods::phase(pod) == "Failed" || (gone && !replaces_only_failed(job))
}

/// When the last container of a pod ended, or the pod was told to go.
fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref();
    let ends = status
        .and_then(|status| status.container_statuses.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|status| {
            status
                .state
                .as_ref()?
                .terminated
                .as_ref()?
                .finished_at
                .as_ref()
        });
    let told = pod.metadata.deletion_timestamp.as_ref();
    ends.chain(told).map(|time| time.0).max()
}

/// The state of a Job as its pods show it.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// With counters, uncounted pods and indexes brought up to date.
    pub(super) status: JobStatus,
    pub(super) active: Vec<Arc<Pod>>,
    /// Ended or ending pods whose finalizer may go once `status` is written.
    pub(super) release: Vec<Arc<Pod>>,
    pub(super) done: Indexes,
    pub(super) failed_indexes: Indexes,
    /// With backoffLimitPerIndex, how often each index has failed so far.
    pub(super) index_failures: BTreeMap<i32, i32>,
    /// ... and when it did last.
    pub(super) index_failed_at: BTreeMap<i32, Timestamp>,
    /// All that succeeded or failed, counted yet or not.
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    /// Failures that were seen for the first time.
    pub(super) news: usize,
    /// Why podFailurePolicy fails the Job.
    pub(super) fail_job: Option<String>,
}

fn limit_per_index(job: &Job) -> Option<i32> {
    job.spec.as_ref()?.backoff_limit_per_index
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Pods that have ended, by uid while they are not counted yet, and the counts of the others.
struct Ends {
    succeeded: Vec<String>,
    failed: Vec<String>,
    counted_succeeded: i32,
    counted_failed: i32,
}

impl Ends {
    /// What was uncounted counts once its pod carries the finalizer no more.
    fn settled(previous: &JobStatus, all: &[Arc<Pod>]) -> Self {
        let tracked: BTreeSet<&str> = all
            .iter()
            .filter(|pod| is_tracked(pod))
            .filter_map(|pod| pod.metadata.uid.as_deref())
            .collect();
        let settle = |list: Option<Vec<String>>, counted: Option<i32>| {
            let (open, settled): (Vec<_>, Vec<_>) = list
                .unwrap_or_default()
                .into_iter()
                .partition(|uid| tracked.contains(uid.as_str()));
            (open, counted.unwrap_or(0) + number(settled.len()))
        };
        let uncounted = previous
            .uncounted_terminated_pods
            .clone()
            .unwrap_or_default();
        let (succeeded, counted_succeeded) = settle(uncounted.succeeded, previous.succeeded);
        let (failed, counted_failed) = settle(uncounted.failed, previous.failed);
        Self {
            succeeded,
            failed,
            counted_succeeded,
            counted_failed,
        }
    }
}

/// Reads the pods into the books.
pub(super) fn account(job: &Job, all: &[Arc<Pod>]) -> Account {
    let previous = job.status.clone().unwrap_or_default();
    let completions = indexed(job);
    let mut ends = Ends::settled(&previous, all);
    let range = completions.unwrap_or(0);
    let indexes = |text: &Option<String>| parse(text.as_deref().unwrap_or_default(), range);
    let mut account = Account {
        done: indexes(&previous.completed_indexes),
        failed_indexes: indexes(&previous.failed_indexes),
        ..Account::default()
    };
    for pod in all {
        if pods::is_active(pod) {
            account.active.push(Arc::clone(pod));
        }
        if !is_tracked(pod) {
            continue;
        }
        if pods::phase(pod) == "Succeeded" {
            account.release.push(Arc::clone(pod));
            account.read_success(completions, pod, &mut ends);
        } else if has_failed(job, pod) {
            account.release.push(Arc::clone(pod));
            account.read_failure(job, pod, &mut ends);
        }
    }
    account.failed_indexes = &account.failed_indexes - &account.done;
    account.keep_last_failures();
    account.succeeded = match completions {
        Some(_) => number(account.done.len()),
        None => ends.counted_succeeded + number(ends.succeeded.len()),
    };
    account.failed = ends.counted_failed + number(ends.failed.len());
    account.status = account.status_of(job, all, previous, ends);
    account
}

impl Account {
    fn read_success(&mut self, completions: Option<i32>, pod: &Pod, ends: &mut Ends) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        match (completions, index_of(pod)) {
            // An index is done once however many pods of it succeed.
            (Some(total), Some(index)) if index < total => {
                self.done.insert(index);
            }
            (Some(_), _) => {}
            (None, _) if !ends.succeeded.contains(&uid) => ends.succeeded.push(uid),
            (None, _) => {}
        }
    }

    fn read_failure(&mut self, job: &Job, pod: &Pod, ends: &mut Ends) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let known = ends.failed.contains(&uid);
        let verdict = judge(job, pod);
        if let Verdict::FailJob(why) = &verdict {
            self.fail_job.get_or_insert_with(|| why.clone());
        }
        if let (Some(limit), Some(index)) = (limit_per_index(job), index_of(pod)) {
            let count = index_failures(pod) + i32::from(verdict != Verdict::Ignore);
            if verdict == Verdict::FailIndex || count > limit {
                self.failed_indexes.insert(index);
            }
            let most = self.index_failures.entry(index).or_default();
            if count >= *most {
                *most = count;
                self.index_failed_at
                    .extend(ended_at(pod).map(|at| (index, at)));
            }
        }
        if verdict != Verdict::Ignore && !known {
            ends.failed.push(uid);
            self.news += 1;
        }
    }

    fn status_of(&self, job: &Job, all: &[Arc<Pod>], previous: JobStatus, ends: Ends) -> JobStatus {
        let completions = indexed(job);
        let ready = self.active.iter().filter(|pod| pods::is_ready(pod)).count();
        let terminating = all
            .iter()
            .filter(|pod| pods::is_terminating(pod) && !pods::is_finished(pod))
            .count();
        let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
        let positive = |count: i32| (count > 0).then_some(count);
        let shown = match completions {
            Some(_) => self.succeeded,
            None => ends.counted_succeeded,
        };
        JobStatus {
            active: positive(number(self.active.len())),
            ready: Some(number(ready)),
            terminating: Some(number(terminating)),
            succeeded: positive(shown),
            failed: positive(ends.counted_failed),
            completed_indexes: completions
                .map(|_| format(&self.done))
                .filter(|text| !text.is_empty()),
            failed_indexes: limit_per_index(job).map(|_| format(&self.failed_indexes)),
            uncounted_terminated_pods: Some(UncountedTerminatedPods {
                succeeded: some(ends.succeeded),
                failed: some(ends.failed),
            }),
            ..previous
        }
    }

    /// How often an index has failed is written on its pods only: the last failed one stays until its
    /// successor, which carries the number on, has been made.
    fn keep_last_failures(&mut self) {
        let running: Indexes = self.active.iter().filter_map(|pod| index_of(pod)).collect();
        let over = |index: &i32| {
            self.done.contains(index)
                || self.failed_indexes.contains(index)
                || running.contains(index)
        };
        let waiting: Indexes = self
            .index_failures
            .keys()
            .copied()
            .filter(|index| !over(index))
            .collect();
        self.release.retain(|pod| {
            let index = index_of(pod).filter(|index| waiting.contains(index));
            index.is_none_or(|index| index_failures(pod) + 1 < self.index_failures[&index])
        });
    }

    /// Whether every ended pod is in the counters.
    pub(super) fn is_settled(&self) -> bool {
        let uncounted = self.status.uncounted_terminated_pods.as_ref();
        self.release.is_empty()
            && uncounted.is_none_or(|open| open.succeeded.is_none() && open.failed.is_none())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(uid: &str, phase: &str, tracked: bool, index: Option<i32>) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": uid, "uid": uid,
                "finalizers": if tracked { vec![FINALIZER] } else { vec![] }},
            "status": {"phase": phase},
        });
        if let Some(index) = index {
            pod["metadata"]["annotations"] = json!({INDEX: index.to_string()});
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn job(spec: Value, status: Value) -> Job {
        let mut spec = spec;
        spec["template"] = json!({});
        serde_json::from_value(json!({"spec": spec, "status": status})).unwrap()
    }

    #[test]
    fn a_pod_is_counted_exactly_once_step_by_step() {
        let mut job = job(json!({"completions": 1}), json!({}));
        let first = account(&job, &[pod("a", "Succeeded", true, None)]);
        assert_eq!((first.succeeded, first.status.succeeded), (1, None));
        assert_eq!(first.release.len(), 1);
        assert!(!first.is_settled());

        job.status = Some(first.status);
        // Crashed before the finalizer went: the same again.
        let again = account(&job, &[pod("a", "Succeeded", true, None)]);
        assert_eq!((again.succeeded, again.status.succeeded), (1, None));

        job.status = Some(again.status);
        let settled = account(&job, &[pod("a", "Succeeded", false, None)]);
        assert_eq!((settled.succeeded, settled.status.succeeded), (1, Some(1)));
        assert!(settled.is_settled());

        job.status = Some(settled.status);
        let later = account(&job, &[]);
        assert_eq!(later.succeeded, 1);
    }

    #[test]
    fn failures_are_news_once_and_a_deleted_pod_is_a_failure() {
        let job = job(json!({}), json!({}));
        let mut deleted = Pod::clone(&pod("b", "Running", true, None));
        deleted.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
            ));
        let pods = [pod("a", "Failed", true, None), Arc::new(deleted)];
        let seen = account(&job, &pods);
        assert_eq!((seen.failed, seen.news, seen.active.len()), (2, 2, 0));
        let next = Job {
            status: Some(seen.status),
            ..job
        };
        assert_eq!(account(&next, &pods).news, 0);
    }

    #[test]
    fn the_last_failure_of_an_index_is_kept_until_its_successor_runs() {
        let job = job(
            json!({"completions": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 3}),
            json!({}),
        );
        let failed = |uid: &str, failures: i32| {
            let mut pod = Pod::clone(&pod(uid, "Failed", true, Some(0)));
            let annotations = pod.metadata.annotations.get_or_insert_default();
            annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
            Arc::new(pod)
        };
        let mut pods = vec![
            failed("a", 0),
            failed("b", 1),
            pod("c", "Running", true, Some(1)),
        ];
        let waiting = account(&job, &pods);
        assert_eq!(waiting.index_failures[&0], 2);
        let released: Vec<_> = waiting.release.iter().map(|pod| pod.name_any()).collect();
        assert_eq!(released, ["a"]);
        pods.push(pod("d", "Running", true, Some(0)));
        assert_eq!(account(&job, &pods).release.len(), 2);
    }

    #[test]
    fn indexes_are_done_once_and_failed_by_their_own_limit() {
        let job = job(
            json!({"completions": 4, "completionMode": "Indexed", "backoffLimitPerIndex": 0}),
            json!({"completedIndexes": "0"}),
        );
        let pods = [
            pod("a", "Succeeded", true, Some(0)),
            pod("b", "Succeeded", true, Some(1)),
            pod("c", "Failed", true, Some(2)),
            pod("d", "Succeeded", true, Some(9)),
        ];
        let seen = account(&job, &pods);
        assert_eq!(seen.status.completed_indexes.as_deref(), Some("0,1"));
        assert_eq!(seen.status.failed_indexes.as_deref(), Some("2"));
        assert_eq!(seen.succeeded, 2);
    }
}
