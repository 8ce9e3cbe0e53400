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

#[tokio::test]
async fn a_kubelets_own_request_is_approved_and_nobody_elses() {
    let config = ControllersConfig {
        signing_ca: Some(authority()),
        ..Default::default()
    };
    let world = World::start_with(0, config).await;
    let requests: Api<CertificateSigningRequest> = Api::all(world.client.clone());
    let ask = async |name: &str, organization: &str, signer: &str| {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:a");
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        let key = KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let request = from(
            json!({"metadata": {"name": name}, "spec": {"usages": ["digital signature", "client auth"],
            "request": ByteString(pem.into_bytes()), "signerName": format!("kubernetes.io/{signer}")}}),
        );
        requests
            .create(&PostParams::default(), &request)
            .await
            .unwrap();
    };
    ask("user", "system:nodes", "kube-apiserver-client").await;
    ask("master", "system:masters", "kube-apiserver-client-kubelet").await;
    // Last: when it is answered, the others have been looked at.
    ask("node", "system:nodes", "kube-apiserver-client-kubelet").await;
    let is_issued = |request: &CertificateSigningRequest| {
        let status = request.status.as_ref();
        status.is_some_and(|status| status.certificate.is_some())
    };
    let issued = until(&requests, "node", is_issued).await;
    let conditions = issued.status.unwrap().conditions.unwrap();
    assert_eq!(conditions[0].reason.as_deref(), Some("AutoApproved"));
    for name in ["user", "master"] {
        let status = requests.get(name).await.unwrap().status.unwrap_or_default();
        assert_eq!(status.conditions.unwrap_or_default(), [], "{name}");
    }
}
