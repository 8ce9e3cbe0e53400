//! Configurations of validating and mutating webhooks.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::matching;
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree, each};
use crate::validate::numbers::port;
use crate::validate::{optional_one_of, sentences};

pub struct WebhookConfiguration {
    pub mutating: bool,
}

const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

impl Strategy for WebhookConfiguration {
    fn default(&self, object: &mut Value) {
        for webhook in each(object, "webhooks") {
            tree::fill(webhook, "failurePolicy", "Fail");
            tree::fill(webhook, "matchPolicy", "Equivalent");
            matching::default_selectors(webhook);
            matching::default_rules(webhook, "rules");
            tree::fill(webhook, "timeoutSeconds", 10);
            if self.mutating {
                tree::fill(webhook, "reinvocationPolicy", "Never");
            }
            tree::fill_in(webhook, "clientConfig.service.port", 443);
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value, _old: Option<&Value>, errors: &mut Errors) {
        let mut seen = HashSet::new();
        for (i, webhook) in object.list("webhooks").iter().enumerate() {
            let path = Path::new("webhooks").index(i);
            self.validate_webhook(webhook, &path, errors);
            let name = webhook.text("name");
            if !name.is_empty() && !seen.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
    }

    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        cells![object.list("webhooks").len(), age(object, now)]
    }

    fn unconditional_update(&self) -> bool {
        false
    }
}

impl WebhookConfiguration {
    fn validate_webhook(&self, webhook: &Value, path: &Path, errors: &mut Errors) {
        qualified_name(webhook.text("name"), &path.child("name"), errors);
        review_versions(webhook, path, errors);
        for (i, rule) in webhook.list("rules").iter().enumerate() {
            matching::rule(rule, &path.child("rules").index(i), errors);
        }
        matching::failure_policy(webhook, path, errors);
        optional_one_of(webhook, "matchPolicy", matching::POLICIES, path, errors);
        let side_effects = &["None", "NoneOnDryRun"];
        match webhook.text("sideEffects") {
            "" => {
                errors.required(
                    &path.child("sideEffects"),
                    "must specify one of None, NoneOnDryRun",
                );
            }
            other if !side_effects.contains(&other) => {
                errors.not_supported(&path.child("sideEffects"), other, side_effects);
            }
            _ => {}
        }
        if let Some(seconds) = webhook
            .int("timeoutSeconds")
            .filter(|s| !(1..=30).contains(s))
        {
            let detail = "the timeout value must be between 1 and 30 seconds";
            errors.invalid(&path.child("timeoutSeconds"), seconds, detail);
        }
        matching::selectors(webhook, path, errors);
        if self.mutating {
            optional_one_of(
                webhook,
                "reinvocationPolicy",
                &["IfNeeded", "Never"],
                path,
                errors,
            );
        }
        client_config(
            webhook.at("clientConfig"),
            &path.child("clientConfig"),
            errors,
        );
        let conditions = webhook.list("matchConditions");
        matching::conditions(conditions, &path.child("matchConditions"), errors);
    }
}

fn qualified_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    sentences(names::is_dns1123_subdomain(name), path, name, errors);
    if name.split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        errors.invalid(path, name, detail);
    }
}

fn review_versions(webhook: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("admissionReviewVersions");
    let versions = webhook.list("admissionReviewVersions");
    if versions.is_empty() {
        errors.required(&path, "must specify one of v1, v1beta1");
        return;
    }
    let mut seen = HashSet::new();
    for (i, version) in versions.iter().enumerate() {
        let version = version.as_str().unwrap_or_default();
        if !seen.insert(version) {
            errors.invalid(&path.index(i), version, "duplicate version");
        }
        sentences(
            names::is_dns1035_label(version),
            &path.index(i),
            version,
            errors,
        );
    }
    if !REVIEW_VERSIONS.iter().any(|version| seen.contains(version)) {
        let value = webhook.at("admissionReviewVersions").clone();
        errors.invalid(&path, value, "must include at least one of v1, v1beta1");
    }
}

/// How a webhook is reached: exactly one of a URL and a Service. Conversion webhooks share this.
pub fn client_config(config: &Value, path: &Path, errors: &mut Errors) {
    let (url, service) = (config.at("url").as_str(), config.at("service"));
    match (url, service.is_null()) {
        (Some(_), false) | (None, true) => {
            errors.required(path, "exactly one of url or service is required");
        }
        (Some(url), true) => check_url(url, &path.child("url"), errors),
        (None, false) => {
            let path = path.child("service");
            for field in ["name", "namespace"] {
                if service.text(field).is_empty() {
                    errors.required(&path.child(field), format!("service {field} is required"));
                }
            }
            let http_path = service.text("path");
            if !http_path.is_empty() && !http_path.starts_with('/') {
                errors.invalid(&path.child("path"), http_path, "must start with a '/'");
            }
            if let Some(number) = service.int("port") {
                port(number, &path.child("port"), errors);
            }
        }
    }
}

fn check_url(url: &str, path: &Path, errors: &mut Errors) {
    let form = "; desired format: https://host[/path]";
    let Some((scheme, rest)) = url.split_once("://") else {
        errors.invalid(
            path,
            url,
            format!("'https' is the only allowed URL scheme{form}"),
        );
        return;
    };
    if scheme != "https" {
        errors.invalid(
            path,
            scheme,
            format!("'https' is the only allowed URL scheme{form}"),
        );
    }
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() {
        errors.invalid(path, host, format!("host must be specified{form}"));
    }
    if let Some((user, _)) = host.rsplit_once('@') {
        errors.invalid(path, user, "user information is not permitted in the URL");
    }
    if let Some((_, fragment)) = rest.split_once('#') {
        errors.invalid(path, fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = rest.split_once('?') {
        errors.invalid(path, query, "query parameters are not permitted in the URL");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    const KIND: WebhookConfiguration = WebhookConfiguration { mutating: true };

    #[test]
    fn a_usual_webhook_is_completed_and_has_no_faults() {
        let mut object = json!({"webhooks": [{
            "name": "a.b.example",
            "clientConfig": {"service": {"name": "s", "namespace": "n"}},
            "rules": [{
                "operations": ["CREATE"],
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "resources": ["pods"],
            }],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }]});
        KIND.default(&mut object);
        let webhook = &object["webhooks"][0];
        assert_eq!(webhook["timeoutSeconds"], 10);
        assert_eq!(webhook["clientConfig"]["service"]["port"], 443);
        assert_eq!(webhook["rules"][0]["scope"], "*");
        assert_eq!(webhook["reinvocationPolicy"], "Never");
        assert!(
            lines(|e| KIND.validate(&object, None, e)).is_empty(),
            "{:?}",
            lines(|e| KIND.validate(&object, None, e))
        );
    }

    #[test]
    fn faults_carry_their_field_and_kubernetes_words() {
        let object = json!({"webhooks": [{
            "name": "short",
            "clientConfig": {"url": "http://x"},
            "rules": [{"operations": ["READ"], "apiGroups": ["a"], "apiVersions": ["v1"], "resources": ["x"]}],
            "timeoutSeconds": 31,
        }]});
        assert_eq!(
            lines(|e| KIND.validate(&object, None, e)),
            [
                "webhooks[0].name: Invalid value: \"short\": should be a domain with at least three \
                 segments separated by dots",
                "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1",
                "webhooks[0].rules[0].operations[0]: Unsupported value: \"READ\": supported values: \
                 \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"",
                "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and \
                 30 seconds",
                "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL \
                 scheme; desired format: https://host[/path]",
            ]
        );
    }
}
