//! Approves what kubelets ask for themselves: their first client certificate and its renewals. Who may is said by rights to two
//! subresources that exist for nothing else, so that an administrator decides once and not for each request.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;
use rcgen::CertificateSigningRequestParams;
use tracing::info;

use super::rules::{Signer, check, common_name};
use crate::runtime::{Context, Result, ResultExt as _};

/// Approves the request if it is one of these and its author may have it.
pub(super) async fn approve(context: &Context, request: &CertificateSigningRequest) -> Result<()> {
    let Some(asked) = node_of(request) else {
        return Ok(());
    };
    let spec = &request.spec;
    let is_own = spec.username.as_deref() == Some(asked.as_str());
    let rights = [
        (
            "selfnodeclient",
            "Auto approving self kubelet client certificate after SubjectAccessReview.",
        ),
        (
            "nodeclient",
            "Auto approving kubelet client certificate after SubjectAccessReview.",
        ),
    ];
    for (subresource, message) in rights.into_iter().skip(usize::from(!is_own)) {
        if !may(context, request, subresource).await? {
            continue;
        }
        let mut approved = request.clone();
        let now = Time(jiff::Timestamp::now());
        let condition = CertificateSigningRequestCondition {
            type_: "Approved".to_owned(),
            status: "True".to_owned(),
            reason: Some("AutoApproved".to_owned()),
            message: Some(message.to_owned()),
            last_update_time: Some(now.clone()),
            last_transition_time: Some(now),
        };
        let status = approved.status.get_or_insert_default();
        status.conditions.get_or_insert_default().push(condition);
        let name = request.metadata.name.as_deref().unwrap_or_default();
        let api = context.cluster_api::<CertificateSigningRequest>();
        let params = PostParams::default();
        let answer = api
            .replace_subresource("approval", name, &params, &approved)
            .await;
        answer.doing(|| format!("approve {name}"))?;
        info!(name, node = asked, "approved a node's certificate");
        return Ok(());
    }
    Ok(())
}

/// The user that a kubelet's request is for; nothing if it is no such request.
fn node_of(request: &CertificateSigningRequest) -> Option<String> {
    let spec = &request.spec;
    let signer = Signer::named(&spec.signer_name).filter(|it| *it == Signer::KubeletClient)?;
    let pem = std::str::from_utf8(&spec.request.0).ok()?;
    let parsed = CertificateSigningRequestParams::from_pem(pem).ok()?;
    let usages = spec.usages.clone().unwrap_or_default();
    check(signer, &parsed, &usages).ok()?;
    common_name(&parsed.params)
}

async fn may(
    context: &Context,
    request: &CertificateSigningRequest,
    subresource: &str,
) -> Result<bool> {
    let author = &request.spec;
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: author.username.clone(),
            uid: author.uid.clone(),
            groups: author.groups.clone(),
            extra: author.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".to_owned()),
                resource: Some("certificatesigningrequests".to_owned()),
                subresource: Some(subresource.to_owned()),
                verb: Some("create".to_owned()),
                version: Some("*".to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api = context.cluster_api::<SubjectAccessReview>();
    let answer = api.create(&PostParams::default(), &review).await;
    let answer =
        answer.doing(|| format!("ask whether {:?} may have a certificate", author.username))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
