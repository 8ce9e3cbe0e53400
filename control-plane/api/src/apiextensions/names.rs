//! The group and the names of a custom resource.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;
use crate::validate::sentences;

pub fn group(group: &str, path: &Path, errors: &mut Errors) {
    if group.is_empty() {
        errors.required(path, "");
        return;
    }
    let problems = names::is_dns1123_subdomain(group);
    if !problems.is_empty() {
        errors.invalid(path, group, problems.join(","));
    } else if !group.contains('.') {
        errors.invalid(path, group, "should be a domain with at least one dot");
    }
}

pub fn validate(own: &Value, path: &Path, errors: &mut Errors) {
    for field in ["plural", "singular"] {
        let text = own.text(field);
        if text.is_empty() {
            if field == "plural" {
                errors.required(&path.child(field), "");
            }
        } else {
            sentences(
                names::is_dns1035_label(text),
                &path.child(field),
                text,
                errors,
            );
        }
    }
    for field in ["kind", "listKind"] {
        let text = own.text(field);
        if text.is_empty() {
            errors.required(&path.child(field), "");
            continue;
        }
        for problem in names::is_dns1035_label(&text.to_lowercase()) {
            let detail = format!("may have mixed case, but should otherwise match: {problem}");
            errors.invalid(&path.child(field), text, detail);
        }
    }
    if !own.text("kind").is_empty() && own.text("kind") == own.text("listKind") {
        let detail = "kind and listKind may not be the same";
        errors.invalid(&path.child("listKind"), own.text("listKind"), detail);
    }
    for field in ["shortNames", "categories"] {
        let mut seen = HashSet::new();
        for (i, name) in own.list(field).iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            let path = path.child(field).index(i);
            sentences(names::is_dns1035_label(name), &path, name, errors);
            if !seen.insert(name) {
                errors.duplicate(&path, name);
            }
        }
    }
}
