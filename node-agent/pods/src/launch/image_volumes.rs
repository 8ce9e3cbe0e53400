//! Volumes that are images (KEP-4639): pulled like a container's image, and mounted by the runtime itself.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod, VolumeMount};
use windlass_cri::v1::{ImageSpec, Mount, PodSandboxConfig};

use super::pull::ensure_image;
use super::start::{StartError, is_older};
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
            refuse_old_runtime(node, container, pod).await?;
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

/// containerd before 2.1 knows nothing of the field and complains of a mount from nowhere; before 2.2 it shows the whole
/// image where a part is asked for (containerd/containerd#11580).
async fn refuse_old_runtime(
    node: &Node,
    container: &Container,
    pod: &Pod,
) -> Result<(), StartError> {
    let failed = |message| StartError::new(FailedStep::Config, message);
    let version = node.runtime.version().await;
    let version = version.map_err(|error| failed(error.to_string()))?;
    let refused = refusal(&version.runtime_name, &version.runtime_version, || {
        let mut wishes = container.volume_mounts.iter().flatten();
        wishes.any(|wish| wants_part(wish) && source(pod, &wish.name).is_some())
    });
    refused.map_or(Ok(()), |message| Err(failed(message)))
}

fn wants_part(wish: &VolumeMount) -> bool {
    [&wish.sub_path, &wish.sub_path_expr]
        .into_iter()
        .flatten()
        .any(|part| !part.is_empty())
}

/// Why the runtime cannot do it, for the user's eyes.
fn refusal(name: &str, number: &str, wants_part: impl FnOnce() -> bool) -> Option<String> {
    if name != "containerd" {
        return None;
    }
    let (what, since) = if is_older(number, (2, 1)) {
        ("mount images as volumes", "2.1")
    } else if is_older(number, (2, 2)) && wants_part() {
        ("mount a part of an image (subPath)", "2.2")
    } else {
        return None;
    };
    Some(format!(
        "container runtime {name} {number} cannot {what}: {since} and later can"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_would_show_something_else_is_not_asked() {
        let refused = |number, part| refusal("containerd", number, || part).is_some();
        assert!(refused("1.6.20~ds1", false));
        assert!(refused("2.1.9+unknown", true));
        assert!(!refused("2.1.9+unknown", false));
        assert!(!refused("v2.2.0", true));
        assert_eq!(refusal("cri-o", "1.33.0", || true), None);
    }
}
