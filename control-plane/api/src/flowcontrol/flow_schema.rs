//! FlowSchemas: which requests belong to which priority level.

use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::{mandatory, validate_conditions};
use crate::resource::Strategy;
use crate::table::{age, cells, or};
use crate::tree::{self, Tree};
use crate::validate::{required, sentences};

pub struct FlowSchema;

const MAX_PRECEDENCE: i64 = 10000;
const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];

impl Strategy for FlowSchema {
    fn status_metadata(&self) -> &'static [&'static str] {
        &[]
    }

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
            let kind = spec.text("distinguisherMethod.type");
            let kinds = &["ByNamespace", "ByUser"];
            if !kinds.contains(&kind) {
                let path = path.child("distinguisherMethod").child("type");
                errors.not_supported(&path, json!({"Type": kind}), kinds);
            }
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
        mandatory(object, "FlowSchema", errors);
        validate_conditions(object, errors);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        validate_conditions(new, errors);
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
        let intro = "each member of this list must be '*' or a DNS-1123 label; ";
        if namespaces.is_empty() && !rule.flag("clusterScope") {
            let detail =
                "resource rules that are not cluster scoped must supply at least one namespace";
            errors.required(&path.child("namespaces"), detail);
        }
        if !all_or_some(rule, "namespaces", "namespaces", &path, errors) {
            for (j, namespace) in namespaces.iter().enumerate() {
                let namespace = namespace.as_str().unwrap_or_default();
                let path = path.child("namespaces").index(j);
                for problem in names::is_dns1123_label(namespace) {
                    errors.invalid(&path, namespace, format!("{intro}{problem}"));
                }
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
        if !all_or_some(rule, "nonResourceURLs", "non-resource URLs", &path, errors) {
            for (j, url) in rule.list("nonResourceURLs").iter().enumerate() {
                let url = url.as_str().unwrap_or_default();
                url_path(url, &path.child("nonResourceURLs").index(j), errors);
            }
        }
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

/// A path, or the beginning of paths.
fn url_path(url: &str, path: &Path, errors: &mut Errors) {
    let detail = match url {
        "" => "must not be empty",
        "/" => return,
        url if !url.starts_with('/') => "must start with slash",
        url if url.contains(' ') => "must not contain white-space",
        url if url.contains("//") => "must not contain double slash",
        url if url.strip_suffix("/*").unwrap_or(url).contains('*') => {
            "wildcard can only do suffix matching"
        }
        _ => return,
    };
    errors.invalid(path, url, detail);
}

const SUBJECTS: [(&str, &str); 3] = [
    ("ServiceAccount", "serviceAccount"),
    ("User", "user"),
    ("Group", "group"),
];

fn validate_subject(subject: &Value, path: &Path, errors: &mut Errors) {
    let kind = subject.text("kind");
    let Some((_, field)) = SUBJECTS.iter().find(|(known, _)| *known == kind) else {
        let kinds = &["Group", "ServiceAccount", "User"];
        return errors.not_supported(&path.child("kind"), kind, kinds);
    };
    let (named, place) = (subject.at(field), path.child(field));
    if named.is_null() {
        let detail = format!("{field} is required when subject kind is '{kind}'");
        errors.required(&place, detail);
    } else if kind == "ServiceAccount" {
        account(named, &place, errors);
    } else {
        required(named, "name", &place, errors);
    }
    for (other, field) in SUBJECTS.iter().filter(|(other, _)| *other != kind) {
        if subject.has(field) {
            let detail = format!("{field} is forbidden when subject kind is not '{other}'");
            errors.forbidden(&path.child(field), detail);
        }
    }
}

fn account(account: &Value, path: &Path, errors: &mut Errors) {
    if let Some(name) = required(account, "name", path, errors).filter(|name| *name != "*") {
        let problems = names::is_dns1123_subdomain(name);
        sentences(problems, &path.child("name"), name, errors);
    }
    let (namespace, path) = (account.text("namespace"), path.child("namespace"));
    if namespace.is_empty() {
        errors.required(&path, "must specify namespace for service account");
    } else {
        let problems = names::is_dns1123_label(namespace);
        sentences(problems, &path, namespace, errors);
    }
}
