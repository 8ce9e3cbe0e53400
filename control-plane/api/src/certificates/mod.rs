//! Requests for certificates: `certificates.k8s.io/v1`.

pub mod signing_request;

use crate::resource::{NameRule, Resource, Subresource as Sub};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            "certificates.k8s.io",
            "v1",
            "CertificateSigningRequest",
            "certificatesigningrequests",
        )
        .cluster()
        .short("csr")
        .names(NameRule::PathSegment)
        .with(Sub::Approval)
        .status()
        .columns("Age, SignerName, Requestor, RequestedDuration, Condition")
        .rules(signing_request::CertificateSigningRequest),
    ]
}
