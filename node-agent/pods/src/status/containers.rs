//! Each container's part of the status.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use windlass_machinery::time::format_duration;

use super::Inputs;
use crate::launch::mounts::absolute;
use crate::memory::{CrashBackoff, FailedStep, Failure};
use crate::model::{
    PodId, Role, Slot, ephemeral_slots, init_slots, known_status, main_slots, restarts,
};
use crate::plan::{Outcome, is_initialized, is_started};
use crate::snapshot::{Container, Exit, State};

/// Of the init containers and sidecars.
pub(super) fn init_statuses(inputs: &Inputs<'_>) -> Vec<ContainerStatus> {
    init_slots(inputs.pod)
        .map(|slot| status(inputs, &slot))
        .collect()
}

/// Of the containers that were added while the pod ran.
pub(super) fn ephemeral_statuses(inputs: &Inputs<'_>) -> Vec<ContainerStatus> {
    ephemeral_slots(inputs.pod)
        .map(|slot| status(inputs, &slot))
        .collect()
}

/// Of the main containers.
pub(super) fn main_statuses(inputs: &Inputs<'_>) -> Vec<ContainerStatus> {
    main_slots(inputs.pod)
        .map(|slot| status(inputs, &slot))
        .collect()
}

fn status(inputs: &Inputs<'_>, slot: &Slot<'_>) -> ContainerStatus {
    let known = known_status(inputs.pod, slot.name());
    let mut of_name = inputs.snapshot.of_name(slot.name());
    let Some(newest) = of_name.next() else {
        return without_container(inputs, slot, known);
    };
    let previous = of_name.next();

    let mut state = state(inputs, newest);
    let mut last_state = previous
        .and_then(Container::exit)
        .zip(previous)
        .map(|(exit, container)| terminated(inputs, container, exit));
    if let Some(waiting) = waiting_for_restart(inputs, slot, newest) {
        last_state = Some(std::mem::replace(&mut state, waiting));
    }
    // The runtime keeps few ended containers; what the API remembers is not forgotten.
    let last_state = last_state.or_else(|| known.and_then(|known| known.last_state.clone()));

    let started = newest.is_running() && is_started(slot, newest, inputs.memory);
    let restart_count = i32::try_from(newest.attempt).unwrap_or(i32::MAX);
    ContainerStatus {
        name: slot.name().to_owned(),
        ready: is_ready(inputs, slot, newest, started),
        started: Some(match slot.role {
            Role::Init | Role::Ephemeral => newest.is_running(),
            _ => started,
        }),
        restart_count: restart_count.max(known.map_or(0, |known| known.restart_count)),
        image: image_name(slot, newest),
        image_id: newest.image_id.clone(),
        container_id: Some(container_id(inputs, newest)),
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        allocated_resources: allocated(inputs, slot),
        resources: resources(inputs, slot, newest.is_running()),
        user: newest.user.clone(),
        volume_mounts: volume_mounts(slot, Some(newest)),
        ..ContainerStatus::default()
    }
}

fn without_container(
    inputs: &Inputs<'_>,
    slot: &Slot<'_>,
    known: Option<&ContainerStatus>,
) -> ContainerStatus {
    let ended_before = known.and_then(|known| {
        let state = known.state.as_ref()?;
        let running_before = state.running.as_ref();
        state
            .terminated
            .clone()
            .or_else(|| running_before.map(|_| lost(known)))
    });
    let going =
        *inputs.outcome == Outcome::Going && inputs.pod.metadata.deletion_timestamp.is_none();
    let (state, last_state) = match ended_before {
        // The runtime forgot a container of a pod that is over: its end stays on record.
        Some(end) if !going => (
            ContainerState {
                terminated: Some(end),
                ..empty()
            },
            None,
        ),
        Some(end) => (
            waiting_state(inputs, slot),
            Some(ContainerState {
                terminated: Some(end),
                ..empty()
            }),
        ),
        None => (
            waiting_state(inputs, slot),
            known.and_then(|known| known.last_state.clone()),
        ),
    };
    ContainerStatus {
        name: slot.name().to_owned(),
        image: slot.container.image.clone().unwrap_or_default(),
        image_id: known
            .map(|known| known.image_id.clone())
            .unwrap_or_default(),
        container_id: known.and_then(|known| known.container_id.clone()),
        restart_count: known.map_or(0, |known| known.restart_count),
        ready: false,
        started: Some(false),
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        allocated_resources: allocated(inputs, slot),
        resources: resources(inputs, slot, false),
        volume_mounts: volume_mounts(slot, None),
        ..ContainerStatus::default()
    }
}

/// What the node agreed to give the container.
fn allocated(inputs: &Inputs<'_>, slot: &Slot<'_>) -> Option<BTreeMap<String, Quantity>> {
    let given = inputs.allocation.allocated(slot.name())?;
    given
        .requests
        .clone()
        .filter(|requests| !requests.is_empty())
}

/// What a running container is held to, and any other will get.
fn resources(inputs: &Inputs<'_>, slot: &Slot<'_>, runs: bool) -> Option<ResourceRequirements> {
    let own = match runs {
        true => inputs.allocation.actuated(slot.name()),
        false => inputs.allocation.allocated(slot.name()),
    };
    let own = own.cloned().unwrap_or_default();
    // The claims are the spec's business alone.
    Some(ResourceRequirements {
        claims: None,
        ..own
    })
}

fn volume_mounts(slot: &Slot<'_>, made: Option<&Container>) -> Option<Vec<VolumeMountStatus>> {
    let mounts = slot.container.volume_mounts.iter().flatten();
    let mounts: Vec<_> = mounts
        .map(|mount| {
            // "If possible" is no answer: what the runtime was told is.
            let recursively = made.map_or(
                mount.recursive_read_only.as_deref() == Some("Enabled"),
                |container| {
                    container
                        .read_only_below
                        .contains(&absolute(&mount.mount_path))
                },
            );
            let read_only = mount.read_only.filter(|read_only| *read_only);
            VolumeMountStatus {
                name: mount.name.clone(),
                mount_path: mount.mount_path.clone(),
                read_only,
                recursive_read_only: read_only
                    .map(|_| if recursively { "Enabled" } else { "Disabled" }.to_owned()),
            }
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}

/// A container that ran when it was last seen and that the runtime does not know any more.
fn lost(known: &ContainerStatus) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        container_id: known.container_id.clone(),
        ..ContainerStateTerminated::default()
    }
}

fn empty() -> ContainerState {
    ContainerState::default()
}

fn state(inputs: &Inputs<'_>, container: &Container) -> ContainerState {
    match &container.state {
        State::Running { since } => {
            let started_at = Some(Time(*since));
            ContainerState {
                running: Some(ContainerStateRunning { started_at }),
                ..empty()
            }
        }
        State::Exited(exit) => terminated(inputs, container, exit),
        State::Created => waiting(Some("ContainerCreating"), None),
        State::Unknown => waiting(Some("ContainerStatusUnknown"), None),
    }
}

fn terminated(inputs: &Inputs<'_>, container: &Container, exit: &Exit) -> ContainerState {
    let message = container
        .exit_message
        .clone()
        .unwrap_or_else(|| exit.message.clone());
    let terminated = ContainerStateTerminated {
        exit_code: exit.code,
        reason: Some(exit.reason.clone()),
        message: Some(message).filter(|message| !message.is_empty()),
        started_at: Some(Time(exit.started.unwrap_or(jiff::Timestamp::UNIX_EPOCH))),
        finished_at: Some(Time(exit.finished)),
        container_id: Some(container_id(inputs, container)),
        signal: None,
    };
    ContainerState {
        terminated: Some(terminated),
        ..empty()
    }
}

fn container_id(inputs: &Inputs<'_>, container: &Container) -> String {
    format!("{}://{}", inputs.runtime_name, container.id)
}

/// Runtimes tell the image by its id when a container was made from that; users know its name.
fn image_name(slot: &Slot<'_>, container: &Container) -> String {
    let by_id = container.image.starts_with("sha256:");
    if by_id || container.image.is_empty() {
        return slot.container.image.clone().unwrap_or_default();
    }
    container.image.clone()
}

/// The waiting state of an ended container that will be started again, if it has to wait.
fn waiting_for_restart(
    inputs: &Inputs<'_>,
    slot: &Slot<'_>,
    newest: &Container,
) -> Option<ContainerState> {
    let exit = newest.exit()?;
    let deleted = inputs.pod.metadata.deletion_timestamp.is_some();
    if deleted || *inputs.outcome != Outcome::Going || !restarts(inputs.pod, slot, exit.code) {
        return None;
    }
    if inputs.memory.starting.as_deref() == Some(slot.name()) {
        // Its turn has come: what it shows until then is how the last one ended.
        return None;
    }
    // A container that could not be started has ended too, as far as back-off goes.
    let failure =
        inputs.memory.failures.get(slot.name()).filter(|failure| {
            failure.step != FailedStep::Start || inputs.now < failure.shows_until()
        });
    if let Some(failure) = failure {
        return Some(failure_state(inputs, failure));
    }
    let backoff = inputs.memory.crashes.get(slot.name());
    if CrashBackoff::allows_at(backoff, exit.finished) <= inputs.now {
        return None;
    }
    let delay = backoff.map(CrashBackoff::delay).unwrap_or_default();
    let message = format!(
        "back-off {} restarting failed container={} pod={}",
        format_duration(i64::try_from(delay.as_nanos()).unwrap_or(i64::MAX)),
        slot.name(),
        PodId::of(inputs.pod)
    );
    Some(waiting(Some("CrashLoopBackOff"), Some(message)))
}

/// Why a container was not made yet.
fn waiting_state(inputs: &Inputs<'_>, slot: &Slot<'_>) -> ContainerState {
    if let Some(failure) = inputs.memory.failures.get(slot.name()) {
        return failure_state(inputs, failure);
    }
    let waits_for_init = slot.role == Role::Main
        && init_slots(inputs.pod).next().is_some()
        && !is_initialized(inputs.pod, inputs.snapshot, inputs.memory);
    let has_inits = init_slots(inputs.pod).next().is_some();
    let reason = match slot.role {
        Role::Main if waits_for_init => "PodInitializing",
        Role::Main => "ContainerCreating",
        Role::Ephemeral => "ContainerCreating",
        _ if has_inits => "PodInitializing",
        _ => "ContainerCreating",
    };
    waiting(Some(reason), None)
}

fn failure_state(inputs: &Inputs<'_>, failure: &Failure) -> ContainerState {
    let image = failure.image.as_deref().unwrap_or_default();
    let (reason, message) = match failure.step {
        FailedStep::ImagePull if inputs.now >= failure.shows_until() => (
            "ImagePullBackOff",
            format!(
                "Back-off pulling image {image:?}: ErrImagePull: {}",
                failure.message
            ),
        ),
        FailedStep::ImagePull => ("ErrImagePull", failure.message.clone()),
        FailedStep::ImageName => ("InvalidImageName", failure.message.clone()),
        FailedStep::ImageNeverPull => ("ErrImageNeverPull", failure.message.clone()),
        FailedStep::Config => ("CreateContainerConfigError", failure.message.clone()),
        FailedStep::Create => ("CreateContainerError", failure.message.clone()),
        FailedStep::Start => ("RunContainerError", failure.message.clone()),
        FailedStep::PostStart => ("PostStartHookError", failure.message.clone()),
        FailedStep::Sandbox => ("ContainerCreating", failure.message.clone()),
    };
    waiting(Some(reason), Some(message))
}

fn waiting(reason: Option<&str>, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting {
        reason: reason.map(str::to_owned),
        message,
    };
    ContainerState {
        waiting: Some(waiting),
        ..empty()
    }
}

fn is_ready(inputs: &Inputs<'_>, slot: &Slot<'_>, newest: &Container, started: bool) -> bool {
    match slot.role {
        Role::Init => newest.exit().is_some_and(|exit| exit.code == 0),
        // Nobody is served by it.
        Role::Ephemeral => false,
        _ => {
            let health = inputs.memory.health_of(slot.name(), &newest.id);
            let probed = slot.container.readiness_probe.is_some();
            started && health.map_or(!probed, |health| health.ready)
        }
    }
}
