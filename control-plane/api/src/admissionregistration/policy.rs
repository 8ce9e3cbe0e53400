//! ValidatingAdmissionPolicies and their bindings. Their expressions are compiled by the admission chain.

use std::collections::HashSet;

use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::matching;
use crate::resource::Strategy;
use crate::table::{age, cells, selector as show_selector};
use crate::tree::{self, Tree};
use crate::validate::labels::selector;
use crate::validate::{optional_one_of, required, sentences};

pub struct ValidatingAdmissionPolicy;

const REASONS: &[&str] = &[
    "Forbidden",
    "Invalid",
    "RequestEntityTooLarge",
    "Unauthorized",
];

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
    matching::selectors(resources, path, errors);
    optional_one_of(resources, "matchPolicy", matching::POLICIES, path, errors);
    for list in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in resources.list(list).iter().enumerate() {
            matching::rule(rule, &path.child(list).index(i), errors);
        }
    }
}

impl Strategy for ValidatingAdmissionPolicy {
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

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = object.at("spec");
        matching::failure_policy(spec, &path, errors);
        if spec.has("paramKind") {
            let path = path.child("paramKind");
            required(spec.at("paramKind"), "apiVersion", &path, errors);
            required(spec.at("paramKind"), "kind", &path, errors);
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
        let conditions = spec.list("matchConditions");
        matching::conditions(conditions, &path.child("matchConditions"), errors);
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
        for (i, annotation) in annotations.iter().enumerate() {
            let path = path.child("auditAnnotations").index(i);
            let key = annotation.text("key");
            let full = format!("{}/{key}", object.text("metadata.name"));
            if key.is_empty() {
                errors.required(&path.child("key"), "");
            } else {
                sentences(
                    names::is_qualified_name(&full),
                    &path.child("key"),
                    key,
                    errors,
                );
            }
            if annotation.text("valueExpression").trim().is_empty() {
                errors.required(
                    &path.child("valueExpression"),
                    "valueExpression is not specified",
                );
            }
        }
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

fn variables(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, variable) in spec.list("variables").iter().enumerate() {
        let path = path.child("variables").index(i);
        let name = variable.text("name");
        if name.is_empty() {
            errors.required(&path.child("name"), "name is not specified");
        } else if !names::is_c_identifier(name).is_empty() {
            errors.invalid(
                &path.child("name"),
                name,
                "name is not a valid CEL identifier",
            );
        } else if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        if variable.text("expression").trim().is_empty() {
            errors.required(&path.child("expression"), "expression is not specified");
        }
    }
}

fn validate_one(validation: &Value, path: &Path, errors: &mut Errors) {
    if validation.text("expression").trim().is_empty() {
        errors.required(&path.child("expression"), "expression is not specified");
    }
    let message = validation.at("message").as_str();
    if message.is_some_and(|m| m.trim().is_empty()) && message != Some("") {
        let detail = "message must be non-empty if specified";
        errors.invalid(&path.child("message"), message.unwrap_or_default(), detail);
    } else if message.is_some_and(|m| m.contains('\n')) {
        let detail = "message must not contain line breaks";
        errors.invalid(&path.child("message"), message.unwrap_or_default(), detail);
    }
    optional_one_of(validation, "reason", REASONS, path, errors);
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
    match (name.is_empty(), param.has("selector")) {
        (false, true) => errors.forbidden(
            &path.child("name"),
            "name and selector are mutually exclusive",
        ),
        (true, false) => errors.required(path, "one of name or selector must be specified"),
        (false, false) => {
            sentences(
                names::is_dns1123_subdomain(name),
                &path.child("name"),
                name,
                errors,
            );
        }
        (true, true) => selector(param.at("selector"), &path.child("selector"), errors),
    }
    match param.text("parameterNotFoundAction") {
        "" => errors.required(&path.child("parameterNotFoundAction"), ""),
        "Allow" | "Deny" => {}
        other => {
            errors.not_supported(
                &path.child("parameterNotFoundAction"),
                other,
                &["Allow", "Deny"],
            );
        }
    }
}

fn actions(spec: &Value, path: &Path, errors: &mut Errors) {
    let list = spec.list("validationActions");
    if list.is_empty() {
        errors.required(path, "");
    }
    let mut seen = HashSet::new();
    for (i, action) in list.iter().enumerate() {
        let action = action.as_str().unwrap_or_default();
        if !["Audit", "Deny", "Warn"].contains(&action) {
            errors.not_supported(&path.index(i), action, &["Audit", "Deny", "Warn"]);
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
