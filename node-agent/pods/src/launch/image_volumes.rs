//! Volumes that are images (KEP-4639): pulled like a container's image, and mounted by the runtime itself.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};
use windlass_cri::v1::{ImageSpec, Mount, PodSandboxConfig};

use super::start::{StartError, ensure_image, is_older};
use crate::memory::FailedStep;
use crate::model::spec;
use crate::node::Node;

/// By the volume's name.
pub(crate) type ImageVolumes = BTreeMap<String, ImageSpec>;

/// Those that a container mounts, each pulled as its policy says.
pub(crate) async fn ensure(
    node: &Node,
    pod: &Pod,
    container: &Container,
    sandbox_config: &PodSandboxConfig,
) -> Result<ImageVolumes, StartError> {
    let mut ensured = ImageVolumes::new();
    let wishes = container.volume_mounts.iter().flatten();
    for wish in wishes {
        let Some(source) = source(pod, &wish.name).filter(|_| !ensured.contains_key(&wish.name))
        else {
            continue;
        };
        if ensured.is_empty() {
            refuse_old_runtime(node).await?;
        }
        let asked = as_container(container, source);
        let image = ensure_image(node, pod, &asked, sandbox_config).await?;
        let spec = ImageSpec {
            image: image.id,
            user_specified_image: asked.image.unwrap_or_default(),
            ..ImageSpec::default()
        };
        ensured.insert(wish.name.clone(), spec);
    }
    Ok(ensured)
}

/// Where the container sees it: always read-only, and a part of it if it asks for one.
pub(crate) fn mount(image: &ImageSpec, container_path: String, part: Option<String>) -> Mount {
    Mount {
        container_path,
        readonly: true,
        image: Some(image.clone()),
        image_sub_path: part.unwrap_or_default(),
        ..Mount::default()
    }
}

fn source<'a>(pod: &'a Pod, volume: &str) -> Option<&'a ImageVolumeSource> {
    let mut volumes = spec(pod).volumes.iter().flatten();
    volumes.find(|known| known.name == volume)?.image.as_ref()
}

/// What is pulled for `container`, in whose name it is told.
fn as_container(container: &Container, source: &ImageVolumeSource) -> Container {
    Container {
        name: container.name.clone(),
        image: source.reference.clone(),
        image_pull_policy: source.pull_policy.clone(),
        ..Container::default()
    }
}

/// Older ones know nothing of the field, and complain of a mount from nowhere.
async fn refuse_old_runtime(node: &Node) -> Result<(), StartError> {
    let failed = |message| StartError::new(FailedStep::Config, message);
    let version = node.runtime.version().await;
    let version = version.map_err(|error| failed(error.to_string()))?;
    let (name, number) = (version.runtime_name, version.runtime_version);
    match name == "containerd" && is_older(&number, (2, 1)) {
        true => Err(failed(format!(
            "container runtime {name} {number} cannot mount images as volumes: 2.1 and later can"
        ))),
        false => Ok(()),
    }
}
