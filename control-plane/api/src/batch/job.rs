//! Jobs.

use serde_json::{Value, json};
use windlass_machinery::validation::{Errors, Path};
use windlass_machinery::{names, time};

use super::{job_policy, job_status};
use crate::core::template;
use crate::resource::Strategy;
use crate::table::{age, cells, containers, has_condition, selector};
use crate::tree::{self, Tree};
use crate::validate::labels::{selector as check_selector, selects};
use crate::validate::numbers::non_negative;
use crate::validate::{immutable, optional_one_of, same, sentences};

pub struct Job;

const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];
const MAX_MANAGER: usize = 63;
const MAX_INDEXED_PARALLELISM: i64 = 100_000;

/// Defaults of a Job's spec, which those of a CronJob's template do not get.
fn default_spec(object: &mut Value) {
    let spec = tree::at_mut(object, "spec").expect("the template's defaults made the spec");
    if !spec.has("completions") && !spec.has("parallelism") {
        tree::fill(spec, "completions", 1);
    }
    tree::fill(spec, "parallelism", 1);
    let limit = if spec.has("backoffLimitPerIndex") {
        i64::from(i32::MAX)
    } else {
        6
    };
    tree::fill(spec, "backoffLimit", limit);
    tree::fill(spec, "completionMode", "NonIndexed");
    tree::fill(spec, "suspend", false);
    let replacement = if spec.has("podFailurePolicy") {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    tree::fill(spec, "podReplacementPolicy", replacement);
    for rule in tree::each(spec, "podFailurePolicy.rules") {
        for pattern in tree::each(rule, "onPodConditions") {
            tree::fill_text(pattern, "status", "True");
        }
    }
}

/// A Job without labels carries its pods'.
fn labels_from_template(object: &mut Value) {
    if object
        .map("metadata.labels")
        .is_none_or(serde_json::Map::is_empty)
        && let Some(labels) = object.map("spec.template.metadata.labels").cloned()
    {
        tree::set(object, "metadata.labels", labels);
    }
}

impl Strategy for Job {
    fn default(&self, object: &mut Value) {
        template::default(object, "spec.template");
        default_spec(object);
        // A selector that is still to be made puts its labels on the template first.
        if object.has("spec.selector") {
            labels_from_template(object);
        }
        tree::object_at(object, "status");
    }

    /// A Job finds its pods by its own uid, so that two Jobs never fight over one.
    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({}));
        if object.flag("spec.manualSelector") {
            return;
        }
        let uid = object.text("metadata.uid").to_owned();
        let name = object.text("metadata.name").to_owned();
        let labels = tree::object_at(object, "spec.template.metadata.labels");
        for (keys, value) in [(UID_LABELS, &uid), (NAME_LABELS, &name)] {
            for key in keys {
                labels.entry(key).or_insert_with(|| value.as_str().into());
            }
        }
        let selector = tree::object_at(object, "spec.selector.matchLabels");
        selector.entry(UID_LABELS[0]).or_insert_with(|| uid.into());
        labels_from_template(object);
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let template = spec.at("template");
        generated_labels(object, old, errors);
        validate_spec(spec, old.map(|old| old.at("spec")), &path, errors);
        if spec.has("selector") {
            check_selector(spec.at("selector"), &path.child("selector"), errors);
        } else {
            errors.required(&path.child("selector"), "");
        }
        let template_path = path.child("template");
        template::matches_selector(spec.at("selector"), template, &template_path, errors);
        let completions = spec.int("completions").unwrap_or_default();
        if spec.text("completionMode") == "Indexed" && completions > 0 {
            // The host name of an indexed pod is the Job's name with its index.
            let name = object.text("metadata.name");
            let host = format!("{name}-{}", completions - 1);
            if !names::is_dns1123_label(&host).is_empty() {
                let path = Path::new("metadata").child("name");
                let detail = format!("will not able to create pod with invalid DNS label: {host}");
                errors.invalid(&path, name, detail);
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let (spec, path) = (new.at("spec"), Path::new("spec").child("completions"));
        if spec.text("completionMode") != "Indexed" {
            immutable(new, old, "spec.completions", errors);
        } else if let Some(completions) = spec.int("completions")
            && Some(completions) != old.int("spec.completions")
            && Some(completions) != spec.int("parallelism")
        {
            // An indexed Job may be resized, completions together with parallelism.
            let detail = "can only be modified in tandem with spec.parallelism";
            errors.invalid(&path, completions, detail);
        }
        immutable(new, old, "spec.selector", errors);
        template_unchanged(new, old, errors);
        for field in [
            "spec.completionMode",
            "spec.podFailurePolicy",
            "spec.backoffLimitPerIndex",
            "spec.managedBy",
            "spec.successPolicy",
        ] {
            immutable(new, old, field, errors);
        }
    }

    fn validate_status_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        job_status::validate(new, old, errors);
    }

    fn selectable(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn unselectable(&self, field: &str) -> String {
        format!("field label {field:?} not supported for batchv1.Job")
    }

    fn field(&self, object: &Value, _name: &str) -> String {
        object
            .int("status.succeeded")
            .unwrap_or_default()
            .to_string()
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template::warn_named(new, old, "spec.template")
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let (names, images) = containers(object.at("spec.template.spec"));
        cells![
            state(object),
            completions(object),
            duration(object, now),
            age(object, now),
            names,
            images,
            selector(object.at("spec.selector")),
        ]
    }
}

/// A Job whose selector the server made has pods that carry its own uid and name, and no other's.
fn generated_labels(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = object.at("spec");
    if spec.flag("manualSelector") || !spec.has("selector") {
        return;
    }
    let (uid, name) = (object.text("metadata.uid"), object.text("metadata.name"));
    if uid.is_empty() {
        errors.required(&Path::new("metadata").child("uid"), "");
    }
    let metadata = Path::new("spec").child("template").child("metadata");
    let mut expected = serde_json::Map::new();
    // Jobs from before v1.27 have the labels without a domain only.
    let is_old = old.is_some_and(|old| {
        let labels = old.at("spec.template.metadata.labels");
        labels.get(UID_LABELS[0]).is_none()
    });
    let [uid_label, old_uid_label] = UID_LABELS;
    let [name_label, old_name_label] = NAME_LABELS;
    let all = [
        (old_uid_label, uid),
        (old_name_label, name),
        (uid_label, uid),
        (name_label, name),
    ];
    for (key, value) in if is_old { &all[..2] } else { &all[..] } {
        let (key, value) = (*key, *value);
        expected.insert(key.to_owned(), value.into());
        let path = metadata.child("labels").key(key);
        let labels = spec.at("template.metadata.labels");
        match labels.get(key) {
            None => errors.required(&path, format!("must be '{value}'")),
            Some(other) if other != value => {
                errors.invalid(&path, labels.clone(), format!("must be '{value}'"));
            }
            Some(_) => {}
        }
    }
    let selector = spec.at("selector");
    if !selects(selector, &Value::Object(expected)) {
        let path = Path::new("spec").child("selector");
        errors.invalid(&path, selector.clone(), "`selector` not auto-generated");
    }
}

/// What Jobs and the templates of CronJobs have in common.
pub fn validate_spec(spec: &Value, old: Option<&Value>, path: &Path, errors: &mut Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        non_negative(spec, field, path, errors);
    }
    if spec.has("maxFailedIndexes") && !spec.has("backoffLimitPerIndex") {
        let detail = "when maxFailedIndexes is specified";
        errors.required(&path.child("backoffLimitPerIndex"), detail);
    }
    if let Some(manager) = spec.at("managedBy").as_str() {
        let path = path.child("managedBy");
        let problems = names::is_domain_prefixed_path(manager);
        sentences(problems, &path, manager, errors);
        if manager.len() > MAX_MANAGER {
            errors.too_long(&path, MAX_MANAGER);
        }
    }
    let modes = &["NonIndexed", "Indexed"];
    optional_one_of(spec, "completionMode", modes, path, errors);
    match spec.text("completionMode") {
        "Indexed" => indexed(spec, path, errors),
        "" | "NonIndexed" => {
            for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                if let Some(number) = spec.int(field) {
                    let detail = "requires indexed completion mode";
                    errors.invalid(&path.child(field), number, detail);
                }
            }
        }
        _ => {}
    }
    if spec.has("podFailurePolicy") {
        job_policy::failure(spec, &path.child("podFailurePolicy"), errors);
    }
    if spec.has("successPolicy") {
        job_policy::success(spec, &path.child("successPolicy"), errors);
    }
    let replacements: &[&str] = match spec.has("podFailurePolicy") {
        true => &["Failed"],
        false => &["Failed", "TerminatingOrFailed"],
    };
    optional_one_of(spec, "podReplacementPolicy", replacements, path, errors);
    let template = spec.at("template");
    let template_path = path.child("template");
    let old_template = old.map(|old| old.at("template"));
    template::validate(template, old_template, &template_path, errors);
    let restart = template.text("spec.restartPolicy");
    let restart_path = template_path.child("spec").child("restartPolicy");
    match restart {
        "OnFailure" | "Never" => {
            if spec.has("podFailurePolicy") && restart != "Never" {
                let detail = "only \"Never\" is supported when podFailurePolicy is specified";
                errors.invalid(&restart_path, restart, detail);
            }
        }
        "Always" => errors.required(&restart_path, "valid values: \"OnFailure\", \"Never\""),
        other => errors.not_supported(&restart_path, other, &["OnFailure", "Never"]),
    }
}

/// Each index is remembered in the Job's status, so that there is a bound to them.
fn indexed(spec: &Value, path: &Path, errors: &mut Errors) {
    const MANY: i64 = 100_000;
    const PARALLELISM_OF_MANY: i64 = 10_000;
    const FAILED_OF_MANY: i64 = 10_000;
    let number = |field: &str| spec.int(field);
    let at_most = |field: &str, most: i64, rest: &str, errors: &mut Errors| {
        if let Some(number) = number(field).filter(|number| *number > most) {
            let detail = format!("must be less than or equal to {most}{rest}");
            errors.invalid(&path.child(field), number, detail);
        }
    };
    let completions = number("completions");
    if completions.is_none() {
        let detail = "when completion mode is Indexed";
        errors.required(&path.child("completions"), detail);
    }
    let when = " when completion mode is Indexed";
    at_most("parallelism", MAX_INDEXED_PARALLELISM, when, errors);
    let failed = number("maxFailedIndexes");
    if let Some(failed) = failed.filter(|failed| completions.is_some_and(|all| *failed > all)) {
        let detail = "must be less than or equal to completions";
        errors.invalid(&path.child("maxFailedIndexes"), failed, detail);
    }
    at_most("maxFailedIndexes", MANY, "", errors);
    if completions > Some(MANY) && spec.has("backoffLimitPerIndex") {
        if !spec.has("maxFailedIndexes") {
            let detail = format!("must be specified when completions is above {MANY}");
            errors.required(&path.child("maxFailedIndexes"), detail);
        }
        let when =
            format!(" when completions are above {MANY} and used with backoff limit per index");
        at_most("parallelism", PARALLELISM_OF_MANY, &when, errors);
        at_most("maxFailedIndexes", FAILED_OF_MANY, &when, errors);
    }
}

/// The template is fixed, but for where its pods go while the Job is suspended and has never started.
fn template_unchanged(new: &Value, old: &Value, errors: &mut Errors) {
    let (mut template, old_template) = (new.at("spec.template").clone(), old.at("spec.template"));
    if old.flag("spec.suspend") && !old.has("status.startTime") {
        for field in [
            "metadata.annotations",
            "metadata.labels",
            "spec.nodeSelector",
            "spec.tolerations",
            "spec.schedulingGates",
            "spec.affinity.nodeAffinity",
        ] {
            tree::keep(&mut template, old_template, field);
        }
    }
    if !same(&template, old_template) {
        let path = Path::new("spec").child("template");
        errors.invalid(&path, new.at("spec.template").clone(), "field is immutable");
    }
}

fn state(object: &Value) -> &'static str {
    if has_condition(object, "Complete") {
        "Complete"
    } else if has_condition(object, "Failed") {
        "Failed"
    } else if object.has("metadata.deletionTimestamp") {
        "Terminating"
    } else if has_condition(object, "Suspended") {
        "Suspended"
    } else if has_condition(object, "FailureTarget") {
        "FailureTarget"
    } else {
        "Running"
    }
}

fn completions(object: &Value) -> String {
    let succeeded = object.int("status.succeeded").unwrap_or_default();
    match object.int("spec.completions") {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None => match object.int("spec.parallelism").unwrap_or_default() {
            parallel @ 2.. => format!("{succeeded}/1 of {parallel}"),
            _ => format!("{succeeded}/1"),
        },
    }
}

fn duration(object: &Value, now: i64) -> String {
    let at = |field: &str| time::parse_seconds(object.text(field));
    at("status.startTime").map_or_else(String::new, |start| {
        time::duration_words(at("status.completionTime").unwrap_or(now) - start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    fn job(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "j", "uid": "u-1"}, "spec": spec});
        Job.default(&mut object);
        Job.prepare_for_create(&mut object);
        object
    }

    fn template(policy: &str) -> Value {
        json!({"spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}})
    }

    #[test]
    fn a_new_job_selects_its_pods_by_uid() {
        let object = job(json!({"template": template("Never")}));
        assert_eq!(
            object["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}})
        );
        assert_eq!(
            object["spec"]["template"]["metadata"]["labels"]["job-name"],
            "j"
        );
        assert_eq!(object["spec"]["completions"], 1);
        assert_eq!(object["spec"]["backoffLimit"], 6);
        assert!(lines(|e| Job.validate(&object, None, e)).is_empty());
    }

    #[test]
    fn faults_carry_their_field_and_kubernetes_words() {
        for (spec, expected) in [
            (
                json!({"template": template("Always")}),
                vec![
                    "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \
                     \"Never\"",
                ],
            ),
            (
                json!({"template": template("Never"), "completionMode": "Indexed", "parallelism": 2}),
                vec!["spec.completions: Required value: when completion mode is Indexed"],
            ),
            (
                json!({"template": template("Never"), "parallelism": -1, "backoffLimit": -2}),
                vec![
                    "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
                    "spec.backoffLimit: Invalid value: -2: must be greater than or equal to 0",
                ],
            ),
        ] {
            let object = job(spec);
            assert_eq!(
                lines(|e| Job.validate(&object, None, e)),
                expected,
                "{object:#}"
            );
        }
    }

    #[test]
    fn the_template_is_fixed_unless_suspended() {
        let mut old = job(json!({"template": template("Never")}));
        let mut new = old.clone();
        new["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
        assert_eq!(lines(|e| Job.validate_update(&new, &old, e)).len(), 1);
        old["spec"]["suspend"] = true.into();
        assert!(lines(|e| Job.validate_update(&new, &old, e)).is_empty());
    }

    #[test]
    fn rows_tell_progress() {
        let object = json!({
            "spec": {"completions": 3},
            "status": {
                "succeeded": 1,
                "startTime": "2026-01-01T00:00:00Z",
                "completionTime": "2026-01-01T00:01:30Z",
            },
        });
        assert_eq!(
            Job.row(&object, 0)[..3],
            [json!("Running"), json!("1/3"), json!("90s")]
        );
    }

    #[test]
    fn a_finished_job_does_not_come_back() {
        let done = json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}});
        let found = lines(|e| Job.validate_status_update(&json!({"status": {}}), &done, e));
        assert!(
            found[0].ends_with("cannot disable the terminal Complete=True condition"),
            "{found:?}"
        );
        assert!(lines(|e| Job.validate_status_update(&done, &done, e)).is_empty());
    }
}
