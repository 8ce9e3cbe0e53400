//! Fields of the pod as files.

use k8s_openapi::api::core::v1::DownwardAPIVolumeFile;

use crate::payload::{File, Payload};
use crate::volume::Context;
use crate::{Error, Result, downward};

/// The files of a downward API volume.
pub(crate) fn files(
    context: &Context<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: u32,
) -> Result<Payload> {
    let mut files = Payload::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            downward::field(context.pod, &[], context.node, &field.field_path)?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let spec = context.pod.spec.as_ref();
            let container = spec
                .into_iter()
                .flat_map(|spec| {
                    spec.containers
                        .iter()
                        .chain(spec.init_containers.iter().flatten())
                })
                .find(|container| container.name == name)
                .ok_or_else(|| Error::Field(format!("container {name:?} not found")))?;
            downward::resource(container, context.node, selector)?
        } else {
            return Err(Error::Field(format!(
                "{}: neither a field nor a resource",
                item.path
            )));
        };
        let mode = item
            .mode
            .and_then(|mode| u32::try_from(mode).ok())
            .unwrap_or(default_mode);
        let file = File {
            content: text.into_bytes(),
            mode,
            owner: None,
        };
        files.insert(item.path.clone(), file);
    }
    Ok(files)
}
