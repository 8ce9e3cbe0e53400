//! The answers of `authorization.k8s.io` reviews.

use serde_json::{Value, json};

use super::rbac::Rule;
use super::{Attributes, Rbac};
use crate::authn::UserInfo;

/// The attributes that a SubjectAccessReview's `spec` asks about.
pub(crate) fn resource_attributes<'a>(user: &'a UserInfo, spec: &'a Value) -> Attributes<'a> {
    let resource = &spec["resourceAttributes"];
    let path = &spec["nonResourceAttributes"];
    let text = |value: &'a Value| value.as_str().unwrap_or_default();
    let verb = if resource.is_object() {
        &resource["verb"]
    } else {
        &path["verb"]
    };
    Attributes {
        user,
        verb: text(verb),
        group: text(&resource["group"]),
        version: text(&resource["version"]),
        resource: text(&resource["resource"]),
        subresource: text(&resource["subresource"]),
        namespace: text(&resource["namespace"]),
        name: text(&resource["name"]),
        path: text(&path["path"]),
    }
}

/// The `status` of a SelfSubjectRulesReview.
pub(crate) fn rules_review(rbac: &Rbac, user: &UserInfo, namespace: &str) -> Value {
    let rules = rbac.rules_for(user, namespace);
    let (paths, resources): (Vec<&Rule>, Vec<&Rule>) =
        rules.iter().partition(|rule| rule.resources.is_empty());
    json!({
        "incomplete": false,
        "resourceRules": resources.iter().map(|rule| {
            let mut out = json!({
                "verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources,
            });
            if !rule.names.is_empty() {
                out["resourceNames"] = json!(rule.names);
            }
            out
        }).collect::<Vec<_>>(),
        "nonResourceRules": paths.iter().map(|rule| {
            json!({"verbs": rule.verbs, "nonResourceURLs": rule.paths})
        }).collect::<Vec<_>>(),
    })
}
