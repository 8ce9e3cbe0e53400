//! What objects use of a quota, by the names that `spec.hard` may carry: pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, PersistentVolumeClaim, Pod, PodSpec, ResourceQuotaSpec,
        ScopedResourceSelectorRequirement, Service,
    },
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use windlass_machinery::quantity::{Format, Quantity};

use crate::pods;

/// Amounts by resource name.
pub(super) type Usage = BTreeMap<String, Quantity>;

pub(super) fn add(total: &mut Usage, more: &Usage) {
    for (name, amount) in more {
        let sum = total.get(name).map_or(*amount, |have| have.add(amount));
        total.insert(name.clone(), sum);
    }
}

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

fn parsed(quantity: &ApiQuantity) -> Quantity {
    // The API server validated it; what still does not parse uses nothing.
    Quantity::parse(&quantity.0).unwrap_or(Quantity::ZERO)
}

type Amounts = BTreeMap<String, ApiQuantity>;

/// The larger of the running containers together and the most demanding moment of initialisation.
fn compute(spec: &PodSpec, of: impl Fn(&Container) -> Option<&Amounts>) -> Usage {
    let amounts = |container: &Container| -> Usage {
        let all = of(container).into_iter().flatten();
        all.map(|(name, amount)| (name.clone(), parsed(amount)))
            .collect()
    };
    let raise = |to: &mut Usage, other: &Usage| {
        for (name, amount) in other {
            let larger = to.get(name).map_or(*amount, |have| (*have).max(*amount));
            to.insert(name.clone(), larger);
        }
    };
    let mut running = Usage::new();
    for container in &spec.containers {
        add(&mut running, &amounts(container));
    }
    let (mut sidecars, mut starting) = (Usage::new(), Usage::new());
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut running, &amounts(container));
            add(&mut sidecars, &amounts(container));
            raise(&mut starting, &sidecars);
        } else {
            let mut moment = sidecars.clone();
            add(&mut moment, &amounts(container));
            raise(&mut starting, &moment);
        }
    }
    raise(&mut running, &starting);
    let overhead = spec.overhead.iter().flatten();
    let overhead: Usage = overhead
        .map(|(name, amount)| (name.clone(), parsed(amount)))
        .collect();
    add(&mut running, &overhead);
    running
}

/// What a pod uses; one that has ended uses nothing but its object.
pub(super) fn of_pod(pod: &Pod) -> Usage {
    let mut usage = Usage::from([("count/pods".to_owned(), one())]);
    if pods::is_finished(pod) {
        return usage;
    }
    usage.insert("pods".to_owned(), one());
    let Some(spec) = &pod.spec else { return usage };
    let requests = compute(spec, |container| {
        container.resources.as_ref()?.requests.as_ref()
    });
    let limits = compute(spec, |container| {
        container.resources.as_ref()?.limits.as_ref()
    });
    for (name, amount) in requests {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
            || name.starts_with("hugepages-")
        {
            usage.insert(name.clone(), amount);
        }
        usage.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{name}"), amount);
        }
    }
    usage
}

pub(super) fn of_service(service: &Service) -> Usage {
    let mut usage = Usage::from([
        ("count/services".to_owned(), one()),
        ("services".to_owned(), one()),
    ]);
    let Some(spec) = &service.spec else {
        return usage;
    };
    let ports = spec.ports.iter().flatten();
    let taken = match spec.type_.as_deref() {
        Some("NodePort") => ports.count(),
        Some("LoadBalancer") => {
            usage.insert("services.loadbalancers".to_owned(), one());
            ports
                .filter(|port| port.node_port.is_some_and(|number| number != 0))
                .count()
        }
        _ => 0,
    };
    if taken > 0 {
        let taken = i64::try_from(taken).unwrap_or(i64::MAX);
        usage.insert(
            "services.nodeports".to_owned(),
            Quantity::new(taken, Format::DecimalSi),
        );
    }
    usage
}

pub(super) fn of_claim(claim: &PersistentVolumeClaim) -> Usage {
    let mut usage = Usage::from([
        ("count/persistentvolumeclaims".to_owned(), one()),
        ("persistentvolumeclaims".to_owned(), one()),
    ]);
    let spec = claim.spec.as_ref();
    let storage = spec
        .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"))
        .map(parsed);
    if let Some(storage) = storage {
        usage.insert("requests.storage".to_owned(), storage);
    }
    let class = spec.and_then(|spec| spec.storage_class_name.clone());
    if let Some(class) = class.filter(|class| !class.is_empty()) {
        let prefix = format!("{class}.storageclass.storage.k8s.io");
        usage.insert(format!("{prefix}/persistentvolumeclaims"), one());
        if let Some(storage) = storage {
            usage.insert(format!("{prefix}/requests.storage"), storage);
        }
    }
    usage
}

/// Asks for no CPU and no memory, neither as request nor as limit.
fn is_best_effort(spec: &PodSpec) -> bool {
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .all(|container| {
            container.resources.as_ref().is_none_or(|resources| {
                [&resources.requests, &resources.limits]
                    .into_iter()
                    .all(|amounts| {
                        amounts.as_ref().is_none_or(|amounts| {
                            ["cpu", "memory"].iter().all(|name| {
                                amounts
                                    .get(*name)
                                    .is_none_or(|amount| parsed(amount).is_zero())
                            })
                        })
                    })
            })
        })
}

fn reaches_other_namespaces(spec: &PodSpec) -> bool {
    let affinity = spec.affinity.as_ref();
    let pod = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let anti = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let required = pod
        .and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .into_iter()
        .chain(anti.and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        }))
        .flatten();
    let preferred = pod
        .and_then(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .into_iter()
        .chain(anti.and_then(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        }))
        .flatten()
        .map(|weighted| &weighted.pod_affinity_term);
    required.chain(preferred).any(|term| {
        term.namespace_selector.is_some()
            || term
                .namespaces
                .as_ref()
                .is_some_and(|names| !names.is_empty())
    })
}

fn in_scope(name: &str, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    match name {
        "Terminating" => spec.active_deadline_seconds.is_some(),
        "NotTerminating" => spec.active_deadline_seconds.is_none(),
        "BestEffort" => is_best_effort(spec),
        "NotBestEffort" => !is_best_effort(spec),
        "CrossNamespacePodAffinity" => reaches_other_namespaces(spec),
        "PriorityClass" => spec.priority_class_name.is_some(),
        _ => false,
    }
}

fn holds(requirement: &ScopedResourceSelectorRequirement, pod: &Pod) -> bool {
    if requirement.scope_name != "PriorityClass" {
        let wanted = requirement.operator != "DoesNotExist";
        return in_scope(&requirement.scope_name, pod) == wanted;
    }
    let class = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.priority_class_name.as_ref());
    let listed = class.is_some_and(|class| {
        requirement
            .values
            .iter()
            .flatten()
            .any(|value| value == class)
    });
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => class.is_some(),
        "DoesNotExist" => class.is_none(),
        _ => false,
    }
}

/// Whether a quota with scopes counts a pod.
pub(super) fn covers(spec: &ResourceQuotaSpec, pod: &Pod) -> bool {
    let scopes = spec
        .scopes
        .iter()
        .flatten()
        .all(|scope| in_scope(scope, pod));
    let selected = spec
        .scope_selector
        .iter()
        .flat_map(|selector| selector.match_expressions.iter().flatten())
        .all(|requirement| holds(requirement, pod));
    scopes && selected
}

/// `count/<resource>.<group>`, or one of the old names for the same: resource and group.
pub(super) fn counted_kind(name: &str) -> Option<(String, String)> {
    if let Some(counted) = name.strip_prefix("count/") {
        let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
        return Some((group.to_owned(), resource.to_owned()));
    }
    let old = [
        "configmaps",
        "secrets",
        "replicationcontrollers",
        "resourcequotas",
    ];
    old.contains(&name)
        .then(|| (String::new(), name.to_owned()))
}

/// Pods, services and claims are measured, not only counted.
pub(super) fn is_measured(group: &str, resource: &str) -> bool {
    group.is_empty() && matches!(resource, "pods" | "services" | "persistentvolumeclaims")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value, phase: &str) -> Pod {
        serde_json::from_value(json!({"spec": spec, "status": {"phase": phase}})).unwrap()
    }

    fn shown(usage: &Usage) -> Vec<String> {
        usage
            .iter()
            .map(|(name, amount)| format!("{name}={amount}"))
            .collect()
    }

    #[test]
    fn a_pod_uses_what_it_asks_for_until_it_ends() {
        let spec = json!({"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"},
                "limits": {"cpu": "1"}}},
            {"name": "b", "resources": {"requests": {"cpu": "900m"}}}]});
        assert_eq!(
            shown(&of_pod(&pod(spec.clone(), "Running"))),
            [
                "count/pods=1",
                "cpu=1",
                "limits.cpu=1",
                "memory=1Gi",
                "pods=1",
                "requests.cpu=1",
                "requests.memory=1Gi"
            ]
        );
        assert_eq!(shown(&of_pod(&pod(spec, "Succeeded"))), ["count/pods=1"]);
    }

    #[test]
    fn services_and_claims_use_ports_and_storage() {
        let service: Service = serde_json::from_value(json!({"spec": {"type": "NodePort",
            "ports": [{"port": 1}, {"port": 2}]}}))
        .unwrap();
        assert_eq!(
            shown(&of_service(&service)),
            ["count/services=1", "services=1", "services.nodeports=2"]
        );
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"spec": {
            "storageClassName": "gold", "resources": {"requests": {"storage": "5Gi"}}}}))
        .unwrap();
        let usage = of_claim(&claim);
        assert_eq!(usage["requests.storage"].to_string(), "5Gi");
        assert_eq!(
            usage["gold.storageclass.storage.k8s.io/requests.storage"].to_string(),
            "5Gi"
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let plain = pod(json!({"containers": []}), "Running");
        let urgent = pod(
            json!({"containers": [], "priorityClassName": "high", "activeDeadlineSeconds": 5}),
            "Running",
        );
        let cases = [
            (json!({"scopes": ["BestEffort"]}), true, true),
            (json!({"scopes": ["NotBestEffort"]}), false, false),
            (json!({"scopes": ["Terminating"]}), false, true),
            (
                json!({"scopeSelector": {"matchExpressions": [
                    {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}),
                false,
                true,
            ),
            (
                json!({"scopeSelector": {"matchExpressions": [
                    {"scopeName": "PriorityClass", "operator": "DoesNotExist"}]}}),
                true,
                false,
            ),
        ];
        for (spec, of_plain, of_urgent) in cases {
            let parsed: ResourceQuotaSpec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(covers(&parsed, &plain), of_plain, "{spec}");
            assert_eq!(covers(&parsed, &urgent), of_urgent, "{spec}");
        }
    }

    #[test]
    fn counted_names_tell_group_and_resource() {
        let kind = |name| counted_kind(name).map(|(group, resource)| format!("{group}/{resource}"));
        assert_eq!(
            kind("count/deployments.apps").as_deref(),
            Some("apps/deployments")
        );
        assert_eq!(kind("count/secrets").as_deref(), Some("/secrets"));
        assert_eq!(kind("configmaps").as_deref(), Some("/configmaps"));
        assert_eq!(kind("requests.cpu"), None);
    }
}
