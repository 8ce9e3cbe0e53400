//! CronJobs.

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};

use super::{job, schedule};
use crate::core::template;
use crate::resource::Strategy;
use crate::table::{age, boolean, cells, containers, or, selector, since};
use crate::tree::{self, Tree};
use crate::validate::numbers::non_negative;
use crate::validate::{one_of, required};

pub struct CronJob;

/// A Job's name is the CronJob's with 11 characters of time appended, and must be a label.
const MAX_NAME: usize = 52;

impl Strategy for CronJob {
    fn default(&self, object: &mut Value) {
        template::default(object, "spec.jobTemplate.spec.template");
        tree::fill(object, "spec.concurrencyPolicy", "Allow");
        tree::fill(object, "spec.suspend", false);
        tree::fill(object, "spec.successfulJobsHistoryLimit", 3);
        tree::fill(object, "spec.failedJobsHistoryLimit", 1);
        tree::object_at(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({}));
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let old = old.map(|old| old.at("spec"));
        if let Some(text) = required(spec, "schedule", &path, errors) {
            let had_zone = old.is_some_and(|old| old.text("schedule").contains("TZ"));
            let path = path.child("schedule");
            check_schedule(text, had_zone, spec.has("timeZone"), &path, errors);
        }
        non_negative(spec, "startingDeadlineSeconds", &path, errors);
        // A zone that has gone from the database since may stay.
        if let Some(zone) = spec.at("timeZone").as_str()
            && old.is_none_or(|old| old.at("timeZone") != zone)
        {
            check_time_zone(zone, &path.child("timeZone"), errors);
        }
        let policies = &["Allow", "Forbid", "Replace"];
        one_of(spec, "concurrencyPolicy", policies, &path, errors);
        let job_path = path.child("jobTemplate").child("spec");
        let job = spec.at("jobTemplate.spec");
        let old_job = old.map(|old| old.at("jobTemplate.spec"));
        job::validate_spec(job, old_job, &job_path, errors);
        if job.has("selector") {
            let detail = "`selector` will be auto-generated";
            errors.invalid(
                &job_path.child("selector"),
                job.at("selector").clone(),
                detail,
            );
        }
        if job.flag("manualSelector") {
            errors.not_supported(&job_path.child("manualSelector"), true, &["nil", "false"]);
        }
        non_negative(spec, "successfulJobsHistoryLimit", &path, errors);
        non_negative(spec, "failedJobsHistoryLimit", &path, errors);
    }

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let name = object.text("metadata.name");
        if name.len() > MAX_NAME {
            let detail = format!("must be no more than {MAX_NAME} characters");
            errors.invalid(&Path::new("metadata").child("name"), name, detail);
        }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template::warn_named(new, old, "spec.jobTemplate.spec.template")
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let job = object.at("spec.jobTemplate.spec");
        let (names, images) = containers(job.at("template.spec"));
        let last = match object.text("status.lastScheduleTime") {
            "" => "<none>".to_owned(),
            at => since(at, now),
        };
        cells![
            object.text("spec.schedule"),
            or(object.text("spec.timeZone"), "<none>"),
            boolean(object.at("spec.suspend")),
            object.list("status.active").len(),
            last,
            age(object, now),
            names,
            images,
            selector(job.at("selector")),
        ]
    }
}

/// A schedule may only go on to name a zone if it did when there was no field for it.
fn check_schedule(text: &str, had_zone: bool, has_field: bool, path: &Path, errors: &mut Errors) {
    let names_zone = text.contains("TZ");
    if names_zone && !had_zone {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.invalid(path, text, detail);
    } else if names_zone && has_field {
        let detail = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
        errors.invalid(path, text, detail);
    } else if let Some(problem) = schedule::problem(text).filter(|_| !names_zone) {
        errors.invalid(path, text, problem);
    }
}

fn check_time_zone(zone: &str, path: &Path, errors: &mut Errors) {
    let legal = |c: char| c.is_ascii_alphanumeric() || ".-_+".contains(c);
    let is_part = |part: &str| {
        !matches!(part, "." | "..")
            && !part.starts_with('-')
            && (1..=14).contains(&part.len())
            && part.chars().all(legal)
    };
    let unknown = format!("unknown time zone {zone}");
    if zone.is_empty() {
        errors.invalid(path, zone, "timeZone must be nil or non-empty string");
    } else if !zone.split('/').all(is_part) {
        errors.invalid(path, zone, unknown);
    } else if zone.eq_ignore_ascii_case("local") {
        let detail =
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid(path, zone, detail);
    } else if jiff::tz::TimeZone::get(zone).is_err() {
        errors.invalid(path, zone, unknown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn schedules_and_zones_are_checked() {
        let cron = |schedule: &str, zone: Value| {
            let mut object = json!({"metadata": {"name": "c"}, "spec": {
                "schedule": schedule,
                "timeZone": zone,
                "jobTemplate": {"spec": {"template": {"spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "c", "image": "i"}],
                }}}},
            }});
            CronJob.default(&mut object);
            lines(|e| CronJob.validate(&object, None, e))
        };
        assert!(cron("*/5 * * * *", json!("Europe/Berlin")).is_empty());
        assert_eq!(
            cron("x", json!("Nowhere/Atlantis")),
            [
                "spec.schedule: Invalid value: \"x\": expected exactly 5 fields, found 1: [x]",
                "spec.timeZone: Invalid value: \"Nowhere/Atlantis\": unknown time zone Nowhere/Atlantis",
            ]
        );
        assert_eq!(cron("TZ=UTC * * * * *", Value::Null).len(), 1);
    }
}
