//! What the status of a Job may say, and how it may change: only forwards, and nothing that contradicts itself.

use serde_json::Value;
use windlass_machinery::time;
use windlass_machinery::validation::{Errors, Path};

use super::job_policy::indexes;
use crate::table::has_condition;
use crate::tree::Tree;
use crate::validate::numbers::non_negative;
use crate::validate::same;

/// Rules that a change of the status need not keep where it leaves what they are about alone.
struct Changed {
    finished: bool,
    conditions: bool,
    active: bool,
    terminating: bool,
    uncounted: bool,
    indexes: bool,
    ready: bool,
    start: bool,
    completion: bool,
}

impl Changed {
    fn between(new: &Value, old: &Value) -> Self {
        let changed = |fields: &[&str]| {
            let mut fields = fields.iter();
            fields.any(|field| !same(new.at("status").at(field), old.at("status").at(field)))
        };
        Self {
            finished: is_finished(new) != is_finished(old),
            conditions: changed(&["conditions"]),
            active: changed(&["active"]),
            terminating: changed(&["terminating"]),
            uncounted: changed(&["uncountedTerminatedPods"]),
            indexes: changed(&["completedIndexes", "failedIndexes"]),
            ready: changed(&["ready", "active"]),
            start: changed(&["startTime"]),
            completion: changed(&["completionTime"]),
        }
    }
}

fn is_finished(job: &Value) -> bool {
    has_condition(job, "Complete") || has_condition(job, "Failed")
}

pub fn validate(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let changed = Changed::between(new, old);
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        non_negative(new.at("status"), field, &path, errors);
    }
    uncounted(new, &path.child("uncountedTerminatedPods"), errors);
    state(new, &changed, &path, errors);
    checked_indexes(new, &changed, &path, errors);
    let number = |job: &Value, field: &str| job.at("status").int(field).unwrap_or_default();
    if number(new, "terminating") > 0
        && is_finished(new)
        && (changed.finished || changed.terminating)
    {
        let value = number(new, "terminating");
        let detail = "terminating>0 is invalid for finished job";
        errors.invalid(&path.child("terminating"), value, detail);
    }
    if changed.ready && number(new, "ready") > number(new, "active") {
        let value = number(new, "ready");
        let detail = "cannot set more ready pods than active";
        errors.invalid(&path.child("ready"), value, detail);
    }
    success(new, &path.child("conditions"), errors);
    steps(new, old, &path, errors);
}

/// Pods that have ended and are still to be counted, each once.
fn uncounted(new: &Value, path: &Path, errors: &mut Errors) {
    let mut seen: Vec<&Value> = Vec::new();
    for list in ["succeeded", "failed"] {
        let uids = new.at("status.uncountedTerminatedPods").list(list);
        for (i, uid) in uids.iter().enumerate() {
            let path = path.child(list).index(i);
            if uid == "" {
                errors.invalid(&path, "", "must not be empty");
            } else if seen.contains(&uid) {
                errors.duplicate(&path, uid.clone());
            } else {
                seen.push(uid);
            }
        }
    }
}

/// Conditions and times that belong together.
fn state(new: &Value, changed: &Changed, path: &Path, errors: &mut Errors) {
    let is = |kind: &str| has_condition(new, kind);
    let (complete, failed) = (is("Complete"), is("Failed"));
    let conditions = path.child("conditions");
    if changed.conditions {
        if complete && failed {
            let detail = "cannot set Complete=True and Failed=true conditions";
            errors.invalid_whole(&conditions, detail);
        }
        if complete && is("FailureTarget") {
            let detail = "cannot set Complete=True and FailureTarget=true conditions";
            errors.invalid_whole(&conditions, detail);
        }
    }
    let times = [
        new.text("status.startTime"),
        new.text("status.completionTime"),
    ];
    let [start, completion] = times;
    let completion_path = path.child("completionTime");
    let may_complain = changed.conditions || changed.completion;
    if may_complain && !completion.is_empty() && !complete {
        let detail = "cannot set completionTime when there is no Complete=True condition";
        errors.invalid(&completion_path, completion, detail);
    }
    if may_complain && completion.is_empty() && complete {
        let detail = "completionTime is required for Complete jobs";
        errors.required(&completion_path, detail);
    }
    let is_before = match times.map(time::parse_seconds) {
        [Some(start), Some(completion)] => completion < start,
        _ => false,
    };
    if (changed.start || changed.completion) && is_before {
        let detail = "completionTime cannot be set before startTime";
        errors.invalid(&completion_path, completion, detail);
    }
    if changed.conditions && failed && !is("FailureTarget") {
        let detail = "cannot set Failed=True condition without the FailureTarget=true condition";
        errors.invalid_whole(&conditions, detail);
    }
    if changed.conditions && complete && !is("SuccessCriteriaMet") {
        let detail =
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition";
        errors.invalid_whole(&conditions, detail);
    }
    if !(complete || failed) {
        return;
    }
    let active = new.int("status.active").unwrap_or_default();
    if active > 0 && (changed.finished || changed.active) {
        let detail = "active>0 is invalid for finished job";
        errors.invalid(&path.child("active"), active, detail);
    }
    let is_suspended = new.flag("spec.suspend");
    if start.is_empty() && (changed.finished || changed.start) && !is_suspended {
        let detail = "startTime is required for finished job";
        errors.required(&path.child("startTime"), detail);
    }
    let uncounted = new.at("status.uncountedTerminatedPods");
    let any = ["succeeded", "failed"]
        .iter()
        .any(|list| !uncounted.list(list).is_empty());
    if any && (changed.finished || changed.uncounted) {
        let detail = "uncountedTerminatedPods needs to be empty for finished job";
        let path = path.child("uncountedTerminatedPods");
        errors.invalid(&path, uncounted.clone(), detail);
    }
}

fn checked_indexes(new: &Value, changed: &Changed, path: &Path, errors: &mut Errors) {
    if !changed.indexes {
        return;
    }
    let by_index = new.has("spec.backoffLimitPerIndex");
    let (done, lost) = (
        new.text("status.completedIndexes"),
        new.at("status.failedIndexes").as_str(),
    );
    let (done_path, lost_path) = (path.child("completedIndexes"), path.child("failedIndexes"));
    let completions = new.int("spec.completions");
    let parse = |text: &str| completions.map(|completions| indexes(text, completions));
    let done_indexes = parse(done);
    let lost_indexes = lost.filter(|_| by_index).and_then(parse);
    if let Some(Err(problem)) = &done_indexes {
        let detail = format!("error parsing completedIndexes: {problem}");
        errors.invalid(&done_path, done, detail);
    }
    if let (Some(lost), Some(Err(problem))) = (lost, &lost_indexes) {
        let detail = format!("error parsing failedIndexes: {problem}");
        errors.invalid(&lost_path, lost, detail);
    }
    if !done.is_empty() && new.text("spec.completionMode") != "Indexed" {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(&done_path, done, detail);
    }
    let Some(lost) = lost else { return };
    if !by_index {
        let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.invalid(&lost_path, lost, detail);
    }
    if let (Some(Ok(done)), Some(Ok(failed))) = (done_indexes, lost_indexes) {
        let overlap = done
            .iter()
            .flat_map(|a| failed.iter().map(move |b| (a.0.max(b.0), a.1.min(b.1))))
            .find(|(first, last)| first <= last);
        if let Some((index, _)) = overlap {
            let detail = format!("failedIndexes and completedIndexes overlap at index: {index}");
            errors.invalid(&lost_path, lost, detail);
        }
    }
}

/// That enough has succeeded excludes that the Job fails.
fn success(new: &Value, path: &Path, errors: &mut Errors) {
    let is = |kind: &str| has_condition(new, kind);
    let met = is("SuccessCriteriaMet");
    for kind in ["Failed", "FailureTarget"] {
        if met && is(kind) {
            let detail = format!("cannot set SuccessCriteriaMet=True and {kind}=true conditions");
            errors.invalid_whole(path, detail);
        }
    }
    if new.has("spec.successPolicy") && !met && is("Complete") {
        let detail =
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        errors.invalid_whole(path, detail);
    }
}

/// Steps that a Job does not take back.
fn steps(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let conditions = path.child("conditions");
    let lost = |kind: &str| has_condition(old, kind) && !has_condition(new, kind);
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if lost(kind) {
            let detail = format!("cannot disable the terminal {kind}=True condition");
            errors.invalid_whole(&conditions, detail);
        }
    }
    // An indexed Job that may be made smaller loses what it has counted of the indexes that go.
    let is_elastic = new.text("spec.completionMode") == "Indexed"
        && new.int("spec.completions") == new.int("spec.parallelism");
    let counters: &[&str] = match is_elastic {
        true => &["failed"],
        false => &["failed", "succeeded"],
    };
    for field in counters {
        let number = |job: &Value| job.at("status").int(field).unwrap_or_default();
        if number(new) < number(old) {
            let detail = format!("cannot decrease the {field} counter");
            errors.invalid(&path.child(field), number(new), detail);
        }
    }
    let at = |job: &Value, field: &str| job.at("status").text(field).to_owned();
    let (now, before) = (at(new, "completionTime"), at(old, "completionTime"));
    if !now.is_empty() && !before.is_empty() && now != before {
        let detail = "completionTime cannot be mutated";
        errors.invalid(&path.child("completionTime"), now, detail);
    }
    let (now, before) = (at(new, "startTime"), at(old, "startTime"));
    if !before.is_empty() && now != before && !new.flag("spec.suspend") {
        let detail = "startTime cannot be removed for unsuspended job";
        errors.required(&path.child("startTime"), detail);
    }
    if lost("SuccessCriteriaMet") {
        let detail = "cannot disable the SuccessCriteriaMet=True condition";
        errors.invalid_whole(&conditions, detail);
    }
    let met = |job: &Value| has_condition(job, "SuccessCriteriaMet");
    if has_condition(old, "Complete") && !met(old) && met(new) {
        let detail =
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        errors.invalid_whole(&conditions, detail);
    }
}
