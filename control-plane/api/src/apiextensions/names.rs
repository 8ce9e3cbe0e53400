//! The group and the names of a custom resource.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::Tree;

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

/// Names that a definition asks for must all be there.
pub fn required(own: &Value, path: &Path, errors: &mut Errors) {
    for field in ["plural", "singular", "kind", "listKind"] {
        crate::validate::required(own, field, path, errors);
    }
}

pub fn validate(own: &Value, path: &Path, errors: &mut Errors) {
    let label = |text: &str, path: &Path, errors: &mut Errors| {
        let problems = names::is_dns1035_label(text);
        if !problems.is_empty() {
            errors.invalid(path, text, problems.join(","));
        }
    };
    for field in ["plural", "singular"] {
        let text = own.text(field);
        if !text.is_empty() {
            label(text, &path.child(field), errors);
        }
    }
    for field in ["kind", "listKind"] {
        let text = own.text(field);
        let problems = names::is_dns1035_label(&text.to_lowercase());
        if !text.is_empty() && !problems.is_empty() {
            let problems = problems.join(",");
            let detail = format!("may have mixed case, but should otherwise match: {problems}");
            errors.invalid(&path.child(field), text, detail);
        }
    }
    let each = |field: &str, errors: &mut Errors| {
        for (i, name) in own.list(field).iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            label(name, &path.child(field).index(i), errors);
        }
    };
    each("shortNames", errors);
    if !own.text("kind").is_empty() && own.text("kind") == own.text("listKind") {
        let detail = "kind and listKind may not be the same";
        errors.invalid(&path.child("listKind"), own.text("listKind"), detail);
    }
    each("categories", errors);
}
