//! ValidatingAdmissionPolicies and their bindings. Their expressions are compiled by the admission chain.

use std::collections::HashSet;

use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::matching;
use crate::resource::Strategy;
use crate::table::{age, cells, selector as show_selector};
use crate::tree::{self, Tree};
use crate::validate::conditions::conditions;
use crate::validate::labels::selector;
use crate::validate::{one_of, optional_one_of, required, sentences};

pub struct ValidatingAdmissionPolicy;

const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge"];
const MAX_ANNOTATIONS: usize = 20;
/// Bytes.
const MAX_ANNOTATION: usize = 5 * 1024;

fn default_match(object: &mut Value, field: &str) {
    if let Some(resources) = tree::at_mut(object, field).filter(|r| r.is_object()) {
        tree::fill(resources, "matchPolicy", "Equivalent");
        matching::default_selectors(resources);
        for list in ["resourceRules", "excludeResourceRules"] {
            matching::default_rules(resources, list);
        }
    }
}

fn validate_match(resources: &Value, path: &Path, errors: &mut Errors) {
    optional_one_of(resources, "matchPolicy", matching::POLICIES, path, errors);
    matching::selectors(resources, true, path, errors);
    for list in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in resources.list(list).iter().enumerate() {
            matching::named_rule(rule, &path.child(list).index(i), errors);
        }
    }
}

impl Strategy for ValidatingAdmissionPolicy {
    fn status_metadata(&self) -> &'static [&'static str] {
        &[]
    }

    fn default(&self, object: &mut Value) {
        tree::fill(object, "spec.failurePolicy", "Fail");
        default_match(object, "spec.matchConstraints");
        tree::object_at(object, "status");
    }

    fn prepare_for_create(&self, object: &mut Value) {
        tree::set(object, "status", json!({}));
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        matching::failure_policy(spec, &path, errors);
        if spec.has("paramKind") {
            param_kind(spec.at("paramKind"), &path.child("paramKind"), errors);
        }
        let constraints = spec.at("matchConstraints");
        let match_path = path.child("matchConstraints");
        if constraints.is_null() {
            errors.required(&match_path, "");
        } else {
            validate_match(constraints, &match_path, errors);
            if constraints.list("resourceRules").is_empty() {
                errors.required(&match_path.child("resourceRules"), "");
            }
        }
        let is_kept = old.is_some_and(|old| {
            let mut fields = ["spec.paramKind", "spec.matchConditions"].iter();
            fields.all(|field| object.at(field) == old.at(field))
        });
        if !is_kept {
            let conditions = spec.list("matchConditions");
            matching::conditions(conditions, &path.child("matchConditions"), errors);
        }
        variables(spec, &path, errors);
        let (validations, annotations) = (spec.list("validations"), spec.list("auditAnnotations"));
        if validations.is_empty() && annotations.is_empty() {
            let detail = "validations or auditAnnotations must contain at least one item";
            errors.required(&path.child("validations"), detail);
            errors.required(&path.child("auditAnnotations"), detail);
        }
        for (i, validation) in validations.iter().enumerate() {
            validate_one(validation, &path.child("validations").index(i), errors);
        }
        audit_annotations(object, &path.child("auditAnnotations"), errors);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        let path = Path::new("status");
        let warnings = new.list("status.typeChecking.expressionWarnings");
        let warnings_path = path.child("typeChecking").child("expressionWarnings");
        for (i, warning) in warnings.iter().enumerate() {
            let path = warnings_path.index(i);
            required(warning, "warning", &path, errors);
            if warning.text("fieldRef").trim().is_empty() {
                errors.required(&path.child("fieldRef"), "");
            }
        }
        let list = new.list("status.conditions");
        conditions(list, &path.child("conditions"), errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let kind = object.at("spec.paramKind");
        let param = if kind.is_null() {
            "<unset>".to_owned()
        } else {
            format!("{}/{}", kind.text("apiVersion"), kind.text("kind"))
        };
        cells![
            object.list("spec.validations").len(),
            param,
            age(object, now)
        ]
    }

    fn unconditional_update(&self) -> bool {
        false
    }
}

/// The kind of parameters.
fn param_kind(kind: &Value, path: &Path, errors: &mut Errors) {
    let (version_path, text) = (path.child("apiVersion"), kind.text("apiVersion"));
    match text.split('/').collect::<Vec<_>>()[..] {
        [""] => errors.required(&version_path, ""),
        [version] | [_, version] => {
            let group = text.split_once('/').map_or("", |(group, _)| group);
            let problems = names::is_dns1123_subdomain(group);
            if !group.is_empty() && !problems.is_empty() {
                errors.invalid(&version_path, group, problems.join(","));
            }
            let problems = names::is_dns1035_label(version);
            if version.is_empty() {
                errors.invalid(&version_path, text, "version must be specified");
            } else if !problems.is_empty() {
                errors.invalid(&version_path, version, problems.join(","));
            }
        }
        _ => {
            let detail = format!("unexpected GroupVersion string: {text}");
            errors.invalid(&version_path, text, detail);
        }
    }
    if let Some(name) = required(kind, "kind", path, errors) {
        let problems = names::is_dns1035_label(&name.to_lowercase());
        if !problems.is_empty() {
            let problems = problems.join(",");
            let detail = format!("may have mixed case, but should otherwise match: {problems}");
            errors.invalid(&path.child("kind"), name, detail);
        }
    }
}

fn variables(spec: &Value, path: &Path, errors: &mut Errors) {
    for (i, variable) in spec.list("variables").iter().enumerate() {
        let path = path.child("variables").index(i);
        let name = variable.text("name");
        if name.trim().is_empty() {
            errors.required(&path.child("name"), "name is not specified");
        } else if !names::is_c_identifier(name).is_empty() || names::CEL_KEYWORDS.contains(&name) {
            let detail = "name is not a valid CEL identifier";
            errors.invalid(&path.child("name"), name, detail);
        }
        if variable.text("expression").trim().is_empty() {
            errors.required(&path.child("expression"), "expression is not specified");
        }
    }
}

fn validate_one(validation: &Value, path: &Path, errors: &mut Errors) {
    let is_blank = |text: &str| !text.is_empty() && text.trim().is_empty();
    if validation.text("expression").trim().is_empty() {
        errors.required(&path.child("expression"), "expression is not specified");
    }
    let expression = validation.text("messageExpression");
    if is_blank(expression) {
        let detail = "must be non-empty if specified";
        errors.invalid(&path.child("messageExpression"), expression, detail);
    }
    let (message, message_path) = (validation.text("message"), path.child("message"));
    if is_blank(message) {
        let detail = "message must be non-empty if specified";
        errors.invalid(&message_path, message, detail);
    } else if message.trim().contains(['\n', '\r']) {
        let detail = "message must not contain line breaks";
        errors.invalid(&message_path, message, detail);
    }
    optional_one_of(validation, "reason", REASONS, path, errors);
}

fn audit_annotations(policy: &Value, path: &Path, errors: &mut Errors) {
    let annotations = policy.list("spec.auditAnnotations");
    if annotations.len() > MAX_ANNOTATIONS {
        let detail = format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations");
        errors.invalid(path, annotations.to_vec(), detail);
    }
    let name = policy.text("metadata.name");
    let mut seen = HashSet::new();
    for (i, annotation) in annotations.iter().enumerate() {
        let path = path.index(i);
        let (key, key_path) = (annotation.text("key"), path.child("key"));
        if name.is_empty() {
            errors.invalid(&key_path, key, "requires metadata.name be non-empty");
        } else {
            let full = format!("{name}/{key}");
            sentences(names::is_qualified_name(&full), &key_path, &full, errors);
        }
        let expression = annotation.text("valueExpression").trim();
        let path = path.child("valueExpression");
        if expression.is_empty() {
            errors.required(&path, "valueExpression is not specified");
        } else if expression.len() > MAX_ANNOTATION {
            let detail = format!("must not exceed {MAX_ANNOTATION} bytes in length");
            errors.required(&path, detail);
        }
        if !seen.insert(key) {
            errors.duplicate(&key_path, key);
        }
    }
}

pub struct ValidatingAdmissionPolicyBinding;

impl Strategy for ValidatingAdmissionPolicyBinding {
    fn default(&self, object: &mut Value) {
        default_match(object, "spec.matchResources");
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        if let Some(name) = required(spec, "policyName", &path, errors) {
            let problems = names::is_dns1123_subdomain(name);
            sentences(problems, &path.child("policyName"), name, errors);
        }
        if spec.has("paramRef") {
            param_ref(spec.at("paramRef"), &path.child("paramRef"), errors);
        }
        validate_match(
            spec.at("matchResources"),
            &path.child("matchResources"),
            errors,
        );
        actions(spec, &path.child("validationActions"), errors);
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let param = object.at("spec.paramRef");
        let shown = match (param.text("name"), param.text("namespace")) {
            ("", _) if param.has("selector") => show_selector(param.at("selector")),
            ("", _) => "<unset>".to_owned(),
            (name, "") => format!("*/{name}"),
            (name, namespace) => format!("{namespace}/{name}"),
        };
        cells![object.text("spec.policyName"), shown, age(object, now)]
    }

    fn unconditional_update(&self) -> bool {
        false
    }
}

fn param_ref(param: &Value, path: &Path, errors: &mut Errors) {
    let name = param.text("name");
    let both = !name.is_empty() && param.has("selector");
    let exclusive = "name and selector are mutually exclusive";
    if !name.is_empty() {
        let path = path.child("name");
        sentences(names::is_path_segment(name), &path, name, errors);
        if both {
            errors.forbidden(&path, exclusive);
        }
    }
    if param.has("selector") {
        let path = path.child("selector");
        selector(param.at("selector"), &path, errors);
        if both {
            errors.forbidden(&path, exclusive);
        }
    } else if name.is_empty() {
        errors.required(path, "one of name or selector must be specified");
    }
    let actions = &["Deny", "Allow"];
    one_of(param, "parameterNotFoundAction", actions, path, errors);
}

fn actions(spec: &Value, path: &Path, errors: &mut Errors) {
    let allowed = &["Audit", "Deny", "Warn"];
    let mut seen = HashSet::new();
    for (i, action) in spec.list("validationActions").iter().enumerate() {
        let action = action.as_str().unwrap_or_default();
        if !allowed.contains(&action) {
            errors.not_supported(&path.index(i), action, allowed);
        }
        if !seen.insert(action) {
            errors.duplicate(&path.index(i), action);
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure \
                      information in the API response and headers serves no purpose)";
        errors.invalid(path, spec.at("validationActions").clone(), detail);
    }
    if seen.is_empty() {
        errors.required(path, "at least one validation action is required");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::lines;

    #[test]
    fn a_policy_says_what_it_matches_and_checks() {
        let object = json!({"metadata": {"name": "p"}, "spec": {"failurePolicy": "Fail"}});
        assert_eq!(
            lines(|e| ValidatingAdmissionPolicy.validate(&object, None, e)),
            [
                "spec.matchConstraints: Required value",
                "spec.validations: Required value: validations or auditAnnotations must contain at least \
                 one item",
                "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at \
                 least one item",
            ]
        );
    }

    #[test]
    fn a_binding_says_what_happens() {
        let object = json!({"spec": {"policyName": "p", "validationActions": ["Deny", "Warn"]}});
        let found = lines(|e| ValidatingAdmissionPolicyBinding.validate(&object, None, e));
        assert!(
            found.len() == 1 && found[0].contains("must not contain both Deny and Warn"),
            "{found:?}"
        );
        let object = json!({"spec": {"policyName": "p", "paramRef": {"name": "x"}}});
        assert_eq!(
            ValidatingAdmissionPolicyBinding.row(&object, 0)[..2],
            [json!("p"), json!("*/x")]
        );
    }
}
