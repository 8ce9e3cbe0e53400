//! The versions of a custom resource: one of them stored, each with its schema, columns and subresources.
//!
//! Upstream judges a definition in the form of its internal type, in which what all versions say alike stands once, in the spec: so
//! faults of a definition with one version are told of `spec.validation`, not of `spec.versions[0].schema`.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::schema::{self, Kept};
use crate::tree::Tree;
use crate::validate::{required, same};

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
const MAX_WARNING: usize = 256;

/// Whether all versions say the same in a field.
fn is_shared(spec: &Value, field: &str) -> bool {
    let versions = spec.list("versions");
    let first = versions.first().map_or(&Value::Null, |v| v.at(field));
    versions
        .iter()
        .all(|version| same(version.at(field), first))
}

/// Where the schema of a version stands for upstream; `None` where an earlier version's is it too.
pub fn schema_path(spec: &Value, version: usize) -> Option<Path> {
    let holder = match (is_shared(spec, "schema"), version) {
        (true, 0) => Path::new("spec").child("validation"),
        (true, _) => return None,
        (false, _) => Path::new("spec")
            .child("versions")
            .index(version)
            .child("schema"),
    };
    Some(holder.child("openAPIV3Schema"))
}

/// What each version says for itself, and what is wrong with all of them together.
pub fn validate(spec: &Value, kept: &Kept, path: &Path, errors: &mut Errors) {
    let all = path.child("versions");
    let versions = spec.list("versions");
    for (i, version) in versions.iter().enumerate() {
        if version.at("schema.openAPIV3Schema").is_null() {
            let path = all.index(i).child("schema").child("openAPIV3Schema");
            errors.required(&path, "schemas are required");
        }
    }
    if spec.flag("preserveUnknownFields") && versions.iter().any(schema::has_defaults) {
        let detail = "must be false in order to use defaults in the schema";
        errors.invalid(&path.child("preserveUnknownFields"), true, detail);
    }
    let mut seen = HashSet::new();
    for (i, version) in versions.iter().enumerate() {
        let path = all.index(i);
        seen.insert(version.text("name"));
        version_name(version, &path.child("name"), errors);
        deprecation(version, &path.child("deprecationWarning"), errors);
        let has_status = version.has("subresources.status");
        parts(spec, version, false, has_status, kept, &path, errors);
    }
    if seen.len() < versions.len() {
        let detail = "must contain unique version names";
        errors.invalid(&all, spec.at("versions").clone(), detail);
    }
    let storage = versions.iter().filter(|version| version.flag("storage"));
    if storage.count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.invalid(&all, spec.at("versions").clone(), detail);
    }
    if let Some(first) = versions.first().filter(|v| !v.text("name").is_empty()) {
        version_name(first, &path.child("version"), errors);
    }
}

/// What is the same in all versions; upstream has it behind the names.
pub fn validate_shared(spec: &Value, kept: &Kept, path: &Path, errors: &mut Errors) {
    let versions = spec.list("versions");
    if let Some(first) = versions.first() {
        let has_status = versions.iter().any(|v| v.has("subresources.status"));
        parts(spec, first, true, has_status, kept, path, errors);
    }
}

/// The parts of a version that are its own, or (`shared`) those that all have alike.
fn parts(
    spec: &Value,
    version: &Value,
    shared: bool,
    has_status: bool,
    kept: &Kept,
    path: &Path,
    errors: &mut Errors,
) {
    let is_here = |field: &str| is_shared(spec, field) == shared;
    let schema = version.at("schema.openAPIV3Schema");
    if is_here("schema") && schema.is_object() {
        let field = if shared { "validation" } else { "schema" };
        let path = path.child(field).child("openAPIV3Schema");
        schema::validate(schema, has_status, kept, &path, errors);
    }
    if is_here("subresources") {
        let path = path.child("subresources").child("scale");
        scale(version.at("subresources.scale"), &path, errors);
    }
    if is_here("additionalPrinterColumns") {
        for (i, column) in version.list("additionalPrinterColumns").iter().enumerate() {
            let path = path.child("additionalPrinterColumns").index(i);
            validate_column(column, &path, errors);
        }
    }
    if (is_shared(spec, "selectableFields") && is_shared(spec, "schema")) == shared {
        selectable(version, schema, &path.child("selectableFields"), errors);
    }
}

fn version_name(version: &Value, path: &Path, errors: &mut Errors) {
    let name = version.text("name");
    let problems = names::is_dns1035_label(name);
    if !problems.is_empty() {
        errors.invalid(path, name, problems.join(","));
    }
}

fn deprecation(version: &Value, path: &Path, errors: &mut Errors) {
    let Some(warning) = version.at("deprecationWarning").as_str() else {
        return;
    };
    if !version.flag("deprecated") {
        return errors.invalid(path, warning, "can only be set for deprecated versions");
    }
    if warning.len() > MAX_WARNING {
        let detail = format!("must be <= {MAX_WARNING} characters long");
        errors.invalid(path, warning, detail);
    }
    if warning.is_empty() {
        errors.invalid(path, warning, "must not be an empty string");
    }
    let is_printed = |c: char| c == ' ' || !(c.is_control() || c.is_whitespace());
    if let Some((at, _)) = warning.char_indices().find(|(_, c)| !is_printed(*c)) {
        let detail = format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        );
        errors.invalid(path, warning, detail);
    }
}

fn validate_column(column: &Value, path: &Path, errors: &mut Errors) {
    required(column, "name", path, errors);
    let kind = column.text("type");
    let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
    if kind.is_empty() {
        errors.required(&path.child("type"), detail);
    } else if !COLUMN_TYPES.contains(&kind) {
        errors.invalid(&path.child("type"), kind, detail);
    }
    let format = column.text("format");
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        let detail = format!("must be one of {}", COLUMN_FORMATS.join(","));
        errors.invalid(&path.child("format"), format, detail);
    }
    let (json_path, path) = (column.text("jsonPath"), path.child("JSONPath"));
    if json_path.is_empty() {
        errors.required(&path, "");
    } else {
        simple_path(json_path, &path, errors);
    }
}

/// Says whether it is one.
fn simple_path(text: &str, path: &Path, errors: &mut Errors) -> bool {
    let is_one = text.starts_with('.');
    if !is_one {
        errors.invalid(path, text, "must be a simple json path starting with .");
    }
    is_one
}

fn selectable(version: &Value, schema: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, field) in version.list("selectableFields").iter().enumerate() {
        let path = path.index(i);
        let Some(json_path) = required(field, "jsonPath", &path, errors) else {
            continue;
        };
        let path = path.child("jsonPath");
        let leaf = match field_of(schema, json_path) {
            Ok(leaf) => leaf,
            Err(problem) => {
                let detail = format!("is an invalid path: {problem}");
                errors.invalid(&path, json_path, detail);
                continue;
            }
        };
        if json_path == ".metadata" || json_path.starts_with(".metadata.") {
            errors.invalid(&path, json_path, "must not point to fields in metadata");
        }
        if !["string", "boolean", "integer"].contains(&leaf.text("type")) {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and \
                          strings with formats are allowed.";
            errors.invalid(&path, json_path, detail);
        }
        if !seen.insert(json_path) {
            errors.duplicate(&path, json_path);
        }
    }
    if seen.len() > MAX_SELECTABLE {
        errors.too_many(path, seen.len(), MAX_SELECTABLE);
    }
}

/// The schema of a field that is selected by.
fn field_of<'s>(schema: &'s Value, path: &str) -> Result<&'s Value, String> {
    let Some(rest) = path.strip_prefix('.') else {
        let first = path.split(['.', '[', ']']).next().unwrap_or_default();
        return Err(format!("expected [ or . but got: {first}"));
    };
    if rest.contains('[') {
        return Err("array notation is not allowed".to_owned());
    }
    rest.split('.').try_fold(schema, |schema, name| {
        if name.is_empty() {
            return Err("unexpected end of JSON path".to_owned());
        }
        let property = schema.at("properties").get(name);
        let values = Some(schema.at("additionalProperties")).filter(|values| values.is_object());
        property
            .or(values)
            .ok_or_else(|| "does not refer to a valid field".to_owned())
    })
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
        } else if simple_path(text, &path, errors)
            && !roots.iter().any(|root| text.starts_with(root))
        {
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
    fn what_versions_share_is_told_of_the_spec() {
        let version = |name: &str, column: &str| {
            json!({
                "name": name, "served": true, "storage": name == "v1",
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"a": {}}}},
                "subresources": {"scale": {"specReplicasPath": ".replicas", "statusReplicasPath": ".status.replicas"}},
                "additionalPrinterColumns": [{"name": "A", "type": column, "jsonPath": ".a"}],
            })
        };
        let spec = json!({"versions": [version("v1", "text"), version("v2", "string")]});
        let found = lines(|e| validate(&spec, &Kept::default(), &Path::new("spec"), e));
        assert_eq!(
            found,
            [
                "spec.versions[0].additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of \
                 boolean,date,integer,number,string"
            ]
        );
        let found = lines(|e| validate_shared(&spec, &Kept::default(), &Path::new("spec"), e));
        assert_eq!(
            found,
            [
                "spec.validation.openAPIV3Schema.properties[a].type: Required value: must not be empty for \
                 specified object fields",
                "spec.subresources.scale.specReplicasPath: Invalid value: \".replicas\": should be a json path \
                 under .spec",
            ]
        );
    }
}
