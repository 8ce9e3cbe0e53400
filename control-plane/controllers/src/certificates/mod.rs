//! CertificateSigningRequests: signs what was approved, within each signer's rules, and clears old
//! requests away. Who may approve is the API server's business; kubelets' own requests are approved here.

mod approval;
mod rules;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use rcgen::{CertificateSigningRequestParams, Issuer, KeyPair};
use tracing::info;
use windlass_informers::{Informer, Key};

use self::rules::{Signer, check, restrict};
use crate::{
    config::SigningCa,
    runtime::{Context, Controller, Outcome, Queue, Result, delete, patch_status, run_workers},
};

/// Upstream's `--cluster-signing-duration`.
const LONGEST: SignedDuration = SignedDuration::from_hours(24 * 365);
/// Clocks differ: a certificate is valid from a little before it was made.
const BACKDATED: SignedDuration = SignedDuration::from_mins(5);
/// How long requests are kept: answered ones, and ones that nobody answers.
const KEEP_ANSWERED: SignedDuration = SignedDuration::from_hours(1);
const KEEP_PENDING: SignedDuration = SignedDuration::from_hours(24);

struct Certificates {
    context: Context,
    requests: Arc<Informer<CertificateSigningRequest>>,
    authority: SigningCa,
}

pub(crate) async fn start(context: Context) {
    let Some(authority) = context.config.signing_ca.clone() else {
        return;
    };
    let queue = Queue::new();
    let (requests,) = context.synced::<(CertificateSigningRequest,)>().await;
    let _own = queue.follow(&requests);
    let controller = Arc::new(Certificates {
        context: context.clone(),
        requests,
        authority,
    });
    run_workers(controller, queue, 1, &context.cancel).await;
}

fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == kind && c.status == "True")
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    let certificate = request
        .status
        .as_ref()
        .and_then(|status| status.certificate.as_ref());
    certificate.is_some_and(|bytes| !bytes.0.is_empty())
}

/// When the request is cleared away.
fn expiry(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let conditions = request
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let answered = conditions
        .into_iter()
        .flatten()
        .filter_map(|c| {
            c.last_update_time
                .as_ref()
                .or(c.last_transition_time.as_ref())
        })
        .map(|time| time.0)
        .max();
    match answered {
        Some(at) => at.checked_add(KEEP_ANSWERED).ok(),
        None => {
            let created = request.metadata.creation_timestamp.as_ref()?.0;
            created.checked_add(KEEP_PENDING).ok()
        }
    }
}

impl Controller for Certificates {
    type Key = Key;
    const NAME: &'static str = "certificatesigningrequest";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(request) = self.requests.by_key(key) else {
            return Ok(Outcome::Done);
        };
        let api = self.context.cluster_api::<CertificateSigningRequest>();
        let now = Timestamp::now();
        let left = expiry(&request).map(|at| at.duration_since(now));
        if left.is_some_and(|left| !left.is_positive()) {
            info!(
                name = key.name,
                "clearing away a certificate signing request"
            );
            delete(&api, request.as_ref()).await?;
            return Ok(Outcome::Done);
        }
        let later = left.and_then(|left| Duration::try_from(left).ok());
        let later = later.map_or(Outcome::Done, Outcome::Again);
        let answered = ["Approved", "Denied", "Failed"];
        if !answered.iter().any(|kind| has(&request, kind)) {
            approval::approve(&self.context, &request).await?;
            return Ok(later);
        }
        let due = has(&request, "Approved")
            && !has(&request, "Denied")
            && !has(&request, "Failed")
            && !is_issued(&request);
        let Some(signer) = Signer::named(&request.spec.signer_name).filter(|_| due) else {
            return Ok(later);
        };
        let mut updated = request.as_ref().clone();
        let status = updated.status.get_or_insert_default();
        match sign(&self.authority, signer, &request, now) {
            Ok(certificate) => {
                info!(
                    name = key.name,
                    signer = request.spec.signer_name,
                    "signed a certificate"
                );
                status.certificate = Some(ByteString(certificate.into_bytes()));
            }
            Err(why) => {
                status.conditions.get_or_insert_default().push(
                    CertificateSigningRequestCondition {
                        type_: "Failed".to_owned(),
                        status: "True".to_owned(),
                        reason: Some("SignerValidationFailure".to_owned()),
                        message: Some(why),
                        last_update_time: Some(Time(now)),
                        last_transition_time: Some(Time(now)),
                    },
                );
            }
        }
        patch_status(&api, request.as_ref(), &updated).await?;
        Ok(later)
    }
}

/// The PEM of the certificate, or why there is none.
fn sign(
    authority: &SigningCa,
    signer: Signer,
    request: &CertificateSigningRequest,
    now: Timestamp,
) -> Result<String, String> {
    let pem = std::str::from_utf8(&request.spec.request.0)
        .map_err(|_| "the request is not PEM".to_owned())?;
    let mut parsed = CertificateSigningRequestParams::from_pem(pem)
        .map_err(|error| format!("unable to parse the request: {error}"))?;
    let usages = request.spec.usages.clone().unwrap_or_default();
    check(signer, &parsed, &usages)?;
    restrict(&mut parsed.params, &usages)?;
    let asked = request
        .spec
        .expiration_seconds
        .map(|s| SignedDuration::from_secs(s.into()));
    let lifetime = asked.unwrap_or(LONGEST).min(LONGEST);
    parsed.params.not_before = SystemTime::from(now - BACKDATED).into();
    parsed.params.not_after = SystemTime::from(now + lifetime).into();
    parsed.params.use_authority_key_identifier_extension = true;
    let broken = |error: rcgen::Error| format!("the cluster's CA cannot sign: {error}");
    let key = KeyPair::from_pem(&authority.key_pem).map_err(broken)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate_pem, key).map_err(broken)?;
    let certificate = parsed.signed_by(&issuer).map_err(broken)?;
    Ok(certificate.pem())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, IsCa};
    use serde_json::json;

    use super::*;

    fn authority() -> SigningCa {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "kubernetes");
        let certificate_pem = params.self_signed(&key).unwrap().pem();
        SigningCa {
            certificate_pem,
            key_pem: key.serialize_pem(),
        }
    }

    fn request(usage: &str) -> CertificateSigningRequest {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "ann");
        let key = KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        serde_json::from_value(json!({
            "metadata": {"name": "ann", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"request": ByteString(pem.into_bytes()), "usages": [usage],
                "signerName": "kubernetes.io/kube-apiserver-client"},
        }))
        .unwrap()
    }

    #[test]
    fn a_request_becomes_a_certificate_or_a_reason() {
        let now = Timestamp::now();
        let signed = sign(&authority(), Signer::Client, &request("client auth"), now);
        assert!(signed.unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
        let refused = sign(&authority(), Signer::Client, &request("server auth"), now);
        assert_eq!(
            refused.unwrap_err(),
            "usage \"server auth\" is not allowed by this signer"
        );
    }

    #[test]
    fn answered_requests_are_kept_an_hour_and_others_a_day() {
        let mut asked = request("client auth");
        let at = |text: &str| text.parse::<Timestamp>().ok();
        assert_eq!(expiry(&asked), at("2026-01-02T00:00:00Z"));
        asked.status = serde_json::from_value(json!({"conditions": [{"type": "Denied",
            "status": "True", "lastUpdateTime": "2026-01-01T10:00:00Z"}]}))
        .unwrap();
        assert_eq!(expiry(&asked), at("2026-01-01T11:00:00Z"));
    }
}
