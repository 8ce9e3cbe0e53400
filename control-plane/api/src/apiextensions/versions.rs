//! The versions of a custom resource: one of them stored, each with its schema, columns and subresources.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::structural;
use crate::tree::Tree;
use crate::validate::{required, sentences};

const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: &[&str] = &[
    "byte",
    "date",
    "date-time",
    "double",
    "float",
    "int32",
    "int64",
    "password",
];
const MAX_SELECTABLE: usize = 8;

pub fn validate(spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("versions");
    let versions = spec.list("versions");
    let mut seen = HashSet::new();
    for (i, version) in versions.iter().enumerate() {
        let path = path.index(i);
        let name = version.text("name");
        seen.insert(name);
        sentences(
            names::is_dns1035_label(name),
            &path.child("name"),
            name,
            errors,
        );
        if version.flag("deprecated") {
            if version.text("deprecationWarning").len() > 256 {
                let detail = "must be <= 256 characters";
                errors.invalid(
                    &path.child("deprecationWarning"),
                    version.text("deprecationWarning"),
                    detail,
                );
            }
        } else if version.has("deprecationWarning") {
            let detail = "can only be set for deprecated versions";
            errors.invalid(
                &path.child("deprecationWarning"),
                version.text("deprecationWarning"),
                detail,
            );
        }
        one(version, &path, errors);
    }
    if seen.len() < versions.len() {
        let detail = "must contain unique version names";
        errors.invalid(&path, spec.at("versions").clone(), detail);
    }
    let storage = versions
        .iter()
        .filter(|version| version.flag("storage"))
        .count();
    if storage != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.invalid(&path, spec.at("versions").clone(), detail);
    }
}

fn one(version: &Value, path: &Path, errors: &mut Errors) {
    let schema_path = path.child("schema").child("openAPIV3Schema");
    let schema = version.at("schema.openAPIV3Schema");
    if schema.is_null() {
        errors.required(&schema_path, "schemas are required");
    } else {
        structural::validate(schema, &schema_path, errors);
    }
    scale(
        version.at("subresources.scale"),
        &path.child("subresources").child("scale"),
        errors,
    );
    for (i, column) in version.list("additionalPrinterColumns").iter().enumerate() {
        let path = path.child("additionalPrinterColumns").index(i);
        required(column, "name", &path, errors);
        if let Some(kind) = required(column, "type", &path, errors)
            && !COLUMN_TYPES.contains(&kind)
        {
            let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
            errors.invalid(&path.child("type"), kind, detail);
        }
        let format = column.text("format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let detail = format!("must be one of {}", COLUMN_FORMATS.join(","));
            errors.invalid(&path.child("format"), format, detail);
        }
        if let Some(json_path) = required(column, "jsonPath", &path, errors)
            && !json_path.starts_with('.')
        {
            let detail = "must be a simple json path starting with .";
            errors.invalid(&path.child("jsonPath"), json_path, detail);
        }
    }
    let selectable = version.list("selectableFields");
    let selectable_path = path.child("selectableFields");
    if selectable.len() > MAX_SELECTABLE {
        errors.too_many(&selectable_path, selectable.len(), MAX_SELECTABLE);
    }
    let mut seen = HashSet::new();
    for (i, field) in selectable.iter().enumerate() {
        let path = selectable_path.index(i);
        let Some(json_path) = required(field, "jsonPath", &path, errors) else {
            continue;
        };
        let path = path.child("jsonPath");
        if !seen.insert(json_path) {
            errors.duplicate(&path, json_path);
        }
        let simple = json_path
            .strip_prefix('.')
            .filter(|rest| !rest.contains(['[', ']']));
        match simple {
            None => errors.invalid(
                &path,
                json_path,
                "is an invalid path: must be a simple json path",
            ),
            Some(rest) if rest.starts_with("metadata") => {
                errors.invalid(&path, json_path, "must not point to fields in metadata");
            }
            Some(rest) => {
                if let Some(problem) = unselectable(schema, rest) {
                    errors.invalid(&path, json_path, problem);
                }
            }
        }
    }
}

/// Selectable fields are strings, integers or booleans that the schema knows.
fn unselectable(schema: &Value, path: &str) -> Option<&'static str> {
    let leaf = path
        .split('.')
        .try_fold(schema, |schema, field| schema.get("properties")?.get(field));
    match leaf.map(|leaf| leaf.text("type")) {
        None => Some("is an invalid path: does not refer to a valid field"),
        Some("string" | "integer" | "boolean") => None,
        Some(_) => Some(
            "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
        ),
    }
}

fn scale(scale: &Value, path: &Path, errors: &mut Errors) {
    if scale.is_null() {
        return;
    }
    for (field, roots, sentence) in [
        (
            "specReplicasPath",
            &[".spec."][..],
            "should be a json path under .spec",
        ),
        (
            "statusReplicasPath",
            &[".status."][..],
            "should be a json path under .status",
        ),
        (
            "labelSelectorPath",
            &[".spec.", ".status."][..],
            "should be a json path under either .spec or .status",
        ),
    ] {
        let text = scale.text(field);
        let path = path.child(field);
        if text.is_empty() {
            if field != "labelSelectorPath" {
                errors.required(&path, "");
            }
        } else if text.contains(['[', ']']) || !text.starts_with('.') {
            errors.invalid(
                &path,
                text,
                "should be a simple json path with dots and without array notation",
            );
        } else if !roots.iter().any(|root| text.starts_with(root)) {
            errors.invalid(&path, text, sentence);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn faults_carry_their_field_and_kubernetes_words() {
        let spec = json!({"versions": [
            {"name": "v1", "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
             "subresources": {"scale": {"specReplicasPath": ".replicas", "statusReplicasPath": ".status.replicas"}},
             "additionalPrinterColumns": [{"name": "A", "type": "text", "jsonPath": ".a"}]},
            {"name": "v1", "storage": true},
        ]});
        let found = lines(|e| validate(&spec, &Path::new("spec"), e));
        assert_eq!(
            found[..3],
            [
                "spec.versions[0].subresources.scale.specReplicasPath: Invalid value: \".replicas\": \
                 should be a json path under .spec",
                "spec.versions[0].additionalPrinterColumns[0].type: Invalid value: \"text\": must be one \
                 of boolean,date,integer,number,string",
                "spec.versions[1].schema.openAPIV3Schema: Required value: schemas are required",
            ]
        );
        assert!(
            found[3].starts_with("spec.versions: ") && found[3].ends_with("unique version names")
        );
        assert!(found[4].ends_with("must have exactly one version marked as storage version"));
    }
}
