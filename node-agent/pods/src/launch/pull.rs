//! Getting an image for a container or a volume: from the node if the pod may run what is there, else by a pull.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use windlass_cri::v1::{Image, PodSandboxConfig};
use windlass_machinery::time::format_duration;

use super::image::{PullPolicy, check_name, credentials};
use super::pulled::{Access, Credential};
use super::start::StartError;
use crate::memory::FailedStep;
use crate::model::spec;
use crate::node::Node;
use crate::recorder::Severity;

/// The image on the node, pulled if the policy says so.
pub(super) async fn ensure_image(
    node: &Node,
    pod: &Pod,
    container: &Container,
    sandbox_config: &PodSandboxConfig,
) -> Result<Image, StartError> {
    let image = container.image.as_deref().unwrap_or_default();
    let event = |severity, reason, message: String| {
        node.recorder
            .pod(pod, Some(&container.name), severity, reason, message);
    };
    if let Err(message) = check_name(image) {
        event(Severity::Warning, "InspectFailed", message.clone());
        return Err(StartError::new(FailedStep::ImageName, message));
    }
    let policy = PullPolicy::of(container);
    let present =
        node.runtime.image_status(image).await.map_err(|error| {
            StartError::new(FailedStep::ImagePull, error.message()).of_image(image)
        })?;
    match (policy, present) {
        (PullPolicy::Never, None) => {
            let message =
                format!("Container image {image:?} is not present with pull policy of Never");
            event(Severity::Warning, "ErrImageNeverPull", message.clone());
            return Err(StartError::new(FailedStep::ImageNeverPull, message));
        }
        (policy @ (PullPolicy::Never | PullPolicy::IfNotPresent), Some(found)) => {
            let failed = |message| StartError::new(FailedStep::ImagePull, message).of_image(image);
            let may = may_use(node, pod, image, &found.id).await;
            match (may.map_err(failed)?, policy) {
                (true, _) => {
                    let message = format!(
                        "Container image {image:?} already present on machine and can be accessed by the pod"
                    );
                    event(Severity::Normal, "Pulled", message);
                    return Ok(found);
                }
                (false, PullPolicy::Never) => {
                    let message = format!(
                        "Container image {image:?} is present with pull policy of Never but does not have the proper \
                         auth (image secret) that was used to pull the image"
                    );
                    event(Severity::Warning, "ErrImageNeverPull", message.clone());
                    return Err(StartError::new(FailedStep::ImageNeverPull, message));
                }
                (false, _) => {}
            }
        }
        (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => {}
    }

    event(
        Severity::Normal,
        "Pulling",
        format!("Pulling image {image:?}"),
    );
    let begun = Instant::now();
    match pull(node, pod, image, sandbox_config).await {
        Ok((found, took)) => {
            let message = format!(
                "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {} bytes.",
                milliseconds(took),
                milliseconds(begun.elapsed()),
                found.size
            );
            event(Severity::Normal, "Pulled", message);
            Ok(found)
        }
        Err(message) => {
            let told = format!("Failed to pull image {image:?}: {message}");
            event(Severity::Warning, "Failed", told);
            Err(StartError::new(FailedStep::ImagePull, message).of_image(image))
        }
    }
}

/// In Go's words, as the kubelet says it.
fn milliseconds(duration: Duration) -> String {
    let whole = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    format_duration(whole.saturating_mul(1_000_000))
}

/// Whether the pod may run an image that is there without asking the registry.
async fn may_use(node: &Node, pod: &Pod, image: &str, id: &str) -> Result<bool, String> {
    let access = node.pulled.access(image, id);
    let access =
        access.map_err(|error| format!("who pulled image {image:?} is not readable: {error}"))?;
    if access == Access::Everybody {
        return Ok(true);
    }
    let secrets = pull_secrets(node, pod).await;
    let own = credentials(image, &secrets);
    let own: Vec<_> = own
        .iter()
        .map(|(secret, auth)| Credential::of(secret, auth))
        .collect();
    Ok(access.allows(&own))
}

/// A missing one is no error: the image may be public.
async fn pull_secrets(node: &Node, pod: &Pod) -> Vec<Secret> {
    use windlass_volumes::Objects;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut secrets = Vec::new();
    for reference in spec(pod).image_pull_secrets.iter().flatten() {
        if let Ok(Some(secret)) = node.objects.secret(namespace, &reference.name).await {
            secrets.push((*secret).clone());
        }
    }
    secrets
}

async fn pull(
    node: &Node,
    pod: &Pod,
    image: &str,
    sandbox_config: &PodSandboxConfig,
) -> Result<(Image, Duration), String> {
    let _turn = node.pulls.acquire().await;
    let begun = Instant::now();
    let unnoted = |error: std::io::Error| format!("write down who pulls image {image:?}: {error}");
    let pulling = node.pulled.begin(image).map_err(unnoted)?;
    let pulled = pull_with(node, pod, image, sandbox_config).await;
    let got = pulled.as_ref().ok();
    let got = got.map(|(found, by)| (found.id.as_str(), by.clone()));
    node.pulled.end(pulling, got).map_err(unnoted)?;
    pulled.map(|(found, _)| (found, begun.elapsed()))
}

/// The image, and what it took.
async fn pull_with(
    node: &Node,
    pod: &Pod,
    image: &str,
    sandbox_config: &PodSandboxConfig,
) -> Result<(Image, Option<Credential>), String> {
    let secrets = pull_secrets(node, pod).await;
    let known = credentials(image, &secrets).into_iter();
    let mut attempts: Vec<_> = known
        .map(|(secret, auth)| (Some(Credential::of(secret, &auth)), Some(auth)))
        .collect();
    if attempts.is_empty() {
        attempts.push((None, None));
    }
    let mut problem = String::new();
    for (by, auth) in attempts {
        let pull = node.runtime.pull_image(image, auth, sandbox_config.clone());
        match pull.await {
            Ok(reference) => {
                return match node.runtime.image_status(&reference).await {
                    Ok(Some(found)) => Ok((found, by)),
                    Ok(None) => Err("the image is gone right after its pull".to_owned()),
                    Err(error) => Err(error.message()),
                };
            }
            Err(error) => problem = error.message(),
        }
    }
    Err(problem)
}
