//! What was approved is signed, within the signer's rules.

use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use serde_json::json;
use windlass_controllers::{ControllersConfig, SigningCa};

use crate::world::{World, from, until};

fn authority() -> SigningCa {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    SigningCa {
        certificate_pem: params.self_signed(&key).unwrap().pem(),
        key_pem: key.serialize_pem(),
    }
}

fn request(name: &str, usage: &str) -> CertificateSigningRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    from(
        json!({"metadata": {"name": name}, "spec": {"usages": [usage],
        "request": ByteString(pem.into_bytes()),
        "signerName": "kubernetes.io/kube-apiserver-client"}}),
    )
}

#[tokio::test]
async fn an_approved_request_gets_its_certificate_and_an_improper_one_a_reason() {
    let config = ControllersConfig {
        signing_ca: Some(authority()),
        ..Default::default()
    };
    let world = World::start_with(0, config).await;
    let requests: Api<CertificateSigningRequest> = Api::all(world.client.clone());
    let approval = json!({"status": {"conditions": [
        {"type": "Approved", "status": "True", "reason": "Test", "message": ""}]}});
    for (name, usage) in [("ann", "client auth"), ("server", "server auth")] {
        requests
            .create(&PostParams::default(), &request(name, usage))
            .await
            .unwrap();
        let patch = Patch::Merge(&approval);
        let params = PatchParams::default();
        requests
            .patch_subresource("approval", name, &params, &patch)
            .await
            .unwrap();
    }
    let issued = |request: &CertificateSigningRequest| {
        request
            .status
            .as_ref()
            .is_some_and(|status| status.certificate.is_some())
    };
    let signed = until(&requests, "ann", issued).await;
    let pem = signed.status.unwrap().certificate.unwrap().0;
    assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----"));
    let failed = |request: &CertificateSigningRequest| {
        let status = request.status.clone().unwrap_or_default();
        status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Failed")
    };
    assert!(!issued(&until(&requests, "server", failed).await));
}
