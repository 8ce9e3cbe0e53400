//! Which requests a webhook or policy is asked about: rules, selectors and conditions.

use std::collections::HashSet;

use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::{self, Tree};
use crate::validate::labels::selector_terms;
use crate::validate::{optional_one_of, sentences};

pub const POLICIES: &[&str] = &["Equivalent", "Exact"];
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: &[&str] = &["*", "Cluster", "Namespaced"];
const MAX_CONDITIONS: usize = 64;

/// Defaults of rules (`rules`, `resourceRules`, `excludeResourceRules`).
pub fn default_rules(holder: &mut Value, list: &str) {
    for rule in tree::each(holder, list) {
        tree::fill(rule, "scope", "*");
    }
}

/// Selectors that are left out select everything.
pub fn default_selectors(holder: &mut Value) {
    for field in ["namespaceSelector", "objectSelector"] {
        tree::fill(holder, field, json!({}));
    }
}

/// `values` of labels are only checked where they were in order before.
pub fn selectors(holder: &Value, values: bool, path: &Path, errors: &mut Errors) {
    for field in ["namespaceSelector", "objectSelector"] {
        selector_terms(holder.at(field), values, &path.child(field), errors);
    }
}

/// A rule of a policy, which may be about certain names only.
pub fn named_rule(one: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, name) in one.list("resourceNames").iter().enumerate() {
        let (name, path) = (
            name.as_str().unwrap_or_default(),
            path.child("resourceNames").index(i),
        );
        sentences(names::is_path_segment(name), &path, name, errors);
        if !seen.insert(name) {
            errors.duplicate(&path, name);
        }
    }
    rule(one, path, errors);
}

/// One rule: operations on resources of groups and versions.
pub fn rule(rule: &Value, path: &Path, errors: &mut Errors) {
    let operations = rule.list("operations");
    if operations.is_empty() {
        errors.required(&path.child("operations"), "");
    }
    let has_star = |list: &[Value]| list.iter().any(|v| v == "*");
    if operations.len() > 1 && has_star(operations) {
        let detail = "if '*' is present, must not specify other operations";
        errors.invalid(
            &path.child("operations"),
            rule.at("operations").clone(),
            detail,
        );
    }
    for (i, operation) in operations.iter().enumerate() {
        let operation = operation.as_str().unwrap_or_default();
        if !OPERATIONS.contains(&operation) {
            errors.not_supported(&path.child("operations").index(i), operation, OPERATIONS);
        }
    }
    for (field, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let list = rule.list(field);
        if list.is_empty() {
            errors.required(&path.child(field), "");
        }
        if list.len() > 1 && has_star(list) {
            let detail = format!("if '*' is present, must not specify other {what}");
            errors.invalid(&path.child(field), rule.at(field).clone(), detail);
        }
    }
    for (i, version) in rule.list("apiVersions").iter().enumerate() {
        if version.as_str() == Some("") {
            errors.required(&path.child("apiVersions").index(i), "");
        }
    }
    resources(rule, path, errors);
    if rule.has("scope") && !SCOPES.contains(&rule.text("scope")) {
        errors.not_supported(&path.child("scope"), rule.text("scope"), SCOPES);
    }
}

fn resources(rule: &Value, path: &Path, errors: &mut Errors) {
    let list = rule.list("resources");
    let path = path.child("resources");
    if list.is_empty() {
        errors.required(&path, "");
    }
    let all: Vec<_> = list.iter().filter_map(Value::as_str).collect();
    // What an earlier pattern covers must not be listed behind it.
    let (mut of_resource, mut of_subresource) = (HashSet::new(), HashSet::new());
    for (i, pattern) in all.iter().enumerate() {
        let path = path.index(i);
        if pattern.is_empty() {
            errors.required(&path, "");
            continue;
        }
        let Some((resource, subresource)) = pattern.split_once('/') else {
            continue;
        };
        if of_resource.contains(resource) {
            let detail = format!("if '{resource}/*' is present, must not specify {pattern}");
            errors.invalid(&path, *pattern, detail);
        }
        if of_subresource.contains(subresource) {
            let detail = format!("if '*/{subresource}' is present, must not specify {pattern}");
            errors.invalid(&path, *pattern, detail);
        }
        if subresource == "*" {
            of_resource.insert(resource);
        }
        if resource == "*" {
            of_subresource.insert(subresource);
        }
    }
    if all.len() > 1 && all.contains(&"*/*") {
        let detail = "if '*/*' is present, must not specify other resources";
        errors.invalid(&path, rule.at("resources").clone(), detail);
    }
    // Upstream looks at the last of those without a subresource.
    let mut whole = all
        .iter()
        .rev()
        .filter(|p| !p.is_empty() && !p.contains('/'));
    if all.contains(&"*") && whole.next().is_some_and(|last| *last != "*") {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(&path, rule.at("resources").clone(), detail);
    }
}

/// CEL conditions under which a request matches; the expressions are compiled by the admission chain.
pub fn conditions(list: &[Value], path: &Path, errors: &mut Errors) {
    if list.len() > MAX_CONDITIONS {
        errors.too_many(path, list.len(), MAX_CONDITIONS);
    }
    let mut seen = HashSet::new();
    for (i, condition) in list.iter().enumerate() {
        let path = path.index(i);
        let name = condition.text("name");
        if condition.text("expression").trim().is_empty() {
            errors.required(&path.child("expression"), "");
        }
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            sentences(
                names::is_qualified_name(name),
                &path.child("name"),
                name,
                errors,
            );
            if !seen.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
    }
}

/// `failurePolicy` of webhooks and policies.
pub fn failure_policy(holder: &Value, path: &Path, errors: &mut Errors) {
    optional_one_of(holder, "failurePolicy", &["Fail", "Ignore"], path, errors);
}
