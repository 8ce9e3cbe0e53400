//! Starting things: a sandbox, and a container from its image to its first hook.

use std::fs;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::Mutex;
use windlass_cri::v1::{Image, UserNamespace};

use super::container::{Parts, config};
use super::image_volumes::ImageVolumes;
use super::pull::ensure_image;
use super::{
    env, handler, hosts, image_volumes, mounts, resources, sandbox, security, user_namespace,
};
use crate::hooks;
use crate::memory::FailedStep;
use crate::model::{PodId, host_network, slot};
use crate::node::Node;
use crate::recorder::Severity;
use crate::snapshot::Sandbox;

/// A start that failed, and where.
#[derive(Debug, Clone)]
pub(crate) struct StartError {
    pub(crate) step: FailedStep,
    pub(crate) message: String,
    /// The image that it is about, if it is about one.
    pub(crate) image: Option<String>,
}

impl StartError {
    pub(super) fn new(step: FailedStep, message: impl Into<String>) -> Self {
        Self {
            step,
            message: message.into(),
            image: None,
        }
    }

    pub(super) fn of_image(self, image: &str) -> Self {
        Self {
            image: Some(image.to_owned()),
            ..self
        }
    }
}

/// Sets up volumes and cgroup, then makes the sandbox.
pub(crate) async fn start_sandbox(node: &Node, pod: &Pod, attempt: u32) -> Result<(), StartError> {
    let failed = |message: String| StartError::new(FailedStep::Sandbox, message);
    let warn = |reason, message: &str| {
        node.recorder
            .pod(pod, None, Severity::Warning, reason, message);
    };
    if let Err(message) = node.set_up_volumes(pod).await {
        warn("FailedMount", &message);
        return Err(failed(message));
    }
    let folder = node.config.pod_folder(&PodId::of(pod).uid);
    if let Err(message) = node.devices.prepare(&node.client, pod, &folder).await {
        let message = format!("Failed to prepare dynamic resources: {message}");
        warn("FailedPrepareDynamicResources", &message);
        return Err(failed(message));
    }
    let make = async {
        let logs = sandbox::log_folder(&node.config, &PodId::of(pod));
        fs::create_dir_all(&logs).map_err(|error| format!("make {}: {error}", logs.display()))?;
        node.cgroups
            .prepare(pod)
            .map_err(|error| format!("make the pod's cgroup: {error}"))?;
        let handler = handler::of(node, pod).await?;
        make_users(node, pod, &handler).await?;
        let config = node.sandbox_config(pod, attempt).await;
        let _turn = node.starts.acquire().await;
        let made = node.runtime.run_pod_sandbox(config, &handler).await;
        made.map_err(|error| error.message())
    };
    match make.await {
        Ok(_) => Ok(()),
        Err(message) => {
            let message = format!("Failed to create pod sandbox: {message}");
            warn("FailedCreatePodSandBox", &message);
            Err(failed(message))
        }
    }
}

/// A pod that asks not to share the node's users must never run with them: it was written in the belief that its root
/// is nobody outside.
async fn make_users(node: &Node, pod: &Pod, handler: &str) -> Result<(), String> {
    if !user_namespace::is_wanted(pod) {
        return Ok(());
    }
    let can = handler::features(&node.runtime, handler).await?;
    if !can.user_namespaces {
        let who = match handler {
            "" => "runtime".to_owned(),
            _ => format!("RuntimeClass handler {handler:?}"),
        };
        return Err(format!(
            "can't set `spec.hostUsers: false`, {who} does not support user namespaces"
        ));
    }
    node.users.allocate(&node.config.pods_folder(), pod)
}

/// Pulls, makes and starts a container, and runs its first hook. Gives the container's id.
/// An ephemeral container shares the processes of the container with the id `target`. Whoever
/// drops this can wait for `in_runtime`: a start that the runtime has begun comes to its end.
pub(crate) async fn start_container(
    node: &Node,
    pod: &Pod,
    name: &str,
    attempt: u32,
    sandbox: &Sandbox,
    target: Option<&str>,
    in_runtime: Arc<Mutex<()>>,
) -> Result<String, StartError> {
    let slot = slot(pod, name)
        .ok_or_else(|| StartError::new(FailedStep::Config, "no such container in the spec"))?;
    let container = &*slot.container;
    if let (Some(name), None) = (slot.target, target) {
        let message = format!("unable to find target container {name:?}: it does not run");
        return Err(StartError::new(FailedStep::Config, message));
    }
    let sandbox_config = node.sandbox_config(pod, sandbox.attempt).await;
    let image = ensure_image(node, pod, container, &sandbox_config).await?;
    let images = image_volumes::ensure(node, pod, container, &sandbox_config).await?;
    let pod_ips = node.pod_ips(pod, sandbox);
    let given = Given {
        attempt,
        image,
        images,
        pod_ips: &pod_ips,
        target,
        users: user_namespace::of_sandbox(&sandbox_config),
    };
    let parts = parts(node, pod, container, given).await;
    let parts = parts.map_err(|message| StartError::new(FailedStep::Config, message))?;
    let config = config(pod, container, parts);
    let event = |severity, reason, message: String| {
        node.recorder
            .pod(pod, Some(name), severity, reason, message);
    };
    let id = {
        let _turn = node.starts.acquire().await;
        let id = node
            .runtime
            .create_container(&sandbox.id, config, sandbox_config)
            .await
            .map_err(|error| StartError::new(FailedStep::Create, error.message()))?;
        event(Severity::Normal, "Created", "Container created".to_owned());
        start_to_the_end(node, &id, in_runtime).await?;
        id
    };
    event(Severity::Normal, "Started", "Container started".to_owned());

    let hooks = container.lifecycle.as_ref();
    if let Some(hook) = hooks.and_then(|hooks| hooks.post_start.as_ref()) {
        let ip = pod_ips.first().and_then(|ip| ip.parse().ok());
        if let Err(message) = hooks::run(&node.runtime, hook, container, &id, ip).await {
            event(Severity::Warning, "FailedPostStartHook", message.clone());
            return Err(StartError::new(FailedStep::PostStart, message));
        }
    }
    Ok(id)
}

/// Whoever drops this does not end what the runtime has begun: a start that is given up half-way would count as failed,
/// with an exit code of its own.
async fn start_to_the_end(
    node: &Node,
    id: &str,
    in_runtime: Arc<Mutex<()>>,
) -> Result<(), StartError> {
    let (runtime, id) = (node.runtime.clone(), id.to_owned());
    let busy = in_runtime.lock_owned().await;
    let start = tokio::spawn(async move {
        let _busy = busy;
        runtime.start_container(&id).await
    });
    let failed = |message: String| StartError::new(FailedStep::Start, message);
    let started = start.await.map_err(|error| failed(error.to_string()))?;
    started.map_err(|error| failed(error.message()))
}

/// What is known of a container before its parts are made.
struct Given<'a> {
    attempt: u32,
    image: Image,
    images: ImageVolumes,
    pod_ips: &'a [String],
    target: Option<&'a str>,
    users: Option<UserNamespace>,
}

/// What a container's configuration is made of. Sets up the pod's volumes, and the folder of the container's logs.
async fn parts(
    node: &Node,
    pod: &Pod,
    container: &Container,
    given: Given<'_>,
) -> Result<Parts, String> {
    let id = PodId::of(pod);
    let volumes = node.set_up_volumes(pod).await?.into_iter().collect();
    let folder = node.config.pod_folder(&id.uid);
    write_hosts(node, pod, given.pod_ips)?;
    let sources = env::Sources {
        pod,
        pod_ips: given.pod_ips,
        node: &node.config.node,
        objects: &*node.objects,
        volumes: &volumes,
        services: node.service_variables(pod).await?,
    };
    let env = env::variables(&sources, container).await?;
    let recursive_read_only = mounts::wants_recursive_read_only(container)
        && handler::features(&node.runtime, &handler::of(node, pod).await?)
            .await?
            .recursive_read_only_mounts;
    let sources = mounts::Sources {
        volumes: &volumes,
        images: &given.images,
        env: &env,
        recursive_read_only,
    };
    let mut mounts = mounts::mounts(&folder, container, given.attempt, sources)?;
    let users = given.users.clone().unwrap_or_default();
    for mount in &mut mounts {
        // What belongs to a user outside belongs to the same one inside.
        (mount.uid_mappings, mount.gid_mappings) = (users.uids.clone(), users.gids.clone());
    }
    let devices = mounts::devices(container, &volumes)?;
    let claimed = claimed_devices(node, pod, container).await?;
    let seccomp_root = node.config.state_dir.join("seccomp");
    let security = security::container(
        pod,
        container,
        &given.image,
        &seccomp_root,
        given.target,
        given.users,
    )?;
    let unified = node.cgroups.is_unified();
    let resources = resources::container(pod, container, &node.config, unified);
    let logs = sandbox::log_folder(&node.config, &id).join(&container.name);
    fs::create_dir_all(&logs).map_err(|error| format!("make {}: {error}", logs.display()))?;
    Ok(Parts {
        attempt: given.attempt,
        image: given.image,
        env,
        mounts,
        devices,
        claimed,
        resources,
        security,
    })
}

/// The devices that a container claims, as the runtime is told of them. A restarted agent has to ask for them first.
async fn claimed_devices(
    node: &Node,
    pod: &Pod,
    container: &Container,
) -> Result<Vec<String>, String> {
    let uid = PodId::of(pod).uid;
    let folder = node.config.pod_folder(&uid);
    node.devices.prepare(&node.client, pod, &folder).await?;
    let claimed = node.devices.cdi_of(&uid, container);
    if claimed.is_empty() {
        return Ok(claimed);
    }
    // Older ones ignore what they do not know: the container would run without.
    let version = node
        .runtime
        .version()
        .await
        .map_err(|error| error.to_string())?;
    let (name, number) = (version.runtime_name, version.runtime_version);
    match name == "containerd" && is_older(&number, (1, 7)) {
        true => Err(format!(
            "container runtime {name} {number} cannot give devices to containers (CDI): 1.7 and later can"
        )),
        false => Ok(claimed),
    }
}

/// Whether a runtime's version is below this one; of one that is written otherwise nobody knows.
pub(super) fn is_older(version: &str, than: (u32, u32)) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.');
    let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
    let (major, minor) = (next(), next());
    major.zip(minor).is_some_and(|version| version < than)
}

fn write_hosts(node: &Node, pod: &Pod, pod_ips: &[String]) -> Result<(), String> {
    let folder = node.config.pod_folder(&PodId::of(pod).uid);
    let path = mounts::hosts_file(&folder);
    let text = if host_network(pod) {
        let own = fs::read_to_string("/etc/hosts").unwrap_or_default();
        hosts::host_network_file(pod, &own)
    } else {
        hosts::pod_file(pod, pod_ips, &node.config.cluster_domain)
    };
    let write = || {
        if fs::read_to_string(&path).is_ok_and(|known| known == text) {
            return Ok(());
        }
        fs::create_dir_all(&folder)?;
        fs::write(&path, &text)
    };
    write().map_err(|error: std::io::Error| format!("write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_their_numbers() {
        assert!(is_older("1.6.20~ds1", (1, 7)) && is_older("v1.10.0", (2, 1)));
        assert!(!is_older("2.1.0-rc.1", (2, 1)) && !is_older("10.0.1", (2, 1)));
        assert!(!is_older("unknown", (2, 1)));
    }
}
