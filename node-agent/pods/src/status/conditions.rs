//! The conditions that the node's agent answers for.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Inputs;
use crate::model::{Role, init_slots, spec};
use crate::plan::{Outcome, is_initialized};

/// The conditions that go away again; whoever writes the status takes them off.
pub(super) const RESIZE_PENDING: &str = "PodResizePending";
pub(super) const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn holds() -> Self {
        Self {
            holds: true,
            reason: None,
            message: None,
        }
    }

    fn fails(reason: &'static str, message: Option<String>) -> Self {
        Self {
            holds: false,
            reason: Some(reason),
            message,
        }
    }
}

/// All of them, with the times of their last change kept.
pub(super) fn compute(
    inputs: &Inputs<'_>,
    phase: &str,
    init_statuses: &[ContainerStatus],
    statuses: &[ContainerStatus],
    old: &PodStatus,
    has_address: bool,
) -> Vec<PodCondition> {
    let sandbox_is_up = inputs.snapshot.live_sandbox().is_some() && has_address;
    let containers_ready = containers_ready(inputs, phase, init_statuses, statuses);
    let ready = ready(inputs, old, &containers_ready);
    let verdicts = [
        (
            "PodReadyToStartContainers",
            Verdict {
                holds: sandbox_is_up,
                reason: None,
                message: None,
            },
        ),
        ("Initialized", initialized(inputs, phase, init_statuses)),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::holds()),
    ];
    verdicts
        .into_iter()
        .map(|(type_, verdict)| condition(inputs, old, type_, verdict))
        .chain(disruption(inputs, old))
        .chain(resize(inputs, old))
        .collect()
}

/// That the pod was ended for the sake of the node, by which jobs tell it from a failure of
/// its own (KEP-3329).
fn disruption(inputs: &Inputs<'_>, old: &PodStatus) -> Option<PodCondition> {
    let Outcome::Failed(verdict) = inputs.outcome else {
        return None;
    };
    verdict.disruption.then(|| {
        let told = Verdict {
            holds: true,
            reason: Some("TerminationByKubelet"),
            message: Some(verdict.message.clone()),
        };
        condition(inputs, old, "DisruptionTarget", told)
    })
}

/// Where a change of the pod's resources stands; absent when there is none.
fn resize(inputs: &Inputs<'_>, old: &PodStatus) -> Vec<PodCondition> {
    let resize = &inputs.memory.resize;
    let told = |type_: &str, reason: Option<String>, message: Option<String>, generation| {
        let verdict = Verdict {
            holds: true,
            reason: None,
            message,
        };
        PodCondition {
            reason,
            observed_generation: generation,
            ..condition(inputs, old, type_, verdict)
        }
    };
    let pending = resize.pending.as_ref().map(|pending| {
        let (reason, message) = (pending.reason.clone(), pending.message.clone());
        told(
            RESIZE_PENDING,
            Some(reason),
            Some(message),
            pending.generation,
        )
    });
    let in_progress = resize.in_progress.as_ref().map(|progress| {
        let reason = progress.error.as_ref().map(|_| "Error".to_owned());
        told(
            RESIZE_IN_PROGRESS,
            reason,
            progress.error.clone(),
            progress.generation,
        )
    });
    pending.into_iter().chain(in_progress).collect()
}

fn condition(inputs: &Inputs<'_>, old: &PodStatus, type_: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let known = old
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_);
    let unchanged = known.filter(|known| known.status == status);
    let since = unchanged.and_then(|known| known.last_transition_time.clone());
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: Some(since.unwrap_or(Time(inputs.now))),
        last_probe_time: None,
        observed_generation: inputs.pod.metadata.generation,
    }
}

fn initialized(inputs: &Inputs<'_>, phase: &str, init_statuses: &[ContainerStatus]) -> Verdict {
    if phase == "Succeeded" {
        return Verdict {
            holds: true,
            reason: Some("PodCompleted"),
            message: None,
        };
    }
    if is_initialized(inputs.pod, inputs.snapshot, inputs.memory) {
        return Verdict::holds();
    }
    let incomplete: Vec<&str> = init_slots(inputs.pod)
        .zip(init_statuses)
        .filter(|(slot, status)| match slot.role {
            Role::Sidecar => status.started != Some(true),
            _ => !status.ready,
        })
        .map(|(slot, _)| slot.name())
        .collect();
    let message = format!(
        "containers with incomplete status: [{}]",
        incomplete.join(" ")
    );
    Verdict::fails("ContainersNotInitialized", Some(message))
}

fn containers_ready(
    inputs: &Inputs<'_>,
    phase: &str,
    init_statuses: &[ContainerStatus],
    statuses: &[ContainerStatus],
) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::fails("PodCompleted", None),
        "Failed" => return Verdict::fails("PodFailed", None),
        _ => {}
    }
    let sidecars = init_slots(inputs.pod)
        .zip(init_statuses)
        .filter(|(slot, _)| slot.role == Role::Sidecar)
        .map(|(_, status)| status);
    let unready: Vec<&str> = sidecars
        .chain(statuses)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    if unready.is_empty() {
        return Verdict::holds();
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    Verdict::fails("ContainersNotReady", Some(message))
}

/// The containers are ready, and whatever else the pod waits for (readiness gates) too.
fn ready(inputs: &Inputs<'_>, old: &PodStatus, containers_ready: &Verdict) -> Verdict {
    if !containers_ready.holds {
        let reason = containers_ready.reason.unwrap_or("ContainersNotReady");
        return Verdict::fails(reason, containers_ready.message.clone());
    }
    let gates = spec(inputs.pod).readiness_gates.iter().flatten();
    for gate in gates {
        let mut known = old.conditions.iter().flatten();
        match known.find(|condition| condition.type_ == gate.condition_type) {
            Some(condition) if condition.status == "True" => {}
            Some(condition) => {
                let message = format!(
                    "the status of pod readiness gate {:?} is not \"True\", but {}",
                    gate.condition_type, condition.status
                );
                return Verdict::fails("ReadinessGatesNotReady", Some(message));
            }
            None => {
                let message = format!(
                    "corresponding condition of pod readiness gate {:?} does not exist.",
                    gate.condition_type
                );
                return Verdict::fails("ReadinessGatesNotReady", Some(message));
            }
        }
    }
    Verdict::holds()
}
