//! The pod's own token for the API server or another audience.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccountTokenProjection;

use crate::payload::File;
use crate::volume::Context;
use crate::{Result, TokenSpec};

const DEFAULT_SECONDS: i64 = 3600;

/// The token's file, and when it is to be replaced.
pub(crate) async fn file(
    context: &Context<'_>,
    source: &ServiceAccountTokenProjection,
    default_mode: u32,
) -> Result<(File, Timestamp)> {
    let metadata = &context.pod.metadata;
    let account = context
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.clone());
    let spec = TokenSpec {
        namespace: context.namespace().to_owned(),
        service_account: account
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".to_owned()),
        pod_name: metadata.name.clone().unwrap_or_default(),
        pod_uid: metadata.uid.clone().unwrap_or_default(),
        audience: source
            .audience
            .clone()
            .filter(|audience| !audience.is_empty()),
        expiration_seconds: source.expiration_seconds.unwrap_or(DEFAULT_SECONDS),
    };
    let token = context.objects.token(&spec).await?;
    // Where every container runs as the same user, only that user may read it; where there is a
    // group for the pod's volumes, it and nobody else.
    let owner = only_user(context);
    let mode = match owner.is_some() || context.group().is_some() {
        true => 0o600,
        false => default_mode,
    };
    Ok((
        File {
            content: token.token.into_bytes(),
            mode,
            owner,
        },
        token.renew_at,
    ))
}

fn only_user(context: &Context<'_>) -> Option<u32> {
    let spec = context.pod.spec.as_ref()?;
    let pod_wide = spec
        .security_context
        .as_ref()
        .and_then(|security| security.run_as_user);
    let mut users = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|c| {
            c.security_context
                .as_ref()
                .and_then(|security| security.run_as_user)
                .or(pod_wide)
        });
    let first = users.next()??;
    users
        .all(|user| user == Some(first))
        .then(|| u32::try_from(first).ok())?
}
