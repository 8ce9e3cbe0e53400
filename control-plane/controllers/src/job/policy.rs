//! podFailurePolicy (KEP-3329) and successPolicy (KEP-3998): what a failed pod means for its Job, and
//! when some successes are enough. Pure.

use k8s_openapi::api::{
    batch::v1::{Job, PodFailurePolicyRule},
    core::v1::{ContainerStatus, Pod},
};
use kube::ResourceExt;

use super::indexes::{Indexes, parse};
use crate::pods;

/// What the failure of a pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Counts towards the back-off limit.
    Count,
    /// Does not count.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The Job has failed; the message says by which rule.
    FailJob(String),
}

fn exited(pod: &Pod) -> impl Iterator<Item = (&ContainerStatus, i32)> {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    containers
        .into_iter()
        .chain(init)
        .flatten()
        .filter_map(|container| {
            let ended = container.state.as_ref()?.terminated.as_ref()?;
            Some((container, ended.exit_code))
        })
}

/// Why a rule matches the pod.
fn matched(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(wanted) = &rule.on_exit_codes {
        return exited(pod)
            .filter(|(_, code)| *code != 0)
            .filter(|(container, _)| {
                wanted
                    .container_name
                    .as_ref()
                    .is_none_or(|name| *name == container.name)
            })
            .find(|(_, code)| wanted.values.contains(code) == (wanted.operator == "In"))
            .map(|(container, code)| {
                format!(
                    "Container {} for pod {name} failed with exit code {code}",
                    container.name
                )
            });
    }
    rule.on_pod_conditions.iter().flatten().find_map(|wanted| {
        let found = pods::condition(pod, &wanted.type_)?;
        (found.status == wanted.status.as_deref().unwrap_or("True"))
            .then(|| format!("Pod {name} has condition {}", wanted.type_))
    })
}

/// The first matching rule decides; without one a failure counts.
pub(super) fn judge(job: &Job, pod: &Pod) -> Verdict {
    let policy = job
        .spec
        .as_ref()
        .and_then(|spec| spec.pod_failure_policy.as_ref());
    let Some(policy) = policy.filter(|_| pods::phase(pod) == "Failed") else {
        return Verdict::Count;
    };
    for (number, rule) in policy.rules.iter().enumerate() {
        let Some(why) = matched(rule, pod) else {
            continue;
        };
        return match rule.action.as_str() {
            "FailJob" => Verdict::FailJob(format!("{why} matching FailJob rule at index {number}")),
            "FailIndex" => Verdict::FailIndex,
            "Ignore" => Verdict::Ignore,
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

/// The message of the first rule of successPolicy that the succeeded indexes meet.
pub(super) fn succeeded(job: &Job, completions: i32, done: &Indexes) -> Option<String> {
    let policy = job.spec.as_ref()?.success_policy.as_ref()?;
    policy.rules.iter().enumerate().find_map(|(number, rule)| {
        let met = match &rule.succeeded_indexes {
            Some(text) => {
                let listed = parse(text, completions);
                let have = listed.intersection(done).count();
                let wanted = rule
                    .succeeded_count
                    .map_or(listed.len(), |count| usize::try_from(count).unwrap_or(0));
                have >= wanted
            }
            None => {
                let wanted = usize::try_from(rule.succeeded_count?).unwrap_or(0);
                done.len() >= wanted
            }
        };
        met.then(|| format!("Matched rules at index {number}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn failed(code: i32, condition: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "status": {"phase": "Failed",
                "conditions": [{"type": condition, "status": "True"}],
                "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"terminated": {"exitCode": code}}}]},
        }))
        .unwrap()
    }

    fn job(key: &str, rules: Value) -> Job {
        serde_json::from_value(json!({"spec": {"template": {}, key: {"rules": rules}}})).unwrap()
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let job = job(
            "podFailurePolicy",
            json!([
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob",
                    "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
                {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1]}},
            ]),
        );
        assert_eq!(
            judge(&job, &failed(42, "DisruptionTarget")),
            Verdict::Ignore
        );
        assert_eq!(
            judge(&job, &failed(42, "Other")),
            Verdict::FailJob(
                "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1"
                    .into()
            )
        );
        assert_eq!(judge(&job, &failed(7, "Other")), Verdict::FailIndex);
        assert_eq!(judge(&job, &failed(1, "Other")), Verdict::Count);
    }

    #[test]
    fn some_successes_can_be_enough() {
        let job = job(
            "successPolicy",
            json!([{"succeededIndexes": "0,2-3", "succeededCount": 2}, {"succeededCount": 4}]),
        );
        let met = |text: &str| succeeded(&job, 10, &parse(text, 10));
        assert_eq!(met("0,1"), None);
        assert_eq!(met("0,3").as_deref(), Some("Matched rules at index 0"));
        assert_eq!(met("1,4-6").as_deref(), Some("Matched rules at index 1"));
    }
}
