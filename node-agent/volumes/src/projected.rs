//! Several sources in one folder.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ProjectedVolumeSource;

use crate::payload::Payload;
use crate::volume::Context;
use crate::{Error, Result, config_map, downward_api, secret, service_account_token};

/// The files of all sources, a later one winning, and when the first token is due.
pub(crate) async fn files(
    context: &Context<'_>,
    volume: &str,
    source: &ProjectedVolumeSource,
    default_mode: u32,
) -> Result<(Payload, Option<Timestamp>)> {
    let mut files = Payload::new();
    let mut due: Option<Timestamp> = None;
    for projection in source.sources.iter().flatten() {
        if let Some(source) = &projection.config_map {
            files.extend(config_map::files(context, source, default_mode).await?);
        } else if let Some(source) = &projection.secret {
            files.extend(secret::files(context, source, default_mode).await?);
        } else if let Some(source) = &projection.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            files.extend(downward_api::files(context, items, default_mode)?);
        } else if let Some(source) = &projection.service_account_token {
            let (file, renew_at) =
                service_account_token::file(context, source, default_mode).await?;
            files.insert(source.path.clone(), file);
            due = Some(due.map_or(renew_at, |due| due.min(renew_at)));
        } else {
            return Err(Error::Unsupported {
                name: volume.to_owned(),
            });
        }
    }
    Ok((files, due))
}
