//! A pod in the terms in which the rest of this crate speaks of it.
//!
//! The API object stays the truth; this only names its parts: who it is, which
//! containers it has in which role, and when it is done.

mod ephemeral;
mod restart;

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};

pub use restart::{RestartPolicy, restart_policy, restarts};

/// Which pod: the uid decides, the rest is for people.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodId {
    /// The namespace.
    pub namespace: String,
    /// The name, which a later pod may carry again.
    pub name: String,
    /// Unique for all time.
    pub uid: String,
}

impl PodId {
    /// The identity of an object from the API.
    pub fn of(pod: &Pod) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Self {
            namespace: text(&pod.metadata.namespace),
            name: text(&pod.metadata.name),
            uid: text(&pod.metadata.uid),
        }
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}_{}({})", self.name, self.namespace, self.uid)
    }
}

/// What a container is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before anything later starts.
    Init,
    /// An init container that restarts always: runs beside the main ones (KEP-753).
    Sidecar,
    /// What the pod is about.
    Main,
    /// Added to the running pod by somebody who looks for a fault.
    Ephemeral,
}

/// A container of the spec with its role.
#[derive(Debug, Clone)]
pub struct Slot<'a> {
    /// What it is for.
    pub role: Role,
    /// Its spec.
    pub container: Cow<'a, Container>,
    /// Of an ephemeral container: whose processes it sees.
    pub target: Option<&'a str>,
    name: &'a str,
}

impl<'a> Slot<'a> {
    fn of(role: Role, container: &'a Container) -> Self {
        Self {
            role,
            container: Cow::Borrowed(container),
            target: None,
            name: &container.name,
        }
    }

    /// Its name, unique in the pod.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Whether anything runs before this container counts as started.
    pub(crate) fn has_startup_probe(&self) -> bool {
        self.container.startup_probe.is_some()
    }
}

/// The spec of a pod. Objects from the API always have one.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec
        .as_ref()
        .unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

/// Init containers and sidecars, in the order of their start.
pub(crate) fn init_slots(pod: &Pod) -> impl DoubleEndedIterator<Item = Slot<'_>> {
    spec(pod).init_containers.iter().flatten().map(|container| {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let role = if sidecar { Role::Sidecar } else { Role::Init };
        Slot::of(role, container)
    })
}

/// The main containers.
pub(crate) fn main_slots(pod: &Pod) -> impl DoubleEndedIterator<Item = Slot<'_>> {
    let containers = spec(pod).containers.iter();
    containers.map(|container| Slot::of(Role::Main, container))
}

/// The containers that were added while the pod ran.
pub(crate) fn ephemeral_slots(pod: &Pod) -> impl DoubleEndedIterator<Item = Slot<'_>> {
    let containers = spec(pod).ephemeral_containers.iter().flatten();
    containers.map(|container| Slot {
        role: Role::Ephemeral,
        container: Cow::Owned(ephemeral::as_container(container)),
        target: container
            .target_container_name
            .as_deref()
            .filter(|name| !name.is_empty()),
        name: &container.name,
    })
}

/// The containers that the pod was made with, in the order of their start.
pub fn slots(pod: &Pod) -> impl DoubleEndedIterator<Item = Slot<'_>> {
    init_slots(pod).chain(main_slots(pod))
}

/// All containers, those added later too.
pub(crate) fn all_slots(pod: &Pod) -> impl DoubleEndedIterator<Item = Slot<'_>> {
    slots(pod).chain(ephemeral_slots(pod))
}

/// The container of this name.
pub fn slot<'a>(pod: &'a Pod, name: &str) -> Option<Slot<'a>> {
    all_slots(pod).find(|slot| slot.name() == name)
}

/// Whether the pod lives in the node's network namespace.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// Whether the pod came from a file of the node, not from the API.
pub(crate) fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let source = annotations.and_then(|all| all.get(crate::labels::CONFIG_SOURCE));
    source.is_some_and(|source| source != "api")
}

/// Seconds from the stop signal to the kill, when nothing else was asked for.
pub fn grace_seconds(pod: &Pod) -> i64 {
    let asked = pod.metadata.deletion_grace_period_seconds;
    asked
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(30)
        .max(0)
}

/// Whether the API already says that the pod came to its end; that is never taken back.
pub fn is_terminal(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What the API last heard of the container of this name.
pub(crate) fn known_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    container_status(pod.status.as_ref()?, name)
}

/// What a pod's status says of a container of any role.
pub(crate) fn container_status<'a>(
    status: &'a PodStatus,
    name: &str,
) -> Option<&'a ContainerStatus> {
    let lists = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let mut all = lists.into_iter().flatten().flatten();
    all.find(|known| known.name == name)
}

/// What of a container's spec makes a running one outdated: only the image can be
/// changed in a live pod.
pub(crate) fn container_hash(container: &Container) -> String {
    // FNV-1a: stable over releases, which the standard library's hasher is not.
    let image = container.image.as_deref().unwrap_or_default();
    let hash = image.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:x}")
}
