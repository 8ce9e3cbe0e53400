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
    let failure = error.map(|error| Failure {
        reason: if number(active.len()) < object.replicas() {
            "FailedCreate"
        } else {
            "FailedDelete"
        }
        .to_owned(),
        message: error.to_string(),
        since: previous
            .failure
            .as_ref()
            .and_then(|f| f.since.clone())
            .or(Some(Time(now))),
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
