//! When a Job has failed or succeeded before all its pods are through.

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;
use crate::validate::one_of;

const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];

pub fn failure(spec: &Value, path: &Path, errors: &mut Errors) {
    let rules = spec.list("podFailurePolicy.rules");
    let path = path.child("rules");
    if rules.len() > MAX_RULES {
        errors.too_many(&path, rules.len(), MAX_RULES);
    }
    for (i, rule) in rules.iter().enumerate() {
        failure_rule(rule, spec, &path.index(i), errors);
    }
}

fn failure_rule(rule: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    one_of(rule, "action", ACTIONS, path, errors);
    if rule.text("action") == "FailIndex" && !spec.has("backoffLimitPerIndex") {
        errors.invalid(
            &path.child("action"),
            "FailIndex",
            "requires the backoffLimitPerIndex to be set",
        );
    }
    let (codes, conditions) = (rule.at("onExitCodes"), rule.list("onPodConditions"));
    match (codes.is_null(), conditions.is_empty()) {
        (true, true) => errors.invalid(
            path,
            rule.clone(),
            "specifying one of OnExitCodes and OnPodConditions is required",
        ),
        (false, false) => errors.invalid(
            path,
            rule.clone(),
            "specifying both OnExitCodes and OnPodConditions is not supported",
        ),
        (false, true) => exit_codes(codes, spec, &path.child("onExitCodes"), errors),
        (true, false) => {
            for (i, condition) in conditions.iter().enumerate() {
                let path = path.child("onPodConditions").index(i);
                one_of(
                    condition,
                    "status",
                    &["False", "True", "Unknown"],
                    &path,
                    errors,
                );
                let kind = condition.text("type");
                crate::validate::sentences(
                    windlass_machinery::names::is_qualified_name(kind),
                    &path.child("type"),
                    kind,
                    errors,
                );
            }
        }
    }
}

fn exit_codes(codes: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let operator = codes.text("operator");
    one_of(codes, "operator", &["In", "NotIn"], path, errors);
    let container = codes.text("containerName");
    let known = ["containers", "initContainers"].iter().any(|list| {
        spec.at("template.spec")
            .list(list)
            .iter()
            .any(|c| c.text("name") == container)
    });
    if !container.is_empty() && !known {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.invalid(&path.child("containerName"), container, detail);
    }
    let values = codes.list("values");
    let path = path.child("values");
    if values.is_empty() {
        errors.invalid(
            &path,
            codes.at("values").clone(),
            "at least one value is required",
        );
    } else if values.len() > MAX_EXIT_CODES {
        errors.too_many(&path, values.len(), MAX_EXIT_CODES);
    }
    for (i, value) in values.iter().enumerate() {
        if operator == "In" && value.as_i64() == Some(0) {
            let detail = "must not be 0 for the In operator";
            errors.invalid(&path.index(i), 0, detail);
        }
        if values[..i].contains(value) {
            errors.duplicate(&path.index(i), value.clone());
        }
    }
    if values
        .windows(2)
        .any(|pair| pair[0].as_i64() > pair[1].as_i64())
    {
        errors.invalid(&path, codes.at("values").clone(), "must be ordered");
    }
}

pub fn success(spec: &Value, path: &Path, errors: &mut Errors) {
    if spec.text("completionMode") != "Indexed" {
        errors.invalid(
            path,
            spec.at("successPolicy").clone(),
            "requires indexed completion mode",
        );
        return;
    }
    let rules = spec.list("successPolicy.rules");
    let path = path.child("rules");
    if rules.is_empty() {
        errors.required(
            &path,
            "at least one rules must be specified when the successPolicy is specified",
        );
    } else if rules.len() > MAX_RULES {
        errors.too_many(&path, rules.len(), MAX_RULES);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        if !rule.has("succeededIndexes") && !rule.has("succeededCount") {
            errors.required(
                &path,
                "at least one of succeededCount or succeededIndexes must be specified",
            );
        }
        crate::validate::numbers::positive(rule, "succeededCount", &path, errors);
    }
}
