//! Webhooks and policies of admission: `admissionregistration.k8s.io/v1`.

pub mod matching;
pub mod policy;
pub mod webhook;

use crate::resource::Resource;

fn admission(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("admissionregistration.k8s.io", "v1", kind, plural)
        .cluster()
        .category("api-extensions")
}

pub fn resources() -> Vec<Resource> {
    vec![
        admission(
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfigurations",
        )
        .columns("#Webhooks, Age")
        .rules(webhook::WebhookConfiguration { mutating: true }),
        admission("ValidatingAdmissionPolicy", "validatingadmissionpolicies")
            .status()
            .columns("#Validations, ParamKind, Age")
            .rules(policy::ValidatingAdmissionPolicy),
        admission(
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        )
        .columns("PolicyName, ParamRef, Age")
        .rules(policy::ValidatingAdmissionPolicyBinding),
        admission(
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfigurations",
        )
        .columns("#Webhooks, Age")
        .rules(webhook::WebhookConfiguration { mutating: false }),
    ]
}
