//! The pod's status, computed: a pure function of the object, the runtime's state, what
//! the worker knows, and the time.

mod conditions;
mod containers;
mod phase;
mod qos;
pub(crate) mod writer;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub use qos::{QosClass, qos_class};

use crate::allocation::Allocation;
use crate::memory::Memory;
use crate::model::{host_network, is_terminal};
use crate::plan::Outcome;
use crate::snapshot::Snapshot;

/// What a status is computed from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The newest object, with the status that the API has.
    pub pod: &'a Pod,
    /// The runtime's state.
    pub snapshot: &'a Snapshot,
    /// The worker's knowledge.
    pub memory: &'a Memory,
    /// What its containers were given.
    pub allocation: &'a Allocation,
    /// Whether the pod came to its end.
    pub outcome: &'a Outcome,
    /// The node's addresses, the first one of each family.
    pub node_ips: &'a [String],
    /// `containerd`, `cri-o`: what container ids begin with.
    pub runtime_name: &'a str,
    /// Now.
    pub now: Timestamp,
}

/// The status as it is now. Whatever others write (conditions of their own, nominations)
/// is not in it: it is sent as a patch.
pub fn compute(inputs: &Inputs<'_>) -> PodStatus {
    let pod = inputs.pod;
    let old = pod.status.clone().unwrap_or_default();
    let init_statuses = containers::init_statuses(inputs);
    let statuses = containers::main_statuses(inputs);

    let (mut phase, mut reason, mut message) = (
        phase::compute(inputs, &init_statuses, &statuses),
        None,
        None,
    );
    if let Outcome::Failed(verdict) = inputs.outcome {
        phase = "Failed";
        reason = Some(verdict.reason.clone());
        message = Some(verdict.message.clone());
    } else if is_terminal(pod) {
        // The end is never taken back, and neither is its reason.
        phase = if old.phase.as_deref() == Some("Succeeded") {
            "Succeeded"
        } else {
            "Failed"
        };
        reason = old.reason.clone();
        message = old.message.clone();
    }

    let never_began = matches!(inputs.outcome, Outcome::Failed(_))
        && inputs.snapshot.sandboxes.is_empty()
        && old.container_statuses.is_none();
    let pod_ips = pod_ips(inputs, &old);
    let conditions = conditions::compute(
        inputs,
        phase,
        &init_statuses,
        &statuses,
        &old,
        !pod_ips.is_empty(),
    );
    PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        conditions: Some(conditions),
        host_ip: inputs.node_ips.first().cloned(),
        host_ips: some_list(inputs.node_ips.iter().map(|ip| HostIP { ip: ip.clone() })),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: some_list(pod_ips.into_iter().map(|ip| PodIP { ip })),
        start_time: Some(old.start_time.unwrap_or(Time(inputs.now))),
        // Of a pod that the node did not take there is nothing to say.
        init_container_statuses: some_list(init_statuses.into_iter()).filter(|_| !never_began),
        container_statuses: Some(statuses).filter(|_| !never_began),
        ephemeral_container_statuses: some_list(containers::ephemeral_statuses(inputs).into_iter()),
        qos_class: Some(
            old.qos_class
                .unwrap_or_else(|| qos_class(pod).name().to_owned()),
        ),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// The sandbox's addresses; after its end the last ones stay on record.
fn pod_ips(inputs: &Inputs<'_>, old: &PodStatus) -> Vec<String> {
    if host_network(inputs.pod) {
        // Known before the sandbox, but a pod without sandbox has no address in the API.
        return match inputs.snapshot.sandboxes.first() {
            Some(_) => inputs.node_ips.to_vec(),
            None => Vec::new(),
        };
    }
    let newest = inputs.snapshot.sandboxes.first();
    match newest.filter(|sandbox| !sandbox.ips.is_empty()) {
        Some(sandbox) => sandbox.ips.clone(),
        None => old
            .pod_ips
            .iter()
            .flatten()
            .map(|known| known.ip.clone())
            .collect(),
    }
}

fn some_list<T>(items: impl Iterator<Item = T>) -> Option<Vec<T>> {
    let items: Vec<T> = items.collect();
    (!items.is_empty()).then_some(items)
}

fn is_running(status: &ContainerStatus) -> bool {
    status
        .state
        .as_ref()
        .is_some_and(|state| state.running.is_some())
}

/// How a container ended, if it did: its present state, or the last one if it waits for a
/// new start.
fn ended(
    status: &ContainerStatus,
) -> Option<&k8s_openapi::api::core::v1::ContainerStateTerminated> {
    let state = status.state.as_ref()?;
    if state.terminated.is_some() {
        return state.terminated.as_ref();
    }
    state.waiting.as_ref()?;
    status.last_state.as_ref()?.terminated.as_ref()
}

#[cfg(test)]
mod tests;
