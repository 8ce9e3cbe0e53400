//! The admission plugin over the Pod Security Standards.

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::status::ApiError;

use super::{Level, Policy, violations};
use crate::admission::{Attributes, Operation, Plugin};

/// Refuses pods that break their namespace's enforced level, and warns about its warn level; workloads are
/// only warned about, since it is their pods that are refused.
pub(crate) struct PodSecurity;

/// Where each kind keeps a pod's metadata and spec; the metadata lies beside the spec.
const TEMPLATES: &[(&str, &str, &str)] = &[
    ("", "replicationcontrollers", "/spec/template"),
    ("", "podtemplates", "/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "replicasets", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("batch", "jobs", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
];

#[async_trait]
impl Plugin for PodSecurity {
    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        let Some(object) = object.filter(|_| attributes.operation != Operation::Delete) else {
            return Ok(());
        };
        if !matches!(
            attributes.subresource,
            "" | "ephemeralcontainers" | "resize"
        ) {
            return Ok(());
        }
        let (group, plural) = (attributes.endpoint.group(), attributes.endpoint.plural());
        let (template, is_pod) = if (group, plural) == ("", "pods") {
            (Some(object), true)
        } else {
            let known = TEMPLATES
                .iter()
                .find(|(g, p, _)| (*g, *p) == (group, plural));
            (
                known.and_then(|(_, _, pointer)| object.pointer(pointer)),
                false,
            )
        };
        let Some(template) = template else {
            return Ok(());
        };
        if is_pod
            && attributes
                .old
                .is_some_and(|old| old["spec"] == template["spec"])
        {
            return Ok(());
        }
        let policy = policy_of(attributes);
        let broken = |level| violations(level, &template["metadata"], &template["spec"]);
        if is_pod
            && policy.enforce.level > Level::Privileged
            && let Some(text) = broken(&policy.enforce)
        {
            let why = format!("violates PodSecurity \"{}\": {text}", policy.enforce);
            return Err(attributes.forbidden(&why));
        }
        // Upstream stays silent where enforcement has just let the same level pass.
        let enforced = is_pod && policy.warn == policy.enforce;
        if !enforced && let Some(text) = broken(&policy.warn) {
            let level = &policy.warn;
            attributes
                .context
                .warn(format!("would violate PodSecurity \"{level}\": {text}"));
        }
        Ok(())
    }
}

fn policy_of(attributes: &Attributes<'_>) -> Policy {
    let namespaces = attributes.context.server.cacher("", "namespaces");
    let namespace = namespaces
        .and_then(|namespaces| namespaces.get("", attributes.namespace))
        .and_then(|entry| entry.decode().ok());
    Policy::from_labels(
        namespace
            .as_ref()
            .and_then(|n| n["metadata"]["labels"].as_object()),
    )
}
