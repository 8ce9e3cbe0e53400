//! Who a token or a request belongs to: `authentication.k8s.io/v1`. Nothing here is stored.

use crate::resource::{Resource, Verbs};

pub fn resources() -> Vec<Resource> {
    [
        ("SelfSubjectReview", "selfsubjectreviews"),
        ("TokenReview", "tokenreviews"),
    ]
    .into_iter()
    .map(|(kind, plural)| {
        Resource::new("authentication.k8s.io", "v1", kind, plural)
            .cluster()
            .verbs(Verbs::Create)
    })
    .collect()
}
