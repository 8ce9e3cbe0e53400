//! What the cluster says of a driver and its volumes: secrets, the pod's identity, the attachment.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::SecretReference;
use k8s_openapi::api::storage::v1::CSIDriver;
use serde_json::json;

use super::{Csi, CsiVolume, unique_name};
use crate::volume::Context;
use crate::{Error, Result, TokenSpec};

const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
const TOKEN_SECONDS: i64 = 3600;

/// Whether volumes of the driver are attached to nodes before they are mounted there.
pub(super) fn attaches(driver: Option<&CSIDriver>) -> bool {
    driver.is_none_or(|driver| driver.spec.attach_required != Some(false))
}

/// Whether the driver serves such volumes at all.
pub(super) fn check_lifecycle(volume: &CsiVolume, driver: Option<&CSIDriver>) -> Result<()> {
    let mode = if volume.ephemeral {
        "Ephemeral"
    } else {
        "Persistent"
    };
    let declared = driver.and_then(|driver| driver.spec.volume_lifecycle_modes.clone());
    let modes = declared.filter(|modes| !modes.is_empty());
    let modes = modes.unwrap_or_else(|| vec!["Persistent".to_owned()]);
    match modes.iter().any(|known| known == mode) {
        true => Ok(()),
        false => Err(Error::Field(format!(
            "volume mode {mode:?} not supported by driver {} (only supports {modes:?})",
            volume.driver
        ))),
    }
}

/// A secret that the volume refers to, as text.
pub(super) async fn secret(
    context: &Context<'_>,
    reference: Option<&SecretReference>,
) -> Result<HashMap<String, String>> {
    let Some(reference) = reference else {
        return Ok(HashMap::new());
    };
    let name = reference.name.as_deref().unwrap_or_default();
    let namespace = reference.namespace.as_deref().unwrap_or_default();
    let found = context.objects.secret(namespace, name).await?;
    let found = found.ok_or_else(|| Error::Missing {
        kind: "secret",
        name: format!("{namespace}/{name}"),
    })?;
    let data = found.data.iter().flatten();
    Ok(data
        .map(|(key, value)| (key.clone(), String::from_utf8_lossy(&value.0).into_owned()))
        .collect())
}

/// Adds to the volume's attributes what the driver wants to know of the pod: its names and its tokens. Tokens go among
/// the secrets where the driver asks for that.
pub(super) async fn tell_of_pod(
    context: &Context<'_>,
    volume: &CsiVolume,
    driver: Option<&CSIDriver>,
    attributes: &mut HashMap<String, String>,
    secrets: &mut HashMap<String, String>,
) -> Result<()> {
    let Some(driver) = driver else {
        return Ok(());
    };
    let metadata = &context.pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let account = context.pod.spec.as_ref();
    let account = account.and_then(|spec| spec.service_account_name.clone());
    if driver.spec.pod_info_on_mount == Some(true) {
        let facts = [
            ("pod.name", text(&metadata.name)),
            ("pod.namespace", context.namespace().to_owned()),
            ("pod.uid", text(&metadata.uid)),
            ("serviceAccount.name", text(&account)),
            ("ephemeral", volume.ephemeral.to_string()),
        ];
        let facts = facts.map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value));
        attributes.extend(facts);
    }
    let requests = driver.spec.token_requests.as_deref().unwrap_or_default();
    if requests.is_empty() {
        return Ok(());
    }
    let mut tokens = BTreeMap::new();
    for request in requests {
        let spec = TokenSpec {
            namespace: context.namespace().to_owned(),
            service_account: account.clone().unwrap_or_else(|| "default".to_owned()),
            pod_name: text(&metadata.name),
            pod_uid: text(&metadata.uid),
            audience: Some(request.audience.clone()).filter(|audience| !audience.is_empty()),
            expiration_seconds: request.expiration_seconds.unwrap_or(TOKEN_SECONDS),
        };
        let token = context.objects.token(&spec).await?;
        tokens.insert(
            request.audience.clone(),
            json!({"token": token.token, "expirationTimestamp": token.expires_at.to_string()}),
        );
    }
    let text = serde_json::to_string(&tokens).unwrap_or_default();
    match driver.spec.service_account_token_in_secrets {
        Some(true) => secrets.insert(TOKENS.to_owned(), text),
        _ => attributes.insert(TOKENS.to_owned(), text),
    };
    Ok(())
}

/// What the attachment of a volume to this node told. An error until it is attached: the volume's name stands in the
/// Node's status before, so that nobody detaches it while it is being mounted.
pub(super) async fn attachment(
    context: &Context<'_>,
    csi: &Csi,
    volume: &CsiVolume,
) -> Result<HashMap<String, String>> {
    let disk = unique_name(&volume.driver, &volume.handle);
    csi.announce(&disk).await?;
    let name = volume.attachment_name(&csi.node_name);
    let found = context.objects.attachment(&disk, &name).await?;
    let status = found.as_ref().and_then(|found| found.status.as_ref());
    match status {
        Some(status) if status.attached => {
            let metadata = status.attachment_metadata.clone().unwrap_or_default();
            Ok(metadata.into_iter().collect())
        }
        Some(status) => {
            let problem = status.attach_error.as_ref();
            let problem = problem.and_then(|error| error.message.clone());
            let problem = problem.unwrap_or_else(|| "it is being attached".to_owned());
            Err(Error::Field(format!(
                "volume {disk} is not attached to the node: {problem}"
            )))
        }
        None => Err(Error::Field(format!(
            "volume {disk} is not attached according to node status"
        ))),
    }
}
