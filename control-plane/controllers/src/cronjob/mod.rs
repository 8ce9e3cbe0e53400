//! CronJob: makes a Job at each time of a schedule, and keeps a few finished ones.

mod schedule;

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{Resource, ResourceExt, api::PostParams};
use tracing::info;
use windlass_informers::{
    Informer, Key,
    recorder::{EventType, Recorder},
};

use self::schedule::Schedule;
use crate::{
    job::is_finished,
    runtime::{
        Context, Controller, Outcome, Queue, Result, ResultExt, controlled_by, controller_ref,
        delete, patch_status, run_workers,
    },
};

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

struct CronJobs {
    context: Context,
    cron_jobs: Arc<Informer<CronJob>>,
    jobs: Arc<Informer<Job>>,
    recorder: Recorder,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (cron_jobs, jobs) = context.synced::<(CronJob, Job)>().await;
    let _own = queue.follow(&cron_jobs);
    let _of_jobs = queue.follow_to(&jobs, |job| {
        let owner = controlled_by::<CronJob>(job)?;
        Some(Key::new(job.namespace().unwrap_or_default(), &owner.name))
    });
    let controller = Arc::new(CronJobs {
        recorder: context.recorder.named("cronjob-controller"),
        context: context.clone(),
        cron_jobs,
        jobs,
    });
    run_workers(controller, queue, 5, &context.cancel).await;
}

fn condition(job: &Job, kind: &str) -> Option<Timestamp> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let found = conditions
        .iter()
        .find(|c| c.type_ == kind && c.status == "True")?;
    found.last_transition_time.as_ref().map(|time| time.0)
}

/// What to do at a moment.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Nothing now; the next time is then.
    Wait(Option<Timestamp>),
    /// A run of this time.
    Run(Timestamp),
    /// A run of this time came too late for startingDeadlineSeconds.
    Missed(Timestamp),
}

fn due(cron: &CronJob, schedule: &Schedule, now: Timestamp) -> (Due, bool) {
    let created = cron
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(now, |time| time.0);
    let status = cron.status.as_ref();
    let last = status
        .and_then(|status| status.last_schedule_time.as_ref())
        .map(|time| time.0);
    let deadline = cron
        .spec
        .as_ref()
        .and_then(|spec| spec.starting_deadline_seconds);
    let mut from = last.unwrap_or(created);
    if let Some(seconds) = deadline {
        let earliest = now
            .saturating_sub(SignedDuration::from_secs(seconds))
            .unwrap_or(from);
        from = from.max(earliest);
    }
    let (latest, many) = schedule.latest(from, now);
    let Some(at) = latest else {
        return (Due::Wait(schedule.next(now)), many);
    };
    let late =
        deadline.is_some_and(|seconds| now.duration_since(at) > SignedDuration::from_secs(seconds));
    (if late { Due::Missed(at) } else { Due::Run(at) }, many)
}

/// One Job for one time: the name is the time, so that no time runs twice.
fn make(cron: &CronJob, at: Timestamp) -> Option<Job> {
    let template = cron.spec.as_ref()?.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.to_owned(), at.to_string());
    Some(Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", cron.name_any(), at.as_second() / 60)),
            namespace: cron.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            creation_timestamp: None,
            owner_references: Some(vec![controller_ref(cron)]),
            ..Default::default()
        },
        spec: template.spec,
        status: None,
    })
}

impl Controller for CronJobs {
    type Key = Key;
    const NAME: &'static str = "cronjob";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(cron) = self.cron_jobs.by_key(key) else {
            return Ok(Outcome::Done);
        };
        let Some(spec) = cron.spec.clone() else {
            return Ok(Outcome::Done);
        };
        let mut jobs = self.jobs.controlled_by(&cron.uid().unwrap_or_default());
        jobs.sort_by_key(|job| job.metadata.creation_timestamp.as_ref().map(|time| time.0));
        self.tell_of_missing(key, &cron, &jobs).await?;
        let mut status = self.status(&cron, &jobs);
        self.clean_up(key, &cron, &jobs).await?;
        let leaving = cron.metadata.deletion_timestamp.is_some();
        let outcome = if leaving || spec.suspend == Some(true) {
            Ok(Outcome::Done)
        } else {
            self.run_due(key, &cron, &jobs, &mut status).await
        };
        let updated = CronJob {
            status: Some(status),
            ..cron.as_ref().clone()
        };
        patch_status(&self.context.api(&key.namespace), cron.as_ref(), &updated).await?;
        outcome
    }
}

impl CronJobs {
    fn status(&self, cron: &Arc<CronJob>, jobs: &[Arc<Job>]) -> CronJobStatus {
        let previous = cron.status.clone().unwrap_or_default();
        let was_active = |job: &Job| {
            previous
                .active
                .iter()
                .flatten()
                .any(|active| active.uid == job.metadata.uid)
        };
        for job in jobs
            .iter()
            .filter(|job| is_finished(job) && was_active(job))
        {
            let how = if condition(job, "Complete").is_some() {
                "Complete"
            } else {
                "Failed"
            };
            let message = format!("Saw completed job: {}, condition: {how}", job.name_any());
            self.recorder
                .record(cron.as_ref(), EventType::Normal, "SawCompletedJob", message);
        }
        let active: Vec<ObjectReference> = jobs
            .iter()
            .filter(|job| !is_finished(job))
            .map(|job| reference(job))
            .collect();
        let succeeded = jobs.iter().filter_map(|job| {
            condition(job, "Complete")?;
            job.status
                .as_ref()?
                .completion_time
                .as_ref()
                .map(|time| time.0)
        });
        let before = previous.last_successful_time.as_ref().map(|time| time.0);
        CronJobStatus {
            active: (!active.is_empty()).then_some(active),
            last_successful_time: succeeded.max().max(before).map(Time),
            last_schedule_time: previous.last_schedule_time,
        }
    }

    /// A Job that was active and is gone ended by nobody's plan: an event says so. What the informer has not
    /// seen yet is not gone, hence the question.
    async fn tell_of_missing(
        &self,
        key: &Key,
        cron: &Arc<CronJob>,
        jobs: &[Arc<Job>],
    ) -> Result<()> {
        let status = cron.status.clone().unwrap_or_default();
        for active in status.active.into_iter().flatten() {
            let (Some(name), Some(uid)) = (&active.name, &active.uid) else {
                continue;
            };
            if jobs
                .iter()
                .any(|job| job.metadata.uid.as_ref() == Some(uid))
            {
                continue;
            }
            let found = self
                .context
                .api::<Job>(&key.namespace)
                .get_opt(name)
                .await
                .doing(|| format!("look for job {name} of cron job {key}"))?;
            if found.is_none_or(|found| found.metadata.uid.as_ref() != Some(uid)) {
                let message = format!("Active job went missing: {name}");
                self.recorder
                    .record(cron.as_ref(), EventType::Normal, "MissingJob", message);
            }
        }
        Ok(())
    }

    /// Deletes the oldest finished Jobs beyond the limits.
    async fn clean_up(&self, key: &Key, cron: &CronJob, jobs: &[Arc<Job>]) -> Result<()> {
        let spec = cron.spec.as_ref();
        let limits = [
            (
                "Complete",
                spec.and_then(|spec| spec.successful_jobs_history_limit)
                    .unwrap_or(3),
            ),
            (
                "Failed",
                spec.and_then(|spec| spec.failed_jobs_history_limit)
                    .unwrap_or(1),
            ),
        ];
        let api = self.context.api::<Job>(&key.namespace);
        for (kind, limit) in limits {
            let ended: Vec<_> = jobs
                .iter()
                .filter(|job| condition(job, kind).is_some())
                .collect();
            let surplus = ended
                .len()
                .saturating_sub(usize::try_from(limit).unwrap_or(0));
            for job in ended.into_iter().take(surplus) {
                delete(&api, job.as_ref()).await?;
                let message = format!("Deleted job {}", job.name_any());
                self.recorder
                    .record(cron, EventType::Normal, "SuccessfulDelete", message);
            }
        }
        Ok(())
    }

    async fn run_due(
        &self,
        key: &Key,
        cron: &Arc<CronJob>,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Result<Outcome> {
        let Some(spec) = cron.spec.as_ref() else {
            return Ok(Outcome::Done);
        };
        let Some(schedule) = self.schedule(cron, spec) else {
            return Ok(Outcome::Done);
        };
        let now = Timestamp::now();
        let until = |at: Option<Timestamp>| match at {
            Some(at) => {
                let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                // A moment later, so that the clock has surely passed it.
                Outcome::Again(left + Duration::from_millis(100))
            }
            None => Outcome::Done,
        };
        match self.due(cron, &schedule, now) {
            Due::Wait(next) => return Ok(until(next)),
            Due::Missed(_) => {}
            Due::Run(at) => {
                // Where another run is in the way its end brings us back: this one may still be within its deadline.
                if self.make_room(key, cron, spec, jobs, status).await? {
                    self.start_job(key, cron, at, status).await?;
                }
            }
        }
        Ok(until(schedule.next(now)))
    }

    fn warn(&self, cron: &CronJob, reason: &str, message: String) {
        self.recorder
            .record(cron, EventType::Warning, reason, message);
    }

    fn schedule(&self, cron: &CronJob, spec: &CronJobSpec) -> Option<Schedule> {
        let parsed = Schedule::parse(&spec.schedule, spec.time_zone.as_deref());
        parsed
            .inspect_err(|why| {
                let message = format!("unparseable schedule {:?}: {why}", spec.schedule);
                self.warn(cron, "UnparseableSchedule", message);
            })
            .ok()
    }

    /// What is due, with Events about what is wrong with it.
    fn due(&self, cron: &CronJob, schedule: &Schedule, now: Timestamp) -> Due {
        let (due, many) = due(cron, schedule, now);
        if many {
            let message = "too many missed start times. Set or decrease \
                .spec.startingDeadlineSeconds or check clock skew"
                .to_owned();
            self.warn(cron, "TooManyMissedTimes", message);
        }
        match due {
            Due::Wait(None) => {
                // Such as the 31st of February.
                let text = cron.spec.as_ref().map_or("", |spec| &spec.schedule);
                let message = format!(
                    "invalid schedule: {text} : time difference between two schedules is less than 1 second"
                );
                self.warn(cron, "InvalidSchedule", message);
            }
            Due::Missed(at) => {
                let message = format!("Missed scheduled time to start a job: {at}");
                self.warn(cron, "MissSchedule", message);
            }
            Due::Wait(Some(_)) | Due::Run(_) => {}
        }
        due
    }

    /// Whether a run may start beside those that have not ended; with `Replace` it may, since they are deleted.
    async fn make_room(
        &self,
        key: &Key,
        cron: &CronJob,
        spec: &CronJobSpec,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Result<bool> {
        let active: Vec<_> = jobs.iter().filter(|job| !is_finished(job)).collect();
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and \
                    concurrency policy is Forbid"
                    .to_owned();
                let reason = "JobAlreadyActive";
                self.recorder
                    .record(cron, EventType::Normal, reason, message);
                return Ok(false);
            }
            Some("Replace") => {
                let api = self.context.api::<Job>(&key.namespace);
                for job in active {
                    delete(&api, job.as_ref()).await?;
                }
                status.active = None;
            }
            _ => {}
        }
        Ok(true)
    }

    async fn start_job(
        &self,
        key: &Key,
        cron: &Arc<CronJob>,
        at: Timestamp,
        status: &mut CronJobStatus,
    ) -> Result<()> {
        let Some(job) = make(cron, at) else {
            return Ok(());
        };
        let name = job.name_any();
        let created = self
            .context
            .api::<Job>(&key.namespace)
            .create(&PostParams::default(), &job)
            .await
            .doing(|| format!("create job {name} of cron job {key}"));
        match created {
            Ok(created) => {
                info!(cronjob = %key, job = name, scheduled = %at, "started job");
                let message = format!("Created job {name}");
                let cron = cron.as_ref();
                self.recorder
                    .record(cron, EventType::Normal, "SuccessfulCreate", message);
                status
                    .active
                    .get_or_insert_default()
                    .push(reference(&created));
            }
            Err(error) if error.is_already_exists() => {}
            Err(error) if error.is_namespace_terminating() => return Ok(()),
            Err(error) => {
                let message = format!("Error creating job: {}", error.words());
                self.recorder
                    .record(cron.as_ref(), EventType::Warning, "FailedCreate", message);
                return Err(error);
            }
        }
        status.last_schedule_time = Some(Time(at));
        Ok(())
    }
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        resource_version: None,
        ..job.object_ref(&())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn cron(deadline: Option<i64>, last: Option<&str>) -> CronJob {
        serde_json::from_value(json!({
            "metadata": {"name": "c", "uid": "u", "creationTimestamp": "2026-03-01T10:00:30Z"},
            "spec": {"schedule": "*/5 * * * *", "startingDeadlineSeconds": deadline,
                "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}}},
            "status": {"lastScheduleTime": last},
        }))
        .unwrap()
    }

    #[test]
    fn a_run_is_due_once_and_only_within_its_deadline() {
        let schedule = Schedule::parse("*/5 * * * *", None).unwrap();
        let due = |cron: &CronJob, now: &str| due(cron, &schedule, at(now)).0;
        let five = "2026-03-01T10:05:00Z";
        let fresh = cron(None, None);
        assert_eq!(
            due(&fresh, "2026-03-01T10:04:00Z"),
            Due::Wait(Some(at(five)))
        );
        assert_eq!(due(&fresh, "2026-03-01T10:05:01Z"), Due::Run(at(five)));
        assert_eq!(due(&fresh, "2026-03-01T10:09:00Z"), Due::Run(at(five)));
        let ran = cron(None, Some(five));
        assert_eq!(
            due(&ran, "2026-03-01T10:09:00Z"),
            Due::Wait(Some(at("2026-03-01T10:10:00Z")))
        );
        let strict = cron(Some(60), None);
        assert_eq!(due(&strict, "2026-03-01T10:05:59Z"), Due::Run(at(five)));
        assert_eq!(
            due(&strict, "2026-03-01T10:07:00Z"),
            Due::Wait(Some(at("2026-03-01T10:10:00Z")))
        );
    }

    #[test]
    fn the_name_of_a_job_is_its_minute() {
        let job = make(&cron(None, None), at("2026-03-01T10:05:00Z")).unwrap();
        assert_eq!(job.name_any(), "c-29539325");
        assert_eq!(job.labels()["a"], "b");
        assert_eq!(job.annotations()[SCHEDULED_AT], "2026-03-01T10:05:00Z");
    }
}
