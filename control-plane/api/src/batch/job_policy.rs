//! When a Job has failed or succeeded before all its pods are through.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;
use crate::validate::numbers::non_negative;
use crate::validate::sentences;

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
    listed(rule, "action", ACTIONS, path, errors);
    if rule.text("action") == "FailIndex" && !spec.has("backoffLimitPerIndex") {
        errors.invalid(
            &path.child("action"),
            "FailIndex",
            "requires the backoffLimitPerIndex to be set",
        );
    }
    let (codes, conditions) = (rule.at("onExitCodes"), rule.list("onPodConditions"));
    if !codes.is_null() {
        exit_codes(codes, spec, &path.child("onExitCodes"), errors);
    }
    let conditions_path = path.child("onPodConditions");
    if conditions.len() > MAX_RULES {
        errors.too_many(&conditions_path, conditions.len(), MAX_RULES);
    }
    for (i, condition) in conditions.iter().enumerate() {
        let path = conditions_path.index(i);
        let kind = condition.text("type");
        let problems = names::is_qualified_name(kind);
        sentences(problems, &path.child("type"), kind, errors);
        listed(
            condition,
            "status",
            &["False", "True", "Unknown"],
            &path,
            errors,
        );
    }
    let detail = match (codes.is_null(), conditions.is_empty()) {
        (true, true) => "specifying one of OnExitCodes and OnPodConditions is required",
        (false, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
        _ => return,
    };
    errors.invalid_whole(path, detail);
}

/// An enumeration whose values upstream tells to whoever leaves it out.
fn listed(holder: &Value, field: &str, allowed: &[&str], path: &Path, errors: &mut Errors) {
    let (text, path) = (holder.text(field), path.child(field));
    if text.is_empty() {
        let values: Vec<_> = allowed.iter().map(|value| format!("{value:?}")).collect();
        errors.required(&path, format!("valid values: [{}]", values.join(" ")));
    } else if !allowed.contains(&text) {
        errors.not_supported(&path, text, allowed);
    }
}

fn exit_codes(codes: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    let operator = codes.text("operator");
    listed(codes, "operator", &["In", "NotIn"], path, errors);
    let container = codes.text("containerName");
    let known = ["containers", "initContainers"].iter().any(|list| {
        spec.at("template.spec")
            .list(list)
            .iter()
            .any(|c| c.text("name") == container)
    });
    if codes.has("containerName") && !known {
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
        success_rule(rule, spec, &path.index(i), errors);
    }
}

fn success_rule(rule: &Value, spec: &Value, path: &Path, errors: &mut Errors) {
    const MAX_INDEXES: usize = 64 * 1024;
    if !rule.has("succeededIndexes") && !rule.has("succeededCount") {
        let detail = "at least one of succeededCount or succeededIndexes must be specified";
        errors.required(path, detail);
    }
    let completions = spec.int("completions").unwrap_or_default();
    let mut total = None;
    if let Some(text) = rule.at("succeededIndexes").as_str() {
        let path = path.child("succeededIndexes");
        if text.len() > MAX_INDEXES {
            errors.too_long(&path, MAX_INDEXES);
        }
        match indexes(text, completions) {
            Ok(intervals) => total = Some(intervals.iter().map(|(a, b)| b - a + 1).sum::<i64>()),
            Err(problem) => {
                total = Some(0);
                let detail = format!("error parsing succeededIndexes: {problem}");
                errors.invalid(&path, text, detail);
            }
        }
    }
    non_negative(rule, "succeededCount", path, errors);
    let Some(count) = rule.int("succeededCount") else {
        return;
    };
    let path = path.child("succeededCount");
    if count > completions {
        let detail = format!(
            "must be less than or equal to {completions} (the number of specified completions)"
        );
        errors.invalid(&path, count, detail);
    }
    if let Some(total) = total.filter(|total| count > *total) {
        let detail = format!(
            "must be less than or equal to {total} (the number of indexes in the specified \
             succeededIndexes field)"
        );
        errors.invalid(&path, count, detail);
    }
}

/// The intervals of `0,2-4,7`, or what is wrong with them.
pub fn indexes(text: &str, completions: i64) -> Result<Vec<(i64, i64)>, String> {
    let mut intervals: Vec<(i64, i64)> = Vec::new();
    if text.is_empty() {
        return Ok(intervals);
    }
    let index = |text: &str| {
        let number = text.parse::<i64>();
        let number =
            number.map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        match number < completions {
            true => Ok(number),
            false => Err(format!("too large index: {text:?}")),
        }
    };
    for part in text.split(',') {
        let limits: Vec<_> = part.split('-').collect();
        let (first, last) = match limits.as_slice() {
            [one] => (index(one)?, index(one)?),
            [first, last] => (index(first)?, index(last)?),
            _ => {
                return Err(format!(
                    "the fragment {part:?} violates the requirement that an index interval can have at \
                     most two parts separated by '-'"
                ));
            }
        };
        if first > last || (first == last && limits.len() == 2) {
            return Err(format!(
                "non-increasing order, previous: {first}, current: {last}"
            ));
        }
        if let Some((_, previous)) = intervals.last().filter(|(_, end)| *end >= first) {
            return Err(format!(
                "non-increasing order, previous: {previous}, current: {first}"
            ));
        }
        intervals.push((first, last));
    }
    Ok(intervals)
}
