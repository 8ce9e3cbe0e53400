//! Configurations of validating and mutating webhooks.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::matching;
use crate::resource::Strategy;
use crate::table::{age, cells};
use crate::tree::{self, Tree, each};
use crate::validate::numbers::service_port;
use crate::validate::{optional_one_of, sentences};

pub struct WebhookConfiguration {
    pub mutating: bool,
}

const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun", "Some", "Unknown"];
const NO_SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];

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

    fn validate(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let kept = old.map(|old| Kept::of(object, old)).unwrap_or_default();
        let mut seen = HashSet::new();
        for (i, webhook) in object.list("webhooks").iter().enumerate() {
            let path = Path::new("webhooks").index(i);
            self.validate_webhook(webhook, &kept, &path, errors);
            let name = webhook.text("name");
            if !kept.repeated_names && !name.is_empty() && !seen.insert(name) {
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
    fn validate_webhook(&self, webhook: &Value, kept: &Kept, path: &Path, errors: &mut Errors) {
        qualified_name(webhook.text("name"), &path.child("name"), errors);
        for (i, rule) in webhook.list("rules").iter().enumerate() {
            matching::rule(rule, &path.child("rules").index(i), errors);
        }
        matching::failure_policy(webhook, path, errors);
        optional_one_of(webhook, "matchPolicy", matching::POLICIES, path, errors);
        let side_effects: &[&str] = if kept.side_effects {
            SIDE_EFFECTS
        } else {
            &NO_SIDE_EFFECTS
        };
        if !webhook.has("sideEffects") {
            let detail = format!("must specify one of {}", side_effects.join(", "));
            errors.required(&path.child("sideEffects"), detail);
        }
        optional_one_of(webhook, "sideEffects", side_effects, path, errors);
        let seconds = webhook.int("timeoutSeconds");
        if let Some(seconds) = seconds.filter(|s| !(1..=30).contains(s)) {
            let detail = "the timeout value must be between 1 and 30 seconds";
            errors.invalid(&path.child("timeoutSeconds"), seconds, detail);
        }
        matching::selectors(webhook, !kept.selector_values, path, errors);
        if self.mutating {
            let policies = &["IfNeeded", "Never"];
            optional_one_of(webhook, "reinvocationPolicy", policies, path, errors);
        }
        let config = webhook.at("clientConfig");
        client_config(config, &path.child("clientConfig"), errors);
        if !kept.conditions {
            let conditions = webhook.list("matchConditions");
            matching::conditions(conditions, &path.child("matchConditions"), errors);
        }
        let versions = webhook.at("admissionReviewVersions");
        let path = path.child("admissionReviewVersions");
        let missing = "must specify one of v1, v1beta1";
        review_versions(versions, !kept.review_versions, &path, missing, errors);
    }
}

/// Which rules a configuration need not keep, since it did not before.
#[derive(Default)]
struct Kept {
    side_effects: bool,
    review_versions: bool,
    repeated_names: bool,
    selector_values: bool,
    /// They are as they were.
    conditions: bool,
}

impl Kept {
    fn of(new: &Value, old: &Value) -> Self {
        let (webhooks, news) = (old.list("webhooks"), new.list("webhooks"));
        let reviews = |webhook: &Value| {
            let versions = webhook.list("admissionReviewVersions");
            versions.is_empty() || versions.iter().any(is_review_version)
        };
        let names: HashSet<_> = webhooks
            .iter()
            .map(|webhook| webhook.text("name"))
            .collect();
        let has_bad_selector = |webhook: &Value| {
            let mut errors = Errors::new();
            matching::selectors(webhook, true, &Path::root(), &mut errors);
            !errors.is_empty()
        };
        let conditions = |webhook: &Value| webhook.at("matchConditions").clone();
        Self {
            side_effects: webhooks
                .iter()
                .any(|webhook| !NO_SIDE_EFFECTS.contains(&webhook.text("sideEffects"))),
            review_versions: !webhooks.iter().all(reviews),
            repeated_names: names.len() < webhooks.len(),
            selector_values: webhooks.iter().any(has_bad_selector),
            conditions: webhooks.len() == news.len()
                && webhooks
                    .iter()
                    .zip(news)
                    .all(|(old, new)| conditions(old) == conditions(new)),
        }
    }
}

fn qualified_name(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let problems = names::is_dns1123_subdomain(name);
    if !problems.is_empty() {
        return errors.invalid(path, name, problems.join(","));
    }
    if name.split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        errors.invalid(path, name, detail);
    }
}

/// Whether a version of reviews is one that servers know.
pub fn is_review_version(version: &Value) -> bool {
    REVIEW_VERSIONS.iter().any(|known| version == known)
}

/// Versions of the reviews that a webhook can answer; `known`: one of them must be one of ours. `missing` is said where
/// there are none.
pub fn review_versions(
    versions: &Value,
    known: bool,
    path: &Path,
    missing: &str,
    errors: &mut Errors,
) {
    let list = versions.as_array().map_or(&[][..], Vec::as_slice);
    if list.is_empty() {
        return errors.required(path, missing);
    }
    let mut seen = HashSet::new();
    for (i, version) in list.iter().enumerate() {
        let version = version.as_str().unwrap_or_default();
        let path = path.index(i);
        if seen.insert(version) {
            sentences(names::is_dns1035_label(version), &path, version, errors);
        } else {
            errors.invalid(&path, version, "duplicate version");
        }
    }
    if known && !list.iter().any(is_review_version) {
        let detail = "must include at least one of v1, v1beta1";
        errors.invalid(path, versions.clone(), detail);
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
            // Upstream takes each of these two for the other (kubernetes/kubernetes#141353).
            for (shown, field) in [("name", "namespace"), ("namespace", "name")] {
                if service.text(field).is_empty() {
                    errors.required(&path.child(shown), "");
                }
            }
            service_port(service, &path, errors);
            service_path(service.text("path"), &path.child("path"), errors);
        }
    }
}

/// Each segment of a path is a name.
fn service_path(text: &str, path: &Path, errors: &mut Errors) {
    if text.is_empty() || text == "/" {
        return;
    }
    if text == "//" {
        return errors.invalid(path, text, "segment[0] may not be empty");
    }
    if !text.starts_with('/') {
        errors.invalid(path, text, "must start with a '/'");
    }
    // Upstream leaves the first character out whatever it is.
    let mut characters = text.chars();
    characters.next();
    let rest = characters.as_str();
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    for (i, segment) in rest.split('/').enumerate() {
        if segment.is_empty() {
            errors.invalid(path, text, format!("segment[{i}] may not be empty"));
            continue;
        }
        for problem in names::is_dns1123_subdomain(segment) {
            errors.invalid(path, text, format!("segment[{i}]: {problem}"));
        }
    }
}

fn check_url(url: &str, path: &Path, errors: &mut Errors) {
    let form = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
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
                "webhooks[0].rules[0].operations[0]: Unsupported value: \"READ\": supported values: \
                 \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"",
                "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and \
                 30 seconds",
                "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL \
                 scheme; desired format: https://host[/path]",
                "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1",
            ]
        );
    }
}
