//! What pods use of a quota.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};

use super::{Amounts, Usage, add, one, parsed};

/// What every container must state when a quota limits it. Upstream calls that a mistake of its early days,
/// which is why it ends with these.
const MUST_BE_STATED: [&str; 6] = [
    "cpu",
    "limits.cpu",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.memory",
];

fn amounts(of: Option<&Amounts>) -> Usage {
    let all = of.into_iter().flatten();
    all.map(|(name, amount)| (name.clone(), parsed(amount)))
        .collect()
}

/// The larger of the running containers together and the most demanding moment of initialisation; what the
/// pod states for itself replaces both.
fn compute(spec: &PodSpec, of: impl Fn(&ResourceRequirements) -> Option<&Amounts>) -> Usage {
    let of_container = |container: &Container| amounts(container.resources.as_ref().and_then(&of));
    let raise = |to: &mut Usage, other: &Usage| {
        for (name, amount) in other {
            let larger = to.get(name).map_or(*amount, |have| (*have).max(*amount));
            to.insert(name.clone(), larger);
        }
    };
    let mut running = Usage::new();
    for container in &spec.containers {
        add(&mut running, &of_container(container));
    }
    let (mut sidecars, mut starting) = (Usage::new(), Usage::new());
    for container in spec.init_containers.iter().flatten() {
        let asked = of_container(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut running, &asked);
            add(&mut sidecars, &asked);
            raise(&mut starting, &sidecars);
        } else {
            let mut moment = sidecars.clone();
            add(&mut moment, &asked);
            raise(&mut starting, &moment);
        }
    }
    raise(&mut running, &starting);
    running.extend(amounts(spec.resources.as_ref().and_then(of)));
    running
}

fn requests(resources: &ResourceRequirements) -> Option<&Amounts> {
    resources.requests.as_ref()
}

fn limits(resources: &ResourceRequirements) -> Option<&Amounts> {
    resources.limits.as_ref()
}

/// Its containers will not run again, or should long be gone.
fn has_ended(pod: &Pod, now: Timestamp) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return true;
    }
    let metadata = &pod.metadata;
    let end = metadata.deletion_timestamp.as_ref();
    end.zip(metadata.deletion_grace_period_seconds)
        .is_some_and(|(end, grace)| now.duration_since(end.0) > SignedDuration::from_secs(grace))
}

/// What a pod uses; one that has ended uses nothing but its object.
pub fn of_pod(pod: &Pod, now: Timestamp) -> Usage {
    let mut usage = Usage::from([("count/pods".to_owned(), one())]);
    if has_ended(pod, now) {
        return usage;
    }
    usage.insert("pods".to_owned(), one());
    let Some(spec) = &pod.spec else { return usage };
    let overhead = amounts(spec.overhead.as_ref());
    let mut requested = compute(spec, requests);
    add(&mut requested, &overhead);
    let mut limited = compute(spec, limits);
    // A pod without a limit does not get one from its overhead.
    let raised = overhead
        .into_iter()
        .filter(|(name, _)| limited.contains_key(name));
    let raised = raised.collect();
    add(&mut limited, &raised);
    usage.extend(named(&requested, &limited));
    usage
}

/// Amounts under the names that quotas have for them.
fn named(requested: &Usage, limited: &Usage) -> Usage {
    let mut usage = Usage::new();
    for (name, amount) in requested {
        if is_standard(name) || name.starts_with("hugepages-") {
            usage.insert(name.clone(), *amount);
        }
        usage.insert(format!("requests.{name}"), *amount);
    }
    for (name, amount) in limited.iter().filter(|(name, _)| is_standard(name)) {
        usage.insert(format!("limits.{name}"), *amount);
    }
    usage
}

fn is_standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
}

pub(super) fn tracks(name: &str) -> bool {
    match name.split_once('.') {
        Some(("limits", of)) => is_standard(of),
        // Extended resources have a domain.
        Some(("requests", of)) => {
            is_standard(of) || of.starts_with("hugepages-") || of.contains('/')
        }
        _ => {
            is_standard(name)
                || name.starts_with("hugepages-")
                || matches!(name, "pods" | "count/pods")
        }
    }
}

/// Which of the `limited` quota resources some container does not state, as upstream words it:
/// `must specify cpu for: a,b; memory for: b`.
pub fn missing_requests<'a>(pod: &Pod, limited: impl Iterator<Item = &'a str>) -> Option<String> {
    let limited: BTreeSet<_> = limited
        .filter(|name| MUST_BE_STATED.contains(name))
        .collect();
    let spec = pod.spec.as_ref()?;
    let stated = |resources: Option<&ResourceRequirements>| {
        named(
            &amounts(resources.and_then(requests)),
            &amounts(resources.and_then(limits)),
        )
    };
    let by_pod = stated(spec.resources.as_ref());
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        let by_container = stated(container.resources.as_ref());
        for name in &limited {
            if !by_container.contains_key(*name) && !by_pod.contains_key(*name) {
                missing.entry(name).or_default().insert(&container.name);
            }
        }
    }
    if missing.is_empty() {
        return None;
    }
    let parts = missing.iter().map(|(name, containers)| {
        let containers: Vec<_> = containers.iter().copied().collect();
        format!("{name} for: {}", containers.join(","))
    });
    Some(format!(
        "must specify {}",
        parts.collect::<Vec<_>>().join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::quota::shown;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    #[test]
    fn a_pod_uses_what_it_asks_for() {
        let cpu = |amount: &str| json!({"name": "x", "resources": {"requests": {"cpu": amount}}});
        let sidecar = |amount: &str| {
            let mut container = cpu(amount);
            container["restartPolicy"] = "Always".into();
            container
        };
        let table = [
            (json!({"containers": [cpu("100m"), cpu("900m")]}), "1"),
            (
                json!({"containers": [cpu("1")], "initContainers": [cpu("3"), cpu("2")]}),
                "3",
            ),
            (
                json!({"containers": [cpu("1")], "initContainers": [sidecar("1"), cpu("3")]}),
                "4",
            ),
            (
                json!({"containers": [cpu("1")], "initContainers": [cpu("3"), sidecar("1")]}),
                "3",
            ),
            (
                json!({"containers": [cpu("3")], "initContainers": [sidecar("1")]}),
                "4",
            ),
            (
                json!({"containers": [cpu("1")], "overhead": {"cpu": "250m"}}),
                "1250m",
            ),
            (
                json!({"containers": [cpu("1")], "resources": {"requests": {"cpu": "2"}}}),
                "2",
            ),
        ];
        for (spec, expected) in table {
            let usage = of_pod(&pod(spec.clone()), Timestamp::UNIX_EPOCH);
            assert_eq!(usage["requests.cpu"].to_string(), expected, "{spec}");
            assert_eq!(usage["cpu"], usage["requests.cpu"]);
            assert!(!usage.contains_key("limits.cpu"), "{spec}");
            assert!(usage.keys().all(|name| tracks(name)), "{spec}");
        }
    }

    #[test]
    fn amounts_have_all_their_names() {
        let spec = json!({"containers": [{"name": "a", "resources": {
            "requests": {"memory": "1Gi", "example.com/gpu": "2", "hugepages-2Mi": "4Mi"},
            "limits": {"cpu": "1", "example.com/gpu": "2"},
        }}]});
        assert_eq!(
            shown(&of_pod(&pod(spec), Timestamp::UNIX_EPOCH)),
            [
                "count/pods=1",
                "hugepages-2Mi=4Mi",
                "limits.cpu=1",
                "memory=1Gi",
                "pods=1",
                "requests.example.com/gpu=2",
                "requests.hugepages-2Mi=4Mi",
                "requests.memory=1Gi",
            ]
        );
    }

    #[test]
    fn a_pod_that_has_ended_is_only_an_object() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let deleted = |at: i64| {
            let at = Timestamp::from_second(at).unwrap().to_string();
            json!({"metadata": {"deletionTimestamp": at, "deletionGracePeriodSeconds": 30}, "spec": {"containers": []}})
        };
        let table = [
            (json!({"status": {"phase": "Succeeded"}}), false),
            (json!({"status": {"phase": "Failed"}}), false),
            (json!({"status": {"phase": "Running"}}), true),
            (deleted(999_980), true),
            (deleted(999_960), false),
        ];
        for (object, counted) in table {
            let pod: Pod = serde_json::from_value(object.clone()).unwrap();
            let usage = of_pod(&pod, now);
            assert!(usage.contains_key("count/pods"));
            assert_eq!(usage.contains_key("pods"), counted, "{object}");
        }
    }

    #[test]
    fn limited_amounts_must_be_stated_by_every_container() {
        let spec = json!({
            "containers": [
                {"name": "b"},
                {"name": "a", "resources": {"requests": {"cpu": "1"}}},
            ],
            "initContainers": [{"name": "c", "resources": {"limits": {"memory": "1"}}}],
        });
        let table: [(&[&str], Option<&str>); 4] = [
            (&["pods", "requests.ephemeral-storage"], None),
            (
                &["requests.cpu"],
                Some("must specify requests.cpu for: b,c"),
            ),
            (
                &["limits.memory", "cpu"],
                Some("must specify cpu for: b,c; limits.memory for: a,b"),
            ),
            (&[], None),
        ];
        for (limited, expected) in table {
            let found = missing_requests(&pod(spec.clone()), limited.iter().copied());
            assert_eq!(found.as_deref(), expected, "{limited:?}");
        }
        let mut of_pod = spec;
        of_pod["resources"] = json!({"requests": {"cpu": "2"}});
        assert_eq!(missing_requests(&pod(of_pod), ["cpu"].into_iter()), None);
    }
}
