//! Webhooks and policies of admission: `admissionregistration.k8s.io/v1`.

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
        .columns("#Webhooks, Age"),
        admission("ValidatingAdmissionPolicy", "validatingadmissionpolicies")
            .status()
            .columns("#Validations, ParamKind, Age"),
        admission(
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        )
        .columns("PolicyName, ParamRef, Age"),
        admission(
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfigurations",
        )
        .columns("#Webhooks, Age"),
    ]
}
