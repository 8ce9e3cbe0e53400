//! A container for the runtime.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, Pod};
use windlass_cri::v1::{
    CdiDevice, ContainerConfig, ContainerMetadata, Device, Image, ImageSpec, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, Mount, Signal,
};

use super::expansion::expand;
use super::sandbox::identity;
use crate::labels;
use crate::model::{PodId, container_hash, grace_seconds};

/// What a container is made from, each part prepared by its own file.
pub(crate) struct Parts {
    /// How often one of this name was started before.
    pub(crate) attempt: u32,
    /// What to run.
    pub(crate) image: Image,
    /// Its environment.
    pub(crate) env: BTreeMap<String, String>,
    /// What it sees of the node.
    pub(crate) mounts: Vec<Mount>,
    /// Block devices of the node that it gets.
    pub(crate) devices: Vec<Device>,
    /// Devices that it claims, as the Container Device Interface names them.
    pub(crate) claimed: Vec<String>,
    /// Its limits.
    pub(crate) resources: LinuxContainerResources,
    /// Its rights.
    pub(crate) security: LinuxContainerSecurityContext,
}

/// The configuration of one container.
pub(crate) fn config(pod: &Pod, container: &Container, parts: Parts) -> ContainerConfig {
    let id = PodId::of(pod);
    let env = &parts.env;
    let lookup = |name: &str| env.get(name).cloned();
    let expanded = |texts: &Option<Vec<String>>| -> Vec<String> {
        texts
            .iter()
            .flatten()
            .map(|text| expand(text, &lookup))
            .collect()
    };
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    let mut container_labels: HashMap<String, String> = identity(&id).into();
    container_labels.insert(labels::CONTAINER_NAME.to_owned(), container.name.clone());
    let stop_signal = container
        .lifecycle
        .as_ref()
        .and_then(|hooks| hooks.stop_signal.as_deref());
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: container.name.clone(),
            attempt: parts.attempt,
        }),
        image: Some(ImageSpec {
            image: parts.image.id.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..ImageSpec::default()
        }),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels: container_labels,
        annotations: annotations(pod, container, parts.attempt),
        log_path: format!("{}/{}.log", container.name, parts.attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        mounts: parts.mounts,
        devices: parts.devices,
        cdi_devices: parts
            .claimed
            .into_iter()
            .map(|name| CdiDevice { name })
            .collect(),
        linux: Some(LinuxContainerConfig {
            resources: Some(parts.resources),
            security_context: Some(parts.security),
        }),
        stop_signal: stop_signal
            .and_then(|name| {
                Signal::from_str_name(&name.replace('+', "PLUS").replace('-', "MINUS"))
            })
            .unwrap_or_default()
            .into(),
        envs: parts
            .env
            .into_iter()
            .map(|(key, value)| KeyValue { key, value })
            .collect(),
    }
}

fn annotations(pod: &Pod, container: &Container, attempt: u32) -> HashMap<String, String> {
    let message_path = container
        .termination_message_path
        .clone()
        .unwrap_or_else(|| DEFAULT_MESSAGE_PATH.into());
    let policy = container
        .termination_message_policy
        .clone()
        .unwrap_or_else(|| "File".to_owned());
    [
        (labels::CONTAINER_HASH, container_hash(container)),
        (labels::RESTART_COUNT, attempt.to_string()),
        (labels::TERMINATION_MESSAGE_PATH, message_path),
        (labels::TERMINATION_MESSAGE_POLICY, policy),
        (labels::GRACE_PERIOD, grace_seconds(pod).to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// Where a container writes its last words if it does not say otherwise.
pub(crate) const DEFAULT_MESSAGE_PATH: &str = "/dev/termination-log";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn commands_are_expanded_from_the_environment() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{
                "name": "c", "image": "img:1", "command": ["run", "$(A)"],
                "args": ["$(B)", "$$(A)"],
                "lifecycle": {"stopSignal": "SIGRTMIN+3"},
            }]},
        }))
        .unwrap();
        let parts = Parts {
            attempt: 3,
            image: Image {
                id: "sha256:1".into(),
                ..Image::default()
            },
            env: [("A".to_owned(), "1".to_owned())].into(),
            mounts: vec![],
            devices: vec![],
            claimed: vec!["vendor.example/gpu=0".into()],
            resources: LinuxContainerResources::default(),
            security: LinuxContainerSecurityContext::default(),
        };
        let container = &crate::model::spec(&pod).containers[0];
        let config = config(&pod, container, parts);
        assert_eq!(config.command, ["run", "1"]);
        assert_eq!(config.args, ["$(B)", "$(A)"]);
        assert_eq!(config.log_path, "c/3.log");
        assert_eq!(config.labels[labels::CONTAINER_NAME], "c");
        assert_eq!(config.annotations[labels::RESTART_COUNT], "3");
        assert_eq!(config.image.as_ref().unwrap().image, "sha256:1");
        assert_eq!(config.stop_signal(), Signal::Sigrtminplus3);
    }
}
