//! FlowSchemas: which requests belong to which priority level.

use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::resource::Strategy;
use crate::table::{age, cells, or};
use crate::tree::{self, Tree};
use crate::validate::{one_of, required, sentences};

pub struct FlowSchema;

const MAX_PRECEDENCE: i64 = 10000;
const VERBS: &[&str] = &[
    "get",
    "list",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "watch",
    "proxy",
];

impl Strategy for FlowSchema {
    fn default(&self, object: &mut Value) {
        tree::fill(object, "spec.matchingPrecedence", 1000);
        tree::object_at(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({}));
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        let precedence = spec.int("matchingPrecedence").unwrap_or_default();
        let name = object.text("metadata.name");
        if precedence <= 0 {
            let detail = "must be a positive value";
            errors.invalid(&path.child("matchingPrecedence"), precedence, detail);
        }
        if precedence > MAX_PRECEDENCE {
            let detail = format!("must not be greater than {MAX_PRECEDENCE}");
            errors.invalid(&path.child("matchingPrecedence"), precedence, detail);
        }
        if precedence == 1 && name != "exempt" {
            let detail = "only the schema named 'exempt' may have matchingPrecedence 1";
            errors.invalid(&path.child("matchingPrecedence"), precedence, detail);
        }
        if spec.has("distinguisherMethod") {
            let method = path.child("distinguisherMethod");
            let kinds = &["ByNamespace", "ByUser"];
            one_of(
                spec.at("distinguisherMethod"),
                "type",
                kinds,
                &method,
                errors,
            );
        }
        let level = spec.text("priorityLevelConfiguration.name");
        let level_path = path.child("priorityLevelConfiguration").child("name");
        if level.is_empty() {
            errors.required(&level_path, "must reference a priority level");
        } else {
            sentences(
                names::is_dns1123_subdomain(level),
                &level_path,
                level,
                errors,
            );
        }
        for (i, rule) in spec.list("rules").iter().enumerate() {
            validate_rule(rule, &path.child("rules").index(i), errors);
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let spec = object.at("spec");
        let dangling = object
            .list("status.conditions")
            .iter()
            .find(|c| c.text("type") == "Dangling");
        cells![
            spec.text("priorityLevelConfiguration.name"),
            spec.int("matchingPrecedence").unwrap_or_default(),
            or(spec.text("distinguisherMethod.type"), "<none>"),
            age(object, now),
            dangling.map_or("?", |condition| condition.text("status")),
        ]
    }

    fn unconditional_update(&self) -> bool {
        false
    }
}

fn validate_rule(rule: &Value, path: &Path, errors: &mut Errors) {
    let subjects = rule.list("subjects");
    if subjects.is_empty() {
        errors.required(
            &path.child("subjects"),
            "subjects must contain at least one value",
        );
    }
    for (i, subject) in subjects.iter().enumerate() {
        validate_subject(subject, &path.child("subjects").index(i), errors);
    }
    let (resources, urls) = (rule.list("resourceRules"), rule.list("nonResourceRules"));
    if resources.is_empty() && urls.is_empty() {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.required(path, detail);
    }
    for (i, rule) in resources.iter().enumerate() {
        let path = path.child("resourceRules").index(i);
        verbs(rule, &path, errors);
        for (field, what) in [("apiGroups", "api group"), ("resources", "resource")] {
            if rule.list(field).is_empty() {
                let detail = format!("resource rules must supply at least one {what}");
                errors.required(&path.child(field), detail);
            }
            all_or_some(rule, field, &format!("{what}s"), &path, errors);
        }
        let namespaces = rule.list("namespaces");
        if namespaces.is_empty() && !rule.flag("clusterScope") {
            let detail =
                "resource rules that are not cluster scoped must supply at least one namespace";
            errors.required(&path.child("namespaces"), detail);
        }
        if !all_or_some(rule, "namespaces", "namespaces", &path, errors) {
            for (j, namespace) in namespaces.iter().enumerate() {
                let namespace = namespace.as_str().unwrap_or_default();
                let path = path.child("namespaces").index(j);
                sentences(names::is_dns1123_label(namespace), &path, namespace, errors);
            }
        }
    }
    for (i, rule) in urls.iter().enumerate() {
        let path = path.child("nonResourceRules").index(i);
        verbs(rule, &path, errors);
        if rule.list("nonResourceURLs").is_empty() {
            let detail = "nonResourceURLs must contain at least one value";
            errors.required(&path.child("nonResourceURLs"), detail);
        }
        all_or_some(rule, "nonResourceURLs", "non-resource URLs", &path, errors);
    }
}

/// Refuses `*` beside others; answers whether it is there.
fn all_or_some(rule: &Value, field: &str, what: &str, path: &Path, errors: &mut Errors) -> bool {
    let listed = rule.list(field);
    let is_all = listed.iter().any(|item| item == "*");
    if is_all && listed.len() > 1 {
        let detail = format!("if '*' is present, must not specify other {what}");
        errors.invalid(&path.child(field), rule.at(field).clone(), detail);
    }
    is_all
}

fn verbs(rule: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("verbs");
    let verbs: Vec<_> = rule
        .list("verbs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    if verbs.is_empty() {
        errors.required(&path, "verbs must contain at least one value");
    } else if verbs.contains(&"*") {
        if verbs.len() > 1 {
            let detail = "if '*' is present, must not specify other verbs";
            errors.invalid(&path, rule.at("verbs").clone(), detail);
        }
    } else if verbs.iter().any(|verb| !VERBS.contains(verb)) {
        errors.not_supported(&path, rule.at("verbs").clone(), VERBS);
    }
}

fn validate_subject(subject: &Value, path: &Path, errors: &mut Errors) {
    let (kind, field) = match subject.text("kind") {
        "ServiceAccount" => ("ServiceAccount", "serviceAccount"),
        "User" => ("User", "user"),
        "Group" => ("Group", "group"),
        other => {
            errors.not_supported(
                &path.child("kind"),
                other,
                &["Group", "ServiceAccount", "User"],
            );
            return;
        }
    };
    let named = subject.at(field);
    let path = path.child(field);
    if named.is_null() {
        errors.required(
            &path,
            format!("{field} is required when subject kind is '{kind}'"),
        );
        return;
    }
    required(named, "name", &path, errors);
    if kind == "ServiceAccount" {
        required(named, "namespace", &path, errors);
    }
}
