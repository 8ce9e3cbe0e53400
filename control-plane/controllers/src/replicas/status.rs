//! The status of a replicated object: counts of its pods and the ReplicaFailure condition.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use kube::{ResourceExt, core::SelectorExt};

use super::Replicated;
use crate::{pods, runtime::Error};

/// The status fields that ReplicaSet and ReplicationController share.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    pub(crate) terminating: i32,
    pub(crate) observed_generation: Option<i64>,
    pub(crate) failure: Option<Failure>,
}

/// The condition ReplicaFailure; present only while it is true.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) since: Option<Time>,
}

pub(super) const REPLICA_FAILURE: &str = "ReplicaFailure";

/// The methods of [`Replicated`] that read and write fields which both kinds have under the same names.
macro_rules! conversions {
    ($status:ident, $condition:ident $(, $terminating:ident)?) => {
        fn replicas(&self) -> i32 {
            let spec = self.spec.as_ref();
            spec.and_then(|spec| spec.replicas).unwrap_or(1)
        }

        fn min_ready_seconds(&self) -> i32 {
            let spec = self.spec.as_ref();
            spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
        }

        fn template(&self) -> Option<&PodTemplateSpec> {
            self.spec.as_ref()?.template.as_ref()
        }

        fn counts(&self) -> Counts {
            let Some(status) = &self.status else {
                return Counts::default();
            };
            let mut conditions = status.conditions.iter().flatten();
            let failure = conditions.find(|condition| condition.type_ == REPLICA_FAILURE);
            #[allow(unused_mut, reason = "one kind has a field more")]
            let mut counts = Counts {
                replicas: status.replicas,
                fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
                ready: status.ready_replicas.unwrap_or(0),
                available: status.available_replicas.unwrap_or(0),
                terminating: 0,
                observed_generation: status.observed_generation,
                failure: failure.map(|condition| Failure {
                    reason: condition.reason.clone().unwrap_or_default(),
                    message: condition.message.clone().unwrap_or_default(),
                    since: condition.last_transition_time.clone(),
                }),
            };
            $(counts.terminating = status.$terminating.unwrap_or(0);)?
            counts
        }

        fn with_counts(&self, counts: Counts) -> Self {
            let known = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let mut conditions: Vec<_> = known
                .filter(|condition| condition.type_ != REPLICA_FAILURE)
                .cloned()
                .collect();
            conditions.extend(counts.failure.map(|failure| $condition {
                type_: REPLICA_FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(failure.reason),
                message: Some(failure.message),
                last_transition_time: failure.since,
            }));
            let some = |count: i32| (count != 0).then_some(count);
            Self {
                status: Some($status {
                    replicas: counts.replicas,
                    fully_labeled_replicas: some(counts.fully_labeled),
                    ready_replicas: some(counts.ready),
                    available_replicas: some(counts.available),
                    $($terminating: Some(counts.terminating),)?
                    observed_generation: counts.observed_generation,
                    conditions: (!conditions.is_empty()).then_some(conditions),
                }),
                ..self.clone()
            }
        }
    };
}
pub(super) use conversions;

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Counts active pods; `error` is why pods could not be created or deleted just now.
pub(super) fn count<R: Replicated>(
    object: &R,
    active: &[Arc<Pod>],
    terminating: usize,
    error: Option<&Error>,
    now: Timestamp,
) -> Counts {
    let previous = object.counts();
    let template_labels: kube::core::Selector = object
        .template()
        .and_then(|template| template.metadata.as_ref()?.labels.clone())
        .unwrap_or_default()
        .into_iter()
        .collect();
    let all = |test: &dyn Fn(&Pod) -> bool| number(active.iter().filter(|pod| test(pod)).count());
    // The first one stays, as upstream has it: messages name pods, whose names are others with every attempt, and a status
    // that changes each time would be reason for another attempt at once.
    let failure = error.map(|error| {
        previous.failure.unwrap_or_else(|| Failure {
            reason: if number(active.len()) < object.replicas() {
                "FailedCreate"
            } else {
                "FailedDelete"
            }
            .to_owned(),
            message: error.words(),
            since: Some(Time(now)),
        })
    });
    Counts {
        replicas: number(active.len()),
        fully_labeled: all(&|pod| template_labels.matches(pod.labels())),
        ready: all(&pods::is_ready),
        available: all(&|pod| pods::is_available(pod, object.min_ready_seconds(), now)),
        terminating: number(terminating),
        observed_generation: object.meta().generation,
        failure,
    }
}
