//! What someone may do: `authorization.k8s.io/v1`. Nothing here is stored.

use crate::resource::{Resource, Verbs};

fn review(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("authorization.k8s.io", "v1", kind, plural).verbs(Verbs::Create)
}

pub fn resources() -> Vec<Resource> {
    vec![
        review("LocalSubjectAccessReview", "localsubjectaccessreviews"),
        review("SelfSubjectAccessReview", "selfsubjectaccessreviews").cluster(),
        review("SelfSubjectRulesReview", "selfsubjectrulesreviews").cluster(),
        review("SubjectAccessReview", "subjectaccessreviews").cluster(),
    ]
}
