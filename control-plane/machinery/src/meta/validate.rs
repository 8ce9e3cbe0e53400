//! What `k8s.io/apimachinery/pkg/api/validation` checks in every object's metadata.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::names;
use crate::validation::{Errors, Path};

const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Faults of the metadata of a new or changed object. `name_check` is the kind's rule for names.
pub fn validate(
    object: &Value,
    namespaced: bool,
    name_check: fn(&str) -> Vec<String>,
    errors: &mut Errors,
) {
    let path = Path::new("metadata");
    let prefix = super::generate_name_prefix(object);
    if !prefix.is_empty() {
        // A prefix may end in a dash, which a whole name may not.
        let masked = match prefix.strip_suffix('-') {
            Some(rest) if !rest.is_empty() => format!("{rest}a"),
            _ => prefix.to_owned(),
        };
        for message in name_check(&masked) {
            errors.invalid(&path.child("generateName"), prefix, message);
        }
    }
    let name = super::name(object);
    if name.is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else {
        for message in name_check(name) {
            errors.invalid(&path.child("name"), name, message);
        }
    }
    namespace(
        super::namespace(object),
        namespaced,
        &path.child("namespace"),
        errors,
    );
    if super::generation(object) < 0 {
        let value = super::generation(object);
        errors.invalid(
            &path.child("generation"),
            value,
            "must be greater than or equal to 0",
        );
    }
    labels(super::labels(object), &path.child("labels"), errors);
    annotations(
        super::annotations(object),
        &path.child("annotations"),
        errors,
    );
    owner_references(
        super::owner_references(object),
        &path.child("ownerReferences"),
        errors,
    );
    finalizers(object, &path.child("finalizers"), errors);
}

fn namespace(namespace: &str, namespaced: bool, path: &Path, errors: &mut Errors) {
    match (namespaced, namespace) {
        (true, "") => errors.required(path, ""),
        (true, namespace) => {
            for message in names::is_dns1123_label(namespace) {
                errors.invalid(path, namespace, message);
            }
        }
        (false, "") => {}
        (false, _) => errors.forbidden(path, "not allowed on this type"),
    }
}

/// Faults of a map of labels, wherever it stands (templates, node selectors).
pub fn labels(labels: Option<&Map<String, Value>>, path: &Path, errors: &mut Errors) {
    for (key, value) in labels.into_iter().flatten() {
        for message in names::is_qualified_name(key) {
            errors.invalid(path, key.as_str(), message);
        }
        for message in names::is_label_value(value.as_str().unwrap_or_default()) {
            errors.invalid(path, value.clone(), message);
        }
    }
}

/// Faults of a map of annotations.
pub fn annotations(annotations: Option<&Map<String, Value>>, path: &Path, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        // Upper case is legal in an annotation's prefix, for historical reasons.
        for message in names::is_qualified_name(&key.to_lowercase()) {
            errors.invalid(path, key.as_str(), message);
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.too_long(path, ANNOTATIONS_MAX_BYTES);
    }
}

fn owner_references(owners: &[Value], path: &Path, errors: &mut Errors) {
    let mut controller: Option<&str> = None;
    for owner in owners {
        let text = |field: &str| owner[field].as_str().unwrap_or_default();
        let version = text("apiVersion");
        // `group/version`; what is no such thing has no version either.
        let parts: Vec<_> = version.split('/').collect();
        if parts.len() > 2 || parts.last().is_none_or(|version| version.is_empty()) {
            errors.invalid(
                &path.child("apiVersion"),
                version,
                "version must not be empty",
            );
        }
        for field in ["kind", "name", "uid"] {
            if text(field).is_empty() {
                errors.invalid(
                    &path.child(field),
                    text(field),
                    format!("{field} must not be empty"),
                );
            }
        }
        if version == "v1" && text("kind") == "Event" {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.invalid(path, owner.clone(), why);
        }
        if owner["controller"] == true {
            if let Some(other) = controller {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {other} and {}",
                    text("name")
                );
                errors.invalid(path, Value::from(owners), why);
            }
            controller = Some(text("name"));
        }
    }
}

/// A finalizer without a domain is one of Kubernetes' own; asked of built-in kinds only.
pub fn standard_finalizer(finalizer: &str, path: &Path, errors: &mut Errors) {
    if !finalizer.contains('/') && !["kubernetes", ORPHAN, FOREGROUND].contains(&finalizer) {
        let why = "name is neither a standard finalizer name nor is it fully qualified";
        errors.invalid(path, finalizer, why);
    }
}

fn finalizers(object: &Value, path: &Path, errors: &mut Errors) {
    let finalizers: Vec<_> = super::finalizers(object).collect();
    for finalizer in &finalizers {
        for message in names::is_qualified_name(finalizer) {
            errors.invalid(path, *finalizer, message);
        }
    }
    if finalizers.contains(&ORPHAN) && finalizers.contains(&FOREGROUND) {
        let why = format!("finalizers {ORPHAN} and {FOREGROUND} cannot be both set");
        errors.invalid(path, finalizers, why);
    }
}

/// Faults of a change, besides those that [`validate`] finds in the new object.
pub fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("metadata");
    let field = |object: &Value, name: &str| {
        object
            .get("metadata")
            .and_then(|meta| meta.get(name))
            .cloned()
            .unwrap_or_default()
    };
    let unchanged = |names: &[&str], detail: &str, errors: &mut Errors| {
        for name in names {
            let value = field(new, name);
            if value != field(old, name) {
                errors.invalid(&path.child(name), value, detail);
            }
        }
    };
    unchanged(
        &["deletionGracePeriodSeconds", "deletionTimestamp"],
        "field is immutable; may only be changed via deletion",
        errors,
    );
    if super::is_deleting(old) {
        let before: BTreeSet<_> = super::finalizers(old).collect();
        let added: Vec<_> = super::finalizers(new)
            .filter(|f| !before.contains(f))
            .collect();
        if !added.is_empty() {
            let listed = added
                .iter()
                .map(|f| format!("{f:?}"))
                .collect::<Vec<_>>()
                .join(", ");
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{listed}}}"
            );
            errors.forbidden(&path.child("finalizers"), why);
        }
    }
    if super::generation(new) < super::generation(old) {
        errors.invalid(
            &path.child("generation"),
            super::generation(new),
            "must not be decremented",
        );
    }
    unchanged(
        &["name", "namespace", "uid", "creationTimestamp"],
        "field is immutable",
        errors,
    );
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(json!({"name": "a", "namespace": "b"}), true, &[])]
    #[case(json!({}), true, &["metadata.name: Required value: name or generateName is required", "metadata.namespace: Required value"])]
    #[case(json!({"name": "A", "namespace": "b"}), true, &["metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain"])]
    #[case(json!({"name": "a", "namespace": "b"}), false, &["metadata.namespace: Forbidden: not allowed on this type"])]
    #[case(json!({"name": "a", "labels": {"-": "b"}}), false, &["metadata.labels: Invalid value: \"-\": name part must consist"])]
    #[case(json!({"name": "a", "labels": {"b": "-"}}), false, &["metadata.labels: Invalid value: \"-\": a valid label must"])]
    #[case(json!({"name": "a", "annotations": {"A.b/C": "any thing"}}), false, &[])]
    #[case(json!({"name": "a", "generateName": "a-"}), false, &[])]
    #[case(json!({"name": "a", "generateName": "A-"}), false, &["metadata.generateName: Invalid value: \"A-\""])]
    #[case(json!({"name": "a", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "", "name": "x", "uid": "1"}]}), false, &["metadata.ownerReferences.kind: Invalid value: \"\": kind must not be empty"])]
    #[case(json!({"name": "a", "finalizers": ["orphan", "foregroundDeletion"]}), false, &["metadata.finalizers: Invalid value"])]
    fn metadata(#[case] meta: Value, #[case] namespaced: bool, #[case] expected: &[&str]) {
        let mut errors = Errors::new();
        validate(
            &json!({"metadata": meta}),
            namespaced,
            names::is_dns1123_subdomain,
            &mut errors,
        );
        let found: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }

    #[test]
    fn huge_annotations_are_refused() {
        let object = json!({"metadata": {"name": "a", "annotations": {"b": "x".repeat(300_000)}}});
        let mut errors = Errors::new();
        validate(&object, false, names::is_dns1123_subdomain, &mut errors);
        assert_eq!(
            errors.to_string(),
            "metadata.annotations: Too long: may not be more than 262144 bytes"
        );
    }

    #[test]
    fn identity_is_immutable_and_the_dying_gain_no_finalizers() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "generation": 2, "deletionTimestamp": "t"}});
        let mut errors = Errors::new();
        let new = json!({"metadata": {"name": "a", "uid": "2", "generation": 1, "deletionTimestamp": "t",
            "finalizers": ["x.y/z"]}});
        validate_update(&new, &old, &mut errors);
        let fields: Vec<_> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(
            fields,
            ["metadata.finalizers", "metadata.generation", "metadata.uid"]
        );
        assert!(errors.to_string().contains("[]string{\"x.y/z\"}"));
    }
}
