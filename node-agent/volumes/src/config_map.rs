//! A ConfigMap's keys as files.

use k8s_openapi::api::core::v1::{ConfigMap, ConfigMapProjection, KeyToPath};

use crate::payload::{File, Payload};
use crate::secret::{Keyed, select};
use crate::volume::Context;
use crate::{Error, Result};

/// The files of a ConfigMap, or none if it is missing and optional.
pub(crate) async fn files(
    context: &Context<'_>,
    source: &ConfigMapProjection,
    default_mode: u32,
) -> Result<Payload> {
    let optional = source.optional.unwrap_or(false);
    let found = context
        .objects
        .config_map(context.namespace(), &source.name)
        .await?;
    match found {
        Some(map) => from_object(&map, source.items.as_deref(), default_mode, optional),
        None if optional => Ok(Payload::new()),
        None => Err(Error::Missing {
            kind: "configmap",
            name: source.name.clone(),
        }),
    }
}

fn from_object(
    map: &ConfigMap,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
) -> Result<Payload> {
    let texts = map
        .data
        .iter()
        .flatten()
        .map(|(key, text)| (key.as_str(), text.as_bytes()));
    let bytes = map
        .binary_data
        .iter()
        .flatten()
        .map(|(key, bytes)| (key.as_str(), &bytes.0[..]));
    let keyed: Keyed<'_> = texts.chain(bytes).collect();
    select("config", &keyed, items, optional, |content, own_mode| {
        File {
            content: content.to_vec(),
            mode: own_mode.unwrap_or(mode),
            owner: None,
        }
    })
}
