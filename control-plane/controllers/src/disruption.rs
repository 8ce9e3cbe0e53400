//! PodDisruptionBudget status: how many more pods may be evicted now.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ahash::AHashSet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::{Pod, ReplicationController},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time},
};
use kube::{
    Api, ResourceExt,
    api::DynamicObject,
    core::{Selector, SelectorExt},
};
use windlass_informers::{
    Informer, Key,
    recorder::{EventType, Recorder},
};

use crate::{
    int_or_percent::{Round, resolve},
    pods,
    runtime::{
        Context, Controller, Outcome, Queue, Result, controlled_by, patch_status, run_workers,
    },
};

/// An eviction that was allowed but whose pod is still there after this long did not happen.
const DISRUPTED_FOR: SignedDuration = SignedDuration::from_secs(120);

struct Disruption {
    context: Context,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    pods: Arc<Informer<Pod>>,
    scales: Scales,
    recorder: Recorder,
}

/// Where the expected number of pods is looked up.
struct Scales {
    deployments: Arc<Informer<Deployment>>,
    replica_sets: Arc<Informer<ReplicaSet>>,
    stateful_sets: Arc<Informer<StatefulSet>>,
    controllers: Arc<Informer<ReplicationController>>,
}

pub(crate) async fn start(context: Context) {
    let queue = Queue::new();
    let (budgets, pods, deployments, replica_sets, stateful_sets, controllers) = context
        .synced::<(
            PodDisruptionBudget,
            Pod,
            Deployment,
            ReplicaSet,
            StatefulSet,
            ReplicationController,
        )>()
        .await;
    let scales = Scales {
        deployments,
        replica_sets,
        stateful_sets,
        controllers,
    };

    let _own = queue.follow(&budgets);
    let (of_pods, view) = (Arc::clone(&queue), Arc::clone(&budgets));
    let _of_pods = pods.on_change(move |change| {
        let both = [Some(change.object()), change.previous()];
        for pod in both.into_iter().flatten() {
            for budget in view.in_namespace(&pod.namespace().unwrap_or_default()) {
                if selector(&budget).is_some_and(|selector| selector.matches(pod.labels())) {
                    of_pods.add(Key::of(budget.as_ref()));
                }
            }
        }
    });
    let controller = Arc::new(Disruption {
        recorder: context.recorder.named("controllermanager"),
        context: context.clone(),
        budgets,
        pods,
        scales,
    });
    run_workers(controller, queue, 2, &context.cancel).await;
}

/// In policy/v1 an empty selector selects every pod of the namespace, an absent one none.
fn selector(budget: &PodDisruptionBudget) -> Option<Selector> {
    Selector::try_from(budget.spec.as_ref()?.selector.clone()?).ok()
}

fn controller(pod: &Pod) -> Option<&OwnerReference> {
    let mut owners = pod.owner_references().iter();
    owners.find(|owner| owner.controller == Some(true))
}

impl Scales {
    /// How many pods the controllers of these pods want, and which pods have no controller. `others` are the
    /// scales of kinds that are not built in.
    fn expected(
        &self,
        pods: &[Arc<Pod>],
        others: &BTreeMap<String, i32>,
    ) -> Result<(i32, Vec<String>), String> {
        let mut seen = AHashSet::new();
        let mut expected = 0;
        let mut unmanaged = Vec::new();
        for pod in pods {
            let Some(owner) = controller(pod) else {
                unmanaged.push(pod.name_any());
                continue;
            };
            let namespace = pod.namespace().unwrap_or_default();
            let other = || Some((owner.uid.clone(), *others.get(&owner.uid)?));
            let (uid, replicas) = self
                .scale(&namespace, &owner.kind, &owner.name)
                .or_else(other)
                .ok_or_else(|| format!("{} {:?} has no scale", owner.kind, owner.name))?;
            if seen.insert(uid) {
                expected += replicas;
            }
        }
        Ok((expected, unmanaged))
    }

    fn scale(&self, namespace: &str, kind: &str, name: &str) -> Option<(String, i32)> {
        match kind {
            "ReplicaSet" => {
                let set = self.replica_sets.get(namespace, name)?;
                if let Some(owner) = controlled_by::<Deployment>(set.as_ref()) {
                    let deployment = self.deployments.get(namespace, &owner.name)?;
                    return Some((deployment.uid()?, deployment.spec.as_ref()?.replicas?));
                }
                Some((set.uid()?, set.spec.as_ref()?.replicas?))
            }
            "StatefulSet" => {
                let set = self.stateful_sets.get(namespace, name)?;
                Some((set.uid()?, set.spec.as_ref()?.replicas?))
            }
            "ReplicationController" => {
                let controller = self.controllers.get(namespace, name)?;
                Some((controller.uid()?, controller.spec.as_ref()?.replicas?))
            }
            _ => None,
        }
    }
}

/// Expected and desired healthy pods.
fn wanted(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: impl Fn(&[Arc<Pod>]) -> Result<i32, String>,
) -> Result<(i32, i32), String> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let spec = budget.spec.clone().unwrap_or_default();
    let present = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let number = |value: &IntOrString, total| {
        resolve(value, total, Round::Up).ok_or_else(|| format!("{value:?} is no number or share"))
    };
    match (spec.max_unavailable, spec.min_available) {
        (Some(most), _) => {
            let expected = expected(pods)?;
            Ok((expected, (expected - number(&most, expected)?).max(0)))
        }
        (None, Some(IntOrString::Int(least))) => Ok((present, least)),
        (None, Some(least)) => {
            let expected = expected(pods)?;
            Ok((expected, number(&least, expected)?))
        }
        (None, None) => Ok((present, 0)),
    }
}

/// Evictions that were allowed a moment ago and whose pods still seem healthy.
fn disrupted(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let noted = budget
        .status
        .as_ref()
        .and_then(|status| status.disrupted_pods.clone());
    let mut kept = BTreeMap::new();
    let mut again: Option<Duration> = None;
    for (name, since) in noted.unwrap_or_default() {
        let there = pods
            .iter()
            .any(|pod| pod.name_any() == name && pod.metadata.deletion_timestamp.is_none());
        let left = DISRUPTED_FOR - now.duration_since(since.0);
        if there && left.is_positive() {
            let left = Duration::try_from(left).unwrap_or_default();
            again = Some(again.map_or(left, |again| again.min(left)));
            kept.insert(name, since);
        }
    }
    (kept, again)
}

impl Controller for Disruption {
    type Key = Key;
    const NAME: &'static str = "disruption";

    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(budget) = self.budgets.by_key(key) else {
            return Ok(Outcome::Done);
        };
        let now = Timestamp::now();
        let pods: Vec<_> = match selector(&budget) {
            Some(selector) => self
                .pods
                .in_namespace(&key.namespace)
                .into_iter()
                .filter(|pod| selector.matches(pod.labels()) && !pods::is_finished(pod))
                .collect(),
            None => Vec::new(),
        };
        let (disrupted, again) = disrupted(&budget, &pods, now);
        let healthy = pods.iter().filter(|pod| {
            pods::is_ready(pod)
                && !pods::is_terminating(pod)
                && !disrupted.contains_key(&pod.name_any())
        });
        let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
        let previous = budget.status.clone().unwrap_or_default();
        let others = self.other_scales(&pods).await;
        let judged = wanted(&budget, &pods, |pods| {
            let (expected, unmanaged) = self.scales.expected(pods, &others)?;
            if !unmanaged.is_empty() {
                self.tell_unmanaged(&budget);
            }
            Ok(expected)
        });
        let status = match judged {
            Ok((expected, desired)) => {
                let allowed = if expected > 0 {
                    (healthy - desired).max(0)
                } else {
                    0
                };
                let (reason, message) = if allowed > 0 {
                    ("SufficientPods", "")
                } else {
                    ("InsufficientPods", "")
                };
                PodDisruptionBudgetStatus {
                    current_healthy: healthy,
                    desired_healthy: desired,
                    expected_pods: expected,
                    disruptions_allowed: allowed,
                    disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
                    observed_generation: budget.metadata.generation,
                    conditions: Some(condition(&budget, allowed > 0, reason, message, now)),
                }
            }
            // What cannot be reckoned allows nothing.
            Err(why) => PodDisruptionBudgetStatus {
                disruptions_allowed: 0,
                observed_generation: budget.metadata.generation,
                conditions: Some(condition(&budget, false, "SyncFailed", &why, now)),
                ..previous
            },
        };
        let updated = PodDisruptionBudget {
            status: Some(status),
            ..budget.as_ref().clone()
        };
        patch_status(&self.context.api(&key.namespace), budget.as_ref(), &updated).await?;
        Ok(again.map_or(Outcome::Done, Outcome::Again))
    }
}

impl Disruption {
    /// What kinds of others want: whatever has a scale subresource can be a pod's controller.
    async fn other_scales(&self, pods: &[Arc<Pod>]) -> BTreeMap<String, i32> {
        let mut scales = BTreeMap::new();
        let catalog = self.context.resources.catalog();
        for pod in pods {
            let Some(owner) = controller(pod) else {
                continue;
            };
            let namespace = pod.namespace().unwrap_or_default();
            let built_in = self.scales.scale(&namespace, &owner.kind, &owner.name);
            if built_in.is_some() || scales.contains_key(&owner.uid) {
                continue;
            }
            let Some(served) = catalog.of_kind(&owner.api_version, &owner.kind) else {
                continue;
            };
            let client = self.context.client.clone();
            let api: Api<DynamicObject> =
                Api::namespaced_with(client, &namespace, &served.resource);
            if let Ok(scale) = api.get_scale(&owner.name).await {
                let replicas = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
                scales.insert(owner.uid.clone(), replicas);
            }
        }
        scales
    }

    fn tell_unmanaged(&self, budget: &PodDisruptionBudget) {
        let message = "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the \
             status of the PDB cannot be calculated correctly, which may result in undefined behavior. To \
             account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.";
        self.recorder.record(
            budget,
            EventType::Warning,
            "UnmanagedPods",
            message.to_owned(),
        );
    }
}

fn condition(
    budget: &PodDisruptionBudget,
    allowed: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Vec<Condition> {
    const KIND: &str = "DisruptionAllowed";
    let status = if allowed { "True" } else { "False" };
    let current = budget
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone());
    let mut conditions = current.unwrap_or_default();
    let since = conditions
        .iter()
        .find(|condition| condition.type_ == KIND && condition.status == status)
        .map_or(Time(now), |condition| {
            condition.last_transition_time.clone()
        });
    conditions.retain(|condition| condition.type_ != KIND);
    conditions.push(Condition {
        type_: KIND.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since,
    });
    conditions
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn budget(spec: Value) -> PodDisruptionBudget {
        serde_json::from_value(json!({ "spec": spec })).unwrap()
    }

    #[test]
    fn what_must_stay_healthy_comes_from_numbers_and_shares() {
        let pods: Vec<_> = (0..3).map(|_| Arc::new(Pod::default())).collect();
        let cases = [
            (json!({"minAvailable": 2}), Ok((3, 2))),
            (json!({"minAvailable": "50%"}), Ok((10, 5))),
            (json!({"maxUnavailable": 1}), Ok((10, 9))),
            (json!({"maxUnavailable": "25%"}), Ok((10, 7))),
            (json!({"maxUnavailable": 20}), Ok((10, 0))),
        ];
        for (spec, expected) in cases {
            assert_eq!(
                wanted(&budget(spec.clone()), &pods, |_| Ok(10)),
                expected,
                "{spec}"
            );
        }
        let unknown = wanted(&budget(json!({"maxUnavailable": 1})), &pods, |_| {
            Err("who".into())
        });
        assert_eq!(unknown, Err("who".to_owned()));
    }

    #[test]
    fn an_eviction_that_did_not_happen_is_forgotten_after_two_minutes() {
        let noted: PodDisruptionBudget = serde_json::from_value(json!({"status": {
            "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, "disruptionsAllowed": 0,
            "disruptedPods": {"a": "1970-01-01T00:00:00Z", "gone": "1970-01-01T00:00:00Z"}}}))
        .unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
        let pods = [Arc::new(pod)];
        let at = |second| Timestamp::from_second(second).unwrap();
        let (kept, again) = disrupted(&noted, &pods, at(100));
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(again, Some(Duration::from_secs(20)));
        assert!(disrupted(&noted, &pods, at(121)).0.is_empty());
    }
}
