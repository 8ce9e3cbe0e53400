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

    fn validate(&self, object: &Value, errors: &mut Errors) {
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
        for field in ["apiGroups", "resources"] {
            if rule.list(field).is_empty() {
                let what = if field == "apiGroups" {
                    "api group"
                } else {
                    "resource"
                };
                let detail = format!("resource rules must supply at least one {what}");
                errors.required(&path.child(field), detail);
            }
        }
        if rule.list("namespaces").is_empty() && !rule.flag("clusterScope") {
            let detail =
                "resource rules that are not cluster scoped must supply at least one namespace";
            errors.required(&path.child("namespaces"), detail);
        }
    }
    for (i, rule) in urls.iter().enumerate() {
        let path = path.child("nonResourceRules").index(i);
        verbs(rule, &path, errors);
        if rule.list("nonResourceURLs").is_empty() {
            let detail = "nonResourceURLs must contain at least one value";
            errors.required(&path.child("nonResourceURLs"), detail);
        }
    }
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
