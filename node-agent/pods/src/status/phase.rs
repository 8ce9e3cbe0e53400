//! The phase: the one word for where a pod is in its life.

use k8s_openapi::api::core::v1::ContainerStatus;

use super::{Inputs, ended, is_running};
use crate::model::{RestartPolicy, Role, init_slots, restart_policy};
use crate::plan::is_initialized;

/// The phase, from the containers' states.
pub(super) fn compute(
    inputs: &Inputs<'_>,
    init_statuses: &[ContainerStatus],
    statuses: &[ContainerStatus],
) -> &'static str {
    let policy = restart_policy(inputs.pod);
    if !is_initialized(inputs.pod, inputs.snapshot, inputs.memory) {
        let failed = init_slots(inputs.pod)
            .zip(init_statuses)
            .any(|(slot, status)| {
                slot.role == Role::Init
                    && policy == RestartPolicy::Never
                    && ended(status).is_some_and(|end| end.exit_code != 0)
            });
        return if failed { "Failed" } else { "Pending" };
    }
    if statuses
        .iter()
        .any(|status| !is_running(status) && ended(status).is_none())
    {
        return "Pending";
    }
    if statuses.iter().any(is_running) {
        return "Running";
    }
    // A sidecar may still be on its way out: the pod is done when it is gone.
    if init_slots(inputs.pod)
        .zip(init_statuses)
        .any(|(slot, status)| slot.role == Role::Sidecar && is_running(status))
    {
        return "Running";
    }
    let succeeded = statuses
        .iter()
        .all(|status| ended(status).is_some_and(|end| end.exit_code == 0));
    match policy {
        RestartPolicy::Always => "Running",
        _ if succeeded => "Succeeded",
        RestartPolicy::Never => "Failed",
        RestartPolicy::OnFailure => "Running",
    }
}
