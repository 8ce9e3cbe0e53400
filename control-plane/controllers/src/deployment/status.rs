//! A Deployment's status: counts and the conditions Available, Progressing and ReplicaFailure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt;

use super::{
    arithmetic::Wanted,
    replicasets::{Sets, available, replicas, status_replicas},
};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const NEW_REPLICASET_AVAILABLE: &str = "NewReplicaSetAvailable";
const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// What happened to the new ReplicaSet in this reconciliation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Created(String),
    Found(String),
    CreateFailed(String, String),
}

/// `None` when the Deployment has no deadline, and so no condition Progressing.
pub(crate) fn progress_deadline(deployment: &Deployment) -> Option<i32> {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.progress_deadline_seconds)
        .filter(|seconds| *seconds != i32::MAX)
}

fn conditions(deployment: &Deployment) -> Vec<DeploymentCondition> {
    deployment
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default()
}

fn find<'a>(conditions: &'a [DeploymentCondition], kind: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Puts a condition in unless it says nothing new; the transition time moves with the status only.
fn set(conditions: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition) {
    if let Some(current) = find(conditions, &new.type_) {
        if current.status == new.status && current.reason == new.reason {
            return;
        }
        if current.status == new.status {
            new.last_transition_time = current.last_transition_time.clone();
        }
    }
    remove(conditions, &new.type_.clone());
    conditions.push(new);
}

fn remove(conditions: &mut Vec<DeploymentCondition>, kind: &str) {
    conditions.retain(|condition| condition.type_ != kind);
}

/// Counts and Available, everything else as it was.
fn counted(deployment: &Deployment, sets: &Sets, now: Timestamp) -> DeploymentStatus {
    let wanted = Wanted::of(deployment);
    let previous = deployment.status.clone().unwrap_or_default();
    let sum = |count: fn(&ReplicaSet) -> i32| sets.all().map(|set| count(set)).sum::<i32>();
    let total_available = sum(available);
    let ready = sum(|set| {
        set.status
            .as_ref()
            .and_then(|status| status.ready_replicas)
            .unwrap_or(0)
    });
    let terminating = sum(|set| {
        set.status
            .as_ref()
            .and_then(|status| status.terminating_replicas)
            .unwrap_or(0)
    });
    let unavailable = (sum(replicas) - total_available).max(0);
    let some = |count: i32| (count != 0).then_some(count);
    let mut all = conditions(deployment);
    let enough = total_available >= wanted.replicas - wanted.max_unavailable;
    set(
        &mut all,
        if enough {
            let message = "Deployment has minimum availability.".to_owned();
            condition(AVAILABLE, "True", "MinimumReplicasAvailable", message, now)
        } else {
            let message = "Deployment does not have minimum availability.".to_owned();
            condition(
                AVAILABLE,
                "False",
                "MinimumReplicasUnavailable",
                message,
                now,
            )
        },
    );
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(status_replicas)),
        updated_replicas: some(sets.new.as_ref().map_or(0, |set| status_replicas(set))),
        ready_replicas: some(ready),
        available_replicas: some(total_available),
        unavailable_replicas: some(unavailable),
        terminating_replicas: Some(terminating),
        collision_count: previous.collision_count,
        conditions: Some(all),
    }
}

fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Wanted::of(deployment).replicas;
    let all = [
        status.replicas,
        status.updated_replicas,
        status.available_replicas,
    ];
    all.iter().all(|count| count.unwrap_or(0) == wanted)
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether the newest template is completely rolled out by what the ReplicaSets say now.
pub(crate) fn rolled_out(deployment: &Deployment, sets: &Sets, now: Timestamp) -> bool {
    is_complete(deployment, &counted(deployment, sets, now))
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let count = |value: Option<i32>| value.unwrap_or(0);
    let outdated =
        |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

fn timed_out(deployment: &Deployment, conditions: &[DeploymentCondition], now: Timestamp) -> bool {
    let (Some(deadline), Some(condition)) =
        (progress_deadline(deployment), find(conditions, PROGRESSING))
    else {
        return false;
    };
    match condition.reason.as_deref() {
        Some(NEW_REPLICASET_AVAILABLE) => false,
        Some(DEADLINE_EXCEEDED) => true,
        _ => condition.last_update_time.as_ref().is_some_and(|since| {
            now.duration_since(since.0) > SignedDuration::from_secs(i64::from(deadline))
        }),
    }
}

/// The status while nothing is rolled out: paused, scaling, or on its way out.
pub(crate) fn at_rest(deployment: &Deployment, sets: &Sets, now: Timestamp) -> DeploymentStatus {
    counted(deployment, sets, now)
}

/// The status in or after a rollout.
pub(crate) fn rolling(
    deployment: &Deployment,
    sets: &Sets,
    news: Option<&Progress>,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = counted(deployment, sets, now);
    let mut all = status.conditions.take().unwrap_or_default();
    if progress_deadline(deployment).is_none() {
        remove(&mut all, PROGRESSING);
    } else {
        tell_news(&mut all, news, now);
        tell_progress(deployment, sets, &status, &mut all, now);
    }
    match failure(sets) {
        Some(failure) => set(&mut all, failure),
        None => remove(&mut all, REPLICA_FAILURE),
    }
    status.conditions = Some(all);
    status
}

fn tell_news(all: &mut Vec<DeploymentCondition>, news: Option<&Progress>, now: Timestamp) {
    let (status, reason, message) = match news {
        None => return,
        Some(Progress::Found(_)) if find(all, PROGRESSING).is_some() => return,
        Some(Progress::Found(name)) => (
            "True",
            "FoundNewReplicaSet",
            format!("Found new replica set \"{name}\""),
        ),
        Some(Progress::Created(name)) => (
            "True",
            "NewReplicaSetCreated",
            format!("Created new replica set \"{name}\""),
        ),
        Some(Progress::CreateFailed(name, error)) => (
            "False",
            "ReplicaSetCreateError",
            format!("Failed to create new replica set \"{name}\": {error}"),
        ),
    };
    set(all, condition(PROGRESSING, status, reason, message, now));
}

fn tell_progress(
    deployment: &Deployment,
    sets: &Sets,
    status: &DeploymentStatus,
    all: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) {
    let current = find(all, PROGRESSING).cloned();
    let was_complete = status.replicas == status.updated_replicas
        && current.as_ref().and_then(|c| c.reason.as_deref()) == Some(NEW_REPLICASET_AVAILABLE);
    if was_complete {
        return;
    }
    let subject = match &sets.new {
        Some(set) => format!("ReplicaSet \"{}\"", set.name_any()),
        None => format!("Deployment \"{}\"", deployment.name_any()),
    };
    let previous = deployment.status.clone().unwrap_or_default();
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set(
            all,
            condition(PROGRESSING, "True", NEW_REPLICASET_AVAILABLE, message, now),
        );
    } else if is_progressing(&previous, status) {
        let message = format!("{subject} is progressing.");
        let mut new = condition(PROGRESSING, "True", "ReplicaSetUpdated", message, now);
        if let Some(current) = current.filter(|current| current.status == "True") {
            new.last_transition_time = current.last_transition_time;
        }
        // Replaced even with the same reason: its update time is what the deadline counts from.
        remove(all, PROGRESSING);
        all.push(new);
    } else if timed_out(deployment, all, now) {
        let message = format!("{subject} has timed out progressing.");
        set(
            all,
            condition(PROGRESSING, "False", DEADLINE_EXCEEDED, message, now),
        );
    }
}

/// Why pods cannot be created or deleted, as the newest ReplicaSet that says so puts it.
fn failure(sets: &Sets) -> Option<DeploymentCondition> {
    let said_by = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        let found = conditions.iter().find(|c| c.type_ == REPLICA_FAILURE)?;
        Some(DeploymentCondition {
            type_: found.type_.clone(),
            status: found.status.clone(),
            reason: found.reason.clone(),
            message: found.message.clone(),
            last_transition_time: found.last_transition_time.clone(),
            last_update_time: found.last_transition_time.clone(),
        })
    };
    sets.new
        .iter()
        .chain(&sets.old)
        .find_map(|set| said_by(set))
}

/// Notes in the conditions that a rollout was paused or resumed: paused time must not count against the
/// deadline. `None` when there is nothing to note.
pub(crate) fn pause_noted(deployment: &Deployment, now: Timestamp) -> Option<DeploymentStatus> {
    progress_deadline(deployment)?;
    let mut all = conditions(deployment);
    let current = find(&all, PROGRESSING).and_then(|condition| condition.reason.clone());
    if current.as_deref() == Some(DEADLINE_EXCEEDED) {
        return None;
    }
    let paused = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.paused)
        .unwrap_or(false);
    let noted = current.as_deref() == Some(PAUSED);
    let (reason, message) = match (paused, noted) {
        (true, false) => (PAUSED, "Deployment is paused"),
        (false, true) => ("DeploymentResumed", "Deployment is resumed"),
        _ => return None,
    };
    set(
        &mut all,
        condition(PROGRESSING, "Unknown", reason, message.to_owned(), now),
    );
    Some(DeploymentStatus {
        conditions: Some(all),
        ..deployment.status.clone().unwrap_or_default()
    })
}

/// When to look again because the deadline may pass without any event.
pub(crate) fn look_again(deployment: &Deployment, now: Timestamp) -> Option<Duration> {
    let status = deployment.status.as_ref()?;
    let deadline = progress_deadline(deployment)?;
    let condition = find(status.conditions.as_ref()?, PROGRESSING)?;
    let over = condition.reason.as_deref() == Some(DEADLINE_EXCEEDED);
    if over || is_complete(deployment, status) {
        return None;
    }
    let since = condition.last_update_time.as_ref()?.0;
    let left = SignedDuration::from_secs(i64::from(deadline)) - now.duration_since(since);
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO) + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn deployment(status: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 3, "progressDeadlineSeconds": 60, "selector": {},
                "template": {"metadata": {"labels": {"a": "b"}}}},
            "status": status,
        }))
        .unwrap()
    }

    fn new_set(replicas: i32, available: i32) -> Sets {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "web-x"},
            "spec": {"replicas": replicas, "selector": {}},
            "status": {"replicas": replicas, "availableReplicas": available,
                "readyReplicas": available},
        }))
        .unwrap();
        Sets {
            new: Some(Arc::new(set)),
            old: vec![],
        }
    }

    fn reason(status: &DeploymentStatus, kind: &str) -> Option<(String, String)> {
        let condition = find(status.conditions.as_ref()?, kind)?;
        Some((condition.status.clone(), condition.reason.clone()?))
    }

    fn pair(status: &str, reason: &str) -> Option<(String, String)> {
        Some((status.to_owned(), reason.to_owned()))
    }

    #[test]
    fn a_rollout_reports_created_then_progress_then_available() {
        let mut deployment = deployment(json!({}));
        let created = Progress::Created("web-x".into());
        let status = rolling(&deployment, &new_set(0, 0), Some(&created), at(0));
        assert_eq!(
            reason(&status, PROGRESSING),
            pair("True", "NewReplicaSetCreated")
        );
        assert_eq!(
            reason(&status, AVAILABLE),
            pair("False", "MinimumReplicasUnavailable")
        );

        deployment.status = Some(status);
        let status = rolling(&deployment, &new_set(3, 1), None, at(5));
        assert_eq!(
            reason(&status, PROGRESSING),
            pair("True", "ReplicaSetUpdated")
        );
        assert_eq!(status.unavailable_replicas, Some(2));

        deployment.status = Some(status);
        let status = rolling(&deployment, &new_set(3, 3), None, at(9));
        assert_eq!(
            reason(&status, PROGRESSING),
            pair("True", NEW_REPLICASET_AVAILABLE)
        );
        assert_eq!(
            reason(&status, AVAILABLE),
            pair("True", "MinimumReplicasAvailable")
        );

        // A pod that fails later does not reopen the rollout.
        deployment.status = Some(status);
        let status = rolling(&deployment, &new_set(3, 2), None, at(1000));
        assert_eq!(
            reason(&status, PROGRESSING),
            pair("True", NEW_REPLICASET_AVAILABLE)
        );
    }

    #[test]
    fn a_stuck_rollout_misses_its_deadline_and_is_looked_at_again_before() {
        let mut deployment = deployment(json!({}));
        let created = Progress::Created("web-x".into());
        deployment.status = Some(rolling(&deployment, &new_set(3, 0), Some(&created), at(0)));
        assert_eq!(
            look_again(&deployment, at(10)),
            Some(Duration::from_secs(51))
        );
        let status = rolling(&deployment, &new_set(3, 0), None, at(59));
        assert_eq!(reason(&status, PROGRESSING).unwrap().0, "True");
        let status = rolling(&deployment, &new_set(3, 0), None, at(61));
        assert_eq!(
            reason(&status, PROGRESSING),
            pair("False", DEADLINE_EXCEEDED)
        );
        deployment.status = Some(status);
        assert_eq!(look_again(&deployment, at(62)), None);
    }

    #[test]
    fn pausing_and_resuming_are_noted_once() {
        let mut deployment = deployment(json!({}));
        deployment.spec.as_mut().unwrap().paused = Some(true);
        deployment.status = pause_noted(&deployment, at(0));
        assert_eq!(
            reason(deployment.status.as_ref().unwrap(), PROGRESSING),
            pair("Unknown", PAUSED)
        );
        assert_eq!(pause_noted(&deployment, at(1)), None);
        deployment.spec.as_mut().unwrap().paused = Some(false);
        let resumed = pause_noted(&deployment, at(2)).unwrap();
        assert_eq!(
            reason(&resumed, PROGRESSING),
            pair("Unknown", "DeploymentResumed")
        );
    }
}
