//! What to do next for a pod: a pure function of the object, the runtime's state, what
//! the worker knows, and the time.
//!
//! It is asked again after everything that happens, so it only says the steps that are
//! possible now; whoever executes them reports back through a new snapshot or the
//! memory. Termination on request is not planned here but in `terminate`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::memory::{CrashBackoff, Memory, Verdict, later};
use crate::model::{
    Role, Slot, container_hash, ephemeral_slots, init_slots, is_terminal, known_status, main_slots,
    restarts, spec,
};
use crate::snapshot::{Container, Snapshot, State};

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the pod's (next) sandbox.
    StartSandbox {
        /// Its number.
        attempt: u32,
    },
    /// Pull, make and start a container.
    StartContainer {
        /// Its name.
        name: String,
        /// Its number.
        attempt: u32,
        /// Where.
        sandbox: String,
        /// The end of its predecessor, if it has one that counts for back-off.
        after: Option<Timestamp>,
    },
    /// Stop a running container.
    StopContainer {
        /// The runtime's name for it.
        id: String,
        /// Its name in the pod.
        name: String,
        /// Why.
        why: StopReason,
    },
    /// Stop a sandbox with everything in it.
    StopSandbox {
        /// The runtime's name for it.
        id: String,
    },
}

/// Why a running container is stopped while its pod is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// A probe or hook condemned it.
    Unhealthy {
        /// For the event.
        message: String,
        /// The probe's own grace period, in seconds.
        grace: Option<i64>,
    },
    /// Its spec is another one now.
    Changed,
    /// It gets other resources, which it takes only at its start.
    Resized,
    /// The pod came to its end, with this grace period if not with its own.
    PodEnded(Option<i64>),
}

/// Whether the pod came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// No.
    Going,
    /// All its work is done, well or not: the phase tells.
    Done,
    /// The node ended it.
    Failed(Verdict),
}

/// What to do now, and when to ask again if nothing happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In this order; starts are at most one.
    pub steps: Vec<Step>,
    /// Ask again then.
    pub wake_at: Option<Timestamp>,
    /// Whether it is over.
    pub outcome: Outcome,
}

/// Plans for a pod that is wanted (not being deleted).
pub fn plan(pod: &Pod, snapshot: &Snapshot, memory: &Memory, now: Timestamp) -> Plan {
    let mut planner = Planner {
        pod,
        snapshot,
        memory,
        now,
        steps: Vec::new(),
        wake_at: None,
    };
    let outcome = planner.outcome();
    match &outcome {
        Outcome::Going => planner.keep_going(),
        Outcome::Done => planner.wind_down(None),
        Outcome::Failed(verdict) => planner.wind_down(verdict.grace),
    }
    Plan {
        steps: planner.steps,
        wake_at: planner.wake_at,
        outcome,
    }
}

/// Whether every init container has done its part in the live sandbox. Once a main
/// container was made there, this stays true whatever becomes of the others.
pub(crate) fn is_initialized(pod: &Pod, snapshot: &Snapshot, memory: &Memory) -> bool {
    let mut mains = main_slots(pod);
    let sandbox = snapshot
        .sandboxes
        .first()
        .map(|sandbox| sandbox.id.as_str());
    mains.any(|slot| {
        snapshot
            .of_name(slot.name())
            .any(|container| Some(container.sandbox.as_str()) == sandbox)
    }) || init_slots(pod).all(|slot| init_is_done(&slot, snapshot, memory, sandbox))
}

fn init_is_done(
    slot: &Slot<'_>,
    snapshot: &Snapshot,
    memory: &Memory,
    sandbox: Option<&str>,
) -> bool {
    let Some(container) = snapshot.newest(slot.name()) else {
        return false;
    };
    if Some(container.sandbox.as_str()) != sandbox {
        return false;
    }
    match slot.role {
        Role::Sidecar => container.is_running() && is_started(slot, container, memory),
        _ => container.exit().is_some_and(|exit| exit.code == 0),
    }
}

/// Whether a running container counts as started: its hook and startup probe are through.
pub(crate) fn is_started(slot: &Slot<'_>, container: &Container, memory: &Memory) -> bool {
    match memory.health_of(slot.name(), &container.id) {
        Some(health) => health.started,
        None => !slot.has_startup_probe(),
    }
}

/// The running containers whose turn it is when a pod is stopped: main, init and ephemeral
/// containers together, then the sidecars one by one, the last started first (KEP-753).
pub(crate) fn next_to_stop<'a>(pod: &Pod, snapshot: &'a Snapshot) -> Vec<&'a Container> {
    let running = |slot: Slot<'_>| -> Vec<&'a Container> {
        let all = snapshot.containers.iter();
        all.filter(|container| container.name == slot.name() && container.is_running())
            .collect()
    };
    let inits = init_slots(pod).filter(|slot| slot.role == Role::Init);
    let with_mains = main_slots(pod).chain(inits).chain(ephemeral_slots(pod));
    let first: Vec<_> = with_mains.flat_map(running).collect();
    if !first.is_empty() {
        return first;
    }
    let mut sidecars = init_slots(pod)
        .rev()
        .filter(|slot| slot.role == Role::Sidecar);
    let next = sidecars.find_map(|slot| Some(running(slot)).filter(|found| !found.is_empty()));
    // Anything else that runs is not in the spec any more.
    next.unwrap_or_else(|| {
        snapshot
            .containers
            .iter()
            .filter(|container| container.is_running())
            .collect()
    })
}

struct Planner<'a> {
    pod: &'a Pod,
    snapshot: &'a Snapshot,
    memory: &'a Memory,
    now: Timestamp,
    steps: Vec<Step>,
    wake_at: Option<Timestamp>,
}

impl Planner<'_> {
    fn outcome(&mut self) -> Outcome {
        if is_terminal(self.pod) {
            return Outcome::Done;
        }
        if let Some(verdict) = &self.memory.verdict {
            return Outcome::Failed(verdict.clone());
        }
        if let Some(deadline) = self.deadline() {
            if deadline <= self.now {
                return Outcome::Failed(Verdict::deadline_exceeded());
            }
            self.wake(deadline);
        }
        if self.work_is_done() {
            Outcome::Done
        } else {
            Outcome::Going
        }
    }

    fn deadline(&self) -> Option<Timestamp> {
        let seconds = spec(self.pod).active_deadline_seconds?;
        let start = self.pod.status.as_ref()?.start_time.as_ref()?.0;
        let seconds = u64::try_from(seconds).ok()?;
        Some(later(start, std::time::Duration::from_secs(seconds)))
    }

    /// All main containers ended and none is started again, or an init container failed
    /// for good.
    fn work_is_done(&self) -> bool {
        let ended_for_good = |slot: Slot<'_>| {
            let exit = self.snapshot.newest(slot.name()).and_then(Container::exit);
            exit.is_some_and(|exit| !restarts(self.pod, &slot, exit.code))
        };
        let init_failed = || {
            init_slots(self.pod).any(|slot| {
                let exit = self.snapshot.newest(slot.name()).and_then(Container::exit);
                slot.role == Role::Init
                    && exit.is_some_and(|exit| exit.code != 0)
                    && ended_for_good(slot)
            })
        };
        let mut mains = main_slots(self.pod).peekable();
        (mains.peek().is_some() && mains.all(ended_for_good)) || init_failed()
    }

    /// Sidecars end after the main containers, the last started first; then the sandbox.
    fn wind_down(&mut self, grace: Option<i64>) {
        let to_stop = next_to_stop(self.pod, self.snapshot);
        let nothing_runs = to_stop.is_empty();
        for container in to_stop {
            self.stop_container(&container.name, container, StopReason::PodEnded(grace));
        }
        if nothing_runs && self.memory.starting.is_none() {
            self.stop_sandboxes(|_| true);
        }
    }

    fn keep_going(&mut self) {
        let Some(sandbox) = self.snapshot.live_sandbox() else {
            return self.renew_sandbox();
        };
        let sandbox_id = sandbox.id.clone();
        self.stop_sandboxes(|id| id != sandbox_id);

        let initialized = is_initialized(self.pod, self.snapshot, self.memory);
        let mut ready_for_next = true;
        for slot in init_slots(self.pod) {
            if slot.role == Role::Init && initialized {
                continue;
            }
            if ready_for_next {
                self.tend(&slot, &sandbox_id);
            }
            let sandbox = Some(sandbox_id.as_str());
            ready_for_next &=
                initialized || init_is_done(&slot, self.snapshot, self.memory, sandbox);
        }
        if initialized {
            for slot in main_slots(self.pod) {
                self.tend(&slot, &sandbox_id);
            }
        }
        for slot in ephemeral_slots(self.pod) {
            self.tend_ephemeral(&slot, &sandbox_id);
        }
    }

    /// Started once, whatever the others do, and never again.
    fn tend_ephemeral(&mut self, slot: &Slot<'_>, sandbox: &str) {
        let next = match self.snapshot.newest(slot.name()) {
            None if self.was_started(slot.name()) => return,
            None => 0,
            Some(container) => match container.state {
                State::Created if container.sandbox == sandbox => container.attempt + 1,
                _ => return,
            },
        };
        self.start(slot, sandbox, next, None);
    }

    /// A dead sandbox holds an address: it is stopped before the next one is made.
    fn renew_sandbox(&mut self) {
        let stopped_all = !self.stop_sandboxes(|_| true);
        if !stopped_all || self.memory.starting.is_some() {
            return;
        }
        if let Some(failure) = &self.memory.sandbox_failure
            && failure.retry_at() > self.now
        {
            return self.wake(failure.retry_at());
        }
        let attempt = self
            .snapshot
            .sandboxes
            .first()
            .map_or(0, |sandbox| sandbox.attempt + 1);
        self.steps.push(Step::StartSandbox { attempt });
    }

    /// Brings one container where it should be.
    fn tend(&mut self, slot: &Slot<'_>, sandbox: &str) {
        let Some(container) = self.snapshot.newest(slot.name()) else {
            return self.start(slot, sandbox, 0, None);
        };
        let next = container.attempt + 1;
        if container.sandbox != sandbox {
            // It went down with its sandbox, which is not its own fault: no back-off.
            return self.start(slot, sandbox, next, None);
        }
        match &container.state {
            State::Running { .. } => {
                let health = self.memory.health_of(slot.name(), &container.id);
                if let Some(condemned) = health.and_then(|health| health.condemned.clone()) {
                    let why = StopReason::Unhealthy {
                        message: condemned.message,
                        grace: condemned.grace,
                    };
                    self.stop_container(slot.name(), container, why);
                } else if !container.hash.is_empty()
                    && container.hash != container_hash(&slot.container)
                {
                    self.stop_container(slot.name(), container, StopReason::Changed);
                } else if self.memory.resized.contains(&container.id) {
                    self.stop_container(slot.name(), container, StopReason::Resized);
                }
            }
            State::Exited(exit) => {
                if restarts(self.pod, slot, exit.code) || self.stopped_by_us(container) {
                    let backoff = self.memory.crashes.get(slot.name());
                    let allowed = match self.stopped_by_us(container) {
                        true => self.now,
                        false => CrashBackoff::allows_at(backoff, exit.finished),
                    };
                    if allowed > self.now {
                        self.wake(allowed);
                    } else {
                        self.start(slot, sandbox, next, Some(exit.finished));
                    }
                }
            }
            // Made but never started: the start failed half-way, or the agent died in it.
            State::Created | State::Unknown => self.start(slot, sandbox, next, None),
        }
    }

    fn start(&mut self, slot: &Slot<'_>, sandbox: &str, attempt: u32, after: Option<Timestamp>) {
        if let Some(failure) = self.memory.failures.get(slot.name()) {
            let shows_until = failure.shows_until();
            if shows_until > self.now {
                self.wake(shows_until);
            }
            if failure.retry_at() > self.now {
                return self.wake(failure.retry_at());
            }
        }
        let one_starts = self
            .steps
            .iter()
            .any(|step| matches!(step, Step::StartContainer { .. }));
        if self.memory.starting.is_some() || one_starts {
            return;
        }
        let attempt = attempt.max(self.attempts_before(slot.name()));
        let (name, sandbox) = (slot.name().to_owned(), sandbox.to_owned());
        self.steps.push(Step::StartContainer {
            name,
            attempt,
            sandbox,
            after,
        });
    }

    /// The API may remember more starts than the runtime, which forgets removed containers.
    fn attempts_before(&self, name: &str) -> u32 {
        let Some(known) = known_status(self.pod, name) else {
            return 0;
        };
        let started = u32::from(self.was_started(name));
        let seen = self.snapshot.newest(name).is_some();
        let count = u32::try_from(known.restart_count).unwrap_or(0);
        if seen { count } else { count + started }
    }

    /// Whether the API has heard of a start of this container.
    fn was_started(&self, name: &str) -> bool {
        let id = known_status(self.pod, name).and_then(|known| known.container_id.as_ref());
        id.is_some_and(|id| !id.is_empty())
    }

    /// It was stopped to be started with other resources, whatever its policy says of ends.
    fn stopped_by_us(&self, container: &Container) -> bool {
        self.memory.resized.contains(&container.id)
    }

    fn stop_container(&mut self, name: &str, container: &Container, why: StopReason) {
        if !self.memory.stopping.contains(&container.id) {
            let (id, name) = (container.id.clone(), name.to_owned());
            self.steps.push(Step::StopContainer { id, name, why });
        }
    }

    /// Stops ready sandboxes (and those that still hold containers) of which `choose` says
    /// so; whether any is left to be stopped.
    fn stop_sandboxes(&mut self, choose: impl Fn(&str) -> bool) -> bool {
        let mut any = false;
        for sandbox in self
            .snapshot
            .sandboxes
            .iter()
            .filter(|sandbox| choose(&sandbox.id))
        {
            let runs_something = self
                .snapshot
                .containers
                .iter()
                .any(|container| container.sandbox == sandbox.id && container.is_running());
            if !sandbox.ready && !runs_something {
                continue;
            }
            any = true;
            if !self.memory.stopping.contains(&sandbox.id) {
                self.steps.push(Step::StopSandbox {
                    id: sandbox.id.clone(),
                });
            }
        }
        any
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

#[cfg(test)]
mod tests;
