//! What a pod's worker knows beside the object and the runtime: probes' verdicts,
//! failed starts, back-off. Lost with the agent, and that does no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::launch::resources::Amounts;

const CRASH_FIRST: Duration = Duration::from_secs(10);
const CRASH_MOST: Duration = Duration::from_secs(300);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(10);
/// How long `ErrImagePull` shows before it turns into `ImagePullBackOff`.
const PULL_ERROR_SHOWS: Duration = Duration::from_secs(2);

/// The worker's own knowledge. Keys are container names.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Back-off of containers that ended and were started again.
    pub crashes: BTreeMap<String, CrashBackoff>,
    /// Starts that failed, until one succeeds.
    pub failures: BTreeMap<String, Failure>,
    /// The sandbox's failed start, until one succeeds.
    pub sandbox_failure: Option<Failure>,
    /// What probes and hooks found, for the container that they looked at.
    pub health: BTreeMap<String, Health>,
    /// Whether a sandbox or container is being started: one at a time in a pod.
    pub starting: Option<String>,
    /// Ids of what is being stopped.
    pub stopping: Vec<String>,
    /// Ids of containers that are stopped to be started anew with other resources.
    pub resized: BTreeSet<String>,
    /// Why the node ended the pod, if it did.
    pub verdict: Option<Verdict>,
    /// Where a change of the pod's resources stands.
    pub resize: Resize,
    /// The pod is deleted and nothing of it runs any more: whatever its restart policy says, this is its end.
    pub ended: bool,
}

/// A change of a running pod's resources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resize {
    /// Why the node has not agreed to it yet.
    pub pending: Option<Pending>,
    /// What was agreed to and is not in force yet.
    pub in_progress: Option<InProgress>,
}

/// Why the node has not agreed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// `Deferred` or `Infeasible`.
    pub reason: String,
    /// For users.
    pub message: String,
    /// Of the spec that asks for it.
    pub generation: Option<i64>,
}

/// A change that is being made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InProgress {
    /// Why the last try failed.
    pub error: Option<String>,
    /// Of the spec that asks for it.
    pub generation: Option<i64>,
    /// What the pod as a whole had before.
    pub(crate) before: Amounts,
}

/// Why the node itself ends a pod, or never lets it begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `Evicted`, `OutOfcpu`, ...
    pub reason: String,
    /// For users.
    pub message: String,
    /// Seconds that containers get instead of their own grace period.
    pub grace: Option<i64>,
    /// Whether the pod was well, and something else needed its place: told as the condition
    /// `DisruptionTarget`, so that jobs do not count it as their own failure.
    pub disruption: bool,
}

impl Verdict {
    /// The pod ran for longer than it may.
    pub fn deadline_exceeded() -> Self {
        Self {
            reason: "DeadlineExceeded".to_owned(),
            message: "Pod was active on the node longer than the specified deadline".to_owned(),
            grace: None,
            disruption: false,
        }
    }

    /// The node does not take the pod.
    pub fn rejected(reason: impl Into<String>, message: impl AsRef<str>) -> Self {
        Self {
            reason: reason.into(),
            message: format!("Pod was rejected: {}", message.as_ref()),
            grace: None,
            disruption: false,
        }
    }
}

/// What is known of a running container's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The container that this is about.
    pub container_id: String,
    /// Its hook is done and its startup probe succeeded.
    pub started: bool,
    /// Its readiness probe succeeds, or it has none.
    pub ready: bool,
    /// Why it must be stopped, if it must.
    pub condemned: Option<Condemned>,
}

/// Why a running container is to be stopped and, by its policy, started again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condemned {
    /// For the event.
    pub message: String,
    /// A probe's own grace period, in seconds.
    pub grace: Option<i64>,
}

/// At which step a start failed; each shows as a reason of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedStep {
    /// The image's name cannot be read.
    ImageName,
    /// The image is not there and must not be pulled.
    ImageNeverPull,
    /// The registry did not give it.
    ImagePull,
    /// Something that the container refers to is missing.
    Config,
    /// The runtime did not make it.
    Create,
    /// The runtime did not start it.
    Start,
    /// The hook after the start failed.
    PostStart,
    /// A volume or the sandbox.
    Sandbox,
}

/// A failed start, and when it is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Where.
    pub step: FailedStep,
    /// Why.
    pub message: String,
    /// The image that it is about, the container's own or a volume's.
    pub image: Option<String>,
    /// When.
    pub at: Timestamp,
    /// How long until the next try.
    pub delay: Duration,
}

impl Failure {
    /// This failure after `previous`, which it doubles the delay of if it is the same one.
    pub fn after(
        previous: Option<&Self>,
        step: FailedStep,
        message: String,
        at: Timestamp,
    ) -> Self {
        let (first, most) = match step {
            FailedStep::ImagePull => (CRASH_FIRST, CRASH_MOST),
            _ => (RETRY_FIRST, RETRY_MOST),
        };
        let delay = match previous {
            Some(previous) if previous.step == step => (previous.delay * 2).min(most),
            _ => first,
        };
        Self {
            step,
            message,
            image: None,
            at,
            delay,
        }
    }

    /// When it is tried again.
    pub fn retry_at(&self) -> Timestamp {
        later(self.at, self.delay)
    }

    /// When a failed pull is no longer news.
    pub(crate) fn shows_until(&self) -> Timestamp {
        later(self.at, PULL_ERROR_SHOWS)
    }
}

/// Back-off of a container that ends again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashBackoff {
    delay: Duration,
    updated: Timestamp,
}

impl CrashBackoff {
    /// From when on a container that finished then may be started again: at once the first
    /// time, and again after it was well for twice the longest delay.
    pub(crate) fn allows_at(previous: Option<&Self>, finished: Timestamp) -> Timestamp {
        match previous {
            Some(backoff) if !backoff.is_stale(finished) => later(finished, backoff.delay),
            _ => finished,
        }
    }

    /// The entry after one more start.
    pub fn next(previous: Option<&Self>, finished: Timestamp, now: Timestamp) -> Self {
        let delay = match previous {
            Some(backoff) if !backoff.is_stale(finished) => (backoff.delay * 2).min(CRASH_MOST),
            _ => CRASH_FIRST,
        };
        Self {
            delay,
            updated: now,
        }
    }

    /// The current delay.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    fn is_stale(&self, finished: Timestamp) -> bool {
        finished.duration_since(self.updated).unsigned_abs() > CRASH_MOST * 2
            && finished > self.updated
    }
}

impl Memory {
    /// What is known of this very container; nothing of an older one counts.
    pub(crate) fn health_of(&self, name: &str, container_id: &str) -> Option<&Health> {
        self.health
            .get(name)
            .filter(|health| health.container_id == container_id)
    }

    /// Forgets why the container `name` has to wait, since it is to be another one: whose image
    /// was mended starts at once.
    pub fn renew(&mut self, name: &str) {
        self.crashes.remove(name);
        self.failures.remove(name);
    }

    /// Remembers a failed start of the container `name`.
    pub fn failed(&mut self, name: &str, step: FailedStep, message: String, now: Timestamp) {
        let failure = Failure::after(self.failures.get(name), step, message, now);
        self.failures.insert(name.to_owned(), failure);
    }
}

/// `by` after `at`; the end of time where that cannot be said.
pub fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_crashing_container_waits_twice_as_long_each_time_up_to_five_minutes() {
        let mut backoff = None;
        let mut now = 1000;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let finished = at(now);
            let allowed = CrashBackoff::allows_at(backoff.as_ref(), finished);
            waits.push(allowed.as_second() - now);
            now = allowed.as_second();
            backoff = Some(CrashBackoff::next(backoff.as_ref(), finished, allowed));
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);

        let well_for_ten_minutes = at(now + 601);
        let allowed = CrashBackoff::allows_at(backoff.as_ref(), well_for_ten_minutes);
        assert_eq!(allowed, well_for_ten_minutes);
        let next = CrashBackoff::next(backoff.as_ref(), well_for_ten_minutes, allowed);
        assert_eq!(next.delay(), CRASH_FIRST);
    }

    #[test]
    fn failures_of_the_same_step_back_off_and_another_step_starts_anew() {
        let delays = |step, count: usize| {
            let mut previous: Option<Failure> = None;
            let mut delays = Vec::new();
            for _ in 0..count {
                let failure = Failure::after(previous.as_ref(), step, String::new(), at(0));
                delays.push(failure.delay.as_secs());
                previous = Some(failure);
            }
            delays
        };
        assert_eq!(
            delays(FailedStep::ImagePull, 7),
            [10, 20, 40, 80, 160, 300, 300]
        );
        assert_eq!(delays(FailedStep::Config, 6), [1, 2, 4, 8, 10, 10]);

        let pull = Failure::after(None, FailedStep::ImagePull, String::new(), at(0));
        let create = Failure::after(Some(&pull), FailedStep::Create, String::new(), at(0));
        assert_eq!(create.delay, RETRY_FIRST);
    }
}
