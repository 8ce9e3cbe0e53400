//! The phase: the one word for where a pod is in its life.

use k8s_openapi::api::core::v1::ContainerStatus;

use super::{Inputs, ended, is_running};
use crate::model::{Role, init_slots, is_static, main_slots, restarts};
use crate::plan::is_initialized;

/// The phase, from the containers' states.
pub(super) fn compute(
    inputs: &Inputs<'_>,
    init_statuses: &[ContainerStatus],
    statuses: &[ContainerStatus],
) -> &'static str {
    // Whoever keeps the object by a finalizer (a Job counting its pods) waits for one of the two words.
    if inputs.memory.ended && !is_static(inputs.pod) {
        return if succeeded(statuses) {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    if !is_initialized(inputs.pod, inputs.snapshot, inputs.memory) {
        let failed = init_slots(inputs.pod)
            .zip(init_statuses)
            .any(|(slot, status)| {
                slot.role == Role::Init
                    && ended(status).is_some_and(|end| {
                        end.exit_code != 0 && !restarts(inputs.pod, &slot, end.exit_code)
                    })
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
    let some_restart = main_slots(inputs.pod).zip(statuses).any(|(slot, status)| {
        ended(status).is_some_and(|end| restarts(inputs.pod, &slot, end.exit_code))
    });
    match (some_restart, succeeded(statuses)) {
        (true, _) => "Running",
        (false, true) => "Succeeded",
        (false, false) => "Failed",
    }
}

fn succeeded(statuses: &[ContainerStatus]) -> bool {
    statuses
        .iter()
        .all(|status| ended(status).is_some_and(|end| end.exit_code == 0))
}
