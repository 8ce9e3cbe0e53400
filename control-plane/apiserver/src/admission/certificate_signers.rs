//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction: who approves or signs for a signer must be
//! allowed to for that signer, and nobody asks the API server's signer for the group that may do everything.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use windlass_machinery::status::ApiError;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;

use super::{Attributes, Operation, Plugin};
use crate::authn::GROUP_MASTERS;
use crate::authz;

pub(super) struct CertificateSigners;

const GROUP: &str = "certificates.k8s.io";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

#[async_trait]
impl Plugin for CertificateSigners {
    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        let Some(object) = object.filter(|_| attributes.is(GROUP, "certificatesigningrequests"))
        else {
            return Ok(());
        };
        match (attributes.operation, attributes.subresource, attributes.old) {
            (Operation::Create, "", _) => {
                check_subject(object).map_err(|why| attributes.forbidden(&why))
            }
            (Operation::Update, "approval", Some(old)) => check_right(attributes, "approve", old),
            (Operation::Update, "status", Some(old)) => {
                let signs = ["certificate", "conditions"]
                    .iter()
                    .any(|field| object["status"][field] != old["status"][field]);
                if signs {
                    check_right(attributes, "sign", old)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The right may be for the signer or for all of its domain.
fn check_right(attributes: &Attributes<'_>, verb: &str, request: &Value) -> Result<(), ApiError> {
    let context = attributes.context;
    let signer = request["spec"]["signerName"].as_str().unwrap_or_default();
    let domain = signer.split('/').next().unwrap_or_default();
    let may = |name: &str| {
        context.may(&authz::Attributes {
            user: &context.user,
            verb,
            group: GROUP,
            version: "*",
            resource: "signers",
            subresource: "",
            namespace: "",
            name,
            path: "",
        })
    };
    if may(signer) || may(&format!("{domain}/*")) {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(attributes.forbidden(&why))
}

fn check_subject(request: &Value) -> Result<(), String> {
    let spec = &request["spec"];
    if spec["signerName"] != CLIENT_SIGNER {
        return Ok(());
    }
    let unreadable = |why: &dyn std::fmt::Display| format!("failed to parse CSR: {why}");
    let pem = STANDARD
        .decode(spec["request"].as_str().unwrap_or_default())
        .map_err(|error| unreadable(&error))?;
    let (_, block) = parse_x509_pem(&pem).map_err(|error| unreadable(&error))?;
    let (_, parsed) =
        X509CertificationRequest::from_der(&block.contents).map_err(|error| unreadable(&error))?;
    let mut organizations = parsed
        .certification_request_info
        .subject
        .iter_organization();
    if organizations.any(|group| group.as_str().is_ok_and(|group| group == GROUP_MASTERS)) {
        return Err(format!(
            "use of {CLIENT_SIGNER} signer with {GROUP_MASTERS} group is not allowed"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};
    use serde_json::json;

    use super::*;

    #[test]
    fn nobody_asks_for_the_group_that_may_do_everything() {
        let asking = |signer: &str, group: &str| {
            let mut params = CertificateParams::default();
            let name = &mut params.distinguished_name;
            name.push(DnType::CommonName, "ann");
            name.push(DnType::OrganizationName, group);
            let key = KeyPair::generate().unwrap();
            let pem = params.serialize_request(&key).unwrap().pem().unwrap();
            json!({"spec": {"signerName": signer, "request": STANDARD.encode(pem)}})
        };
        assert_eq!(check_subject(&asking(CLIENT_SIGNER, "devs")), Ok(()));
        assert_eq!(
            check_subject(&asking("example.com/own", GROUP_MASTERS)),
            Ok(())
        );
        assert_eq!(
            check_subject(&asking(CLIENT_SIGNER, GROUP_MASTERS)).unwrap_err(),
            "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"
        );
    }
}
