//! Scopes: which pods and claims a quota is about.

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, PodAffinityTerm, PodSpec, ResourceQuotaSpec, ResourceRequirements,
    ScopedResourceSelectorRequirement,
};

use super::parsed;

/// Asks for no CPU and no memory, neither as request nor as limit.
fn is_best_effort(spec: &PodSpec) -> bool {
    let asks = |resources: &ResourceRequirements| {
        let amounts = [&resources.requests, &resources.limits];
        amounts.into_iter().flatten().any(|amounts| {
            let of = |name| {
                amounts
                    .get(name)
                    .is_some_and(|amount| !parsed(amount).is_zero())
            };
            of("cpu") || of("memory")
        })
    };
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    let of_containers = containers.filter_map(|container| container.resources.as_ref());
    !of_containers.chain(spec.resources.as_ref()).any(asks)
}

fn reaches_other_namespaces(spec: &PodSpec) -> bool {
    let reaches = |term: &PodAffinityTerm| {
        let named = term
            .namespaces
            .as_ref()
            .is_some_and(|names| !names.is_empty());
        named || term.namespace_selector.is_some()
    };
    let Some(affinity) = &spec.affinity else {
        return false;
    };
    let near = affinity.pod_affinity.as_ref();
    let apart = affinity.pod_anti_affinity.as_ref();
    let required = [
        near.and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        }),
        apart.and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        }),
    ];
    let preferred = [
        near.and_then(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        }),
        apart.and_then(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        }),
    ];
    required.into_iter().flatten().flatten().any(reaches)
        || preferred
            .into_iter()
            .flatten()
            .flatten()
            .any(|weighted| reaches(&weighted.pod_affinity_term))
}

fn class(spec: &PodSpec) -> Option<&str> {
    spec.priority_class_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

fn in_scope(name: &str, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let terminating = spec
        .active_deadline_seconds
        .is_some_and(|seconds| seconds >= 0);
    match name {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => is_best_effort(spec),
        "NotBestEffort" => !is_best_effort(spec),
        "CrossNamespacePodAffinity" => reaches_other_namespaces(spec),
        "PriorityClass" => class(spec).is_some(),
        _ => false,
    }
}

/// Compares a class name with a scope selector's requirement.
fn compare(requirement: &ScopedResourceSelectorRequirement, class: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = class.is_some_and(|class| values.iter().any(|value| value == class));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => class.is_some(),
        "DoesNotExist" => class.is_none(),
        _ => false,
    }
}

fn requirements(
    spec: &ResourceQuotaSpec,
) -> impl Iterator<Item = &ScopedResourceSelectorRequirement> {
    let selector = spec.scope_selector.iter();
    selector.flat_map(|selector| selector.match_expressions.iter().flatten())
}

/// Whether a quota counts a pod.
pub fn covers(spec: &ResourceQuotaSpec, pod: &Pod) -> bool {
    let scopes = spec.scopes.iter().flatten();
    scopes.into_iter().all(|scope| in_scope(scope, pod))
        && requirements(spec).all(|requirement| match requirement.scope_name.as_str() {
            "PriorityClass" => compare(requirement, pod.spec.as_ref().and_then(class)),
            other => in_scope(other, pod),
        })
}

/// Whether a quota counts a claim.
pub fn covers_claim(spec: &ResourceQuotaSpec, claim: &PersistentVolumeClaim) -> bool {
    let wanted = claim.spec.as_ref();
    let class = wanted.and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let class = class.filter(|name| !name.is_empty());
    let scopes = spec.scopes.iter().flatten();
    scopes
        .into_iter()
        .all(|scope| scope == "VolumeAttributesClass" && class.is_some())
        && requirements(spec).all(|requirement| {
            requirement.scope_name == "VolumeAttributesClass" && compare(requirement, class)
        })
}

/// Whether a quota is about some objects of a kind only.
pub fn is_scoped(spec: &ResourceQuotaSpec) -> bool {
    spec.scopes
        .as_ref()
        .is_some_and(|scopes| !scopes.is_empty())
        || requirements(spec).next().is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scopes_choose_pods() {
        let pod = |spec| -> Pod { serde_json::from_value(json!({"spec": spec})).unwrap() };
        let plain = pod(json!({"containers": []}));
        let urgent = pod(json!({
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}],
            "priorityClassName": "high",
            "activeDeadlineSeconds": 5,
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "x", "namespaces": ["other"]},
            ]}},
        }));
        let class = |operator: &str, values: &[&str]| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values},
            ]}})
        };
        let table = [
            (json!({}), true, true),
            (json!({"scopes": ["BestEffort"]}), true, false),
            (json!({"scopes": ["NotBestEffort"]}), false, true),
            (json!({"scopes": ["Terminating"]}), false, true),
            (json!({"scopes": ["NotTerminating"]}), true, false),
            (json!({"scopes": ["PriorityClass"]}), false, true),
            (
                json!({"scopes": ["CrossNamespacePodAffinity"]}),
                false,
                true,
            ),
            (
                json!({"scopes": ["Terminating", "BestEffort"]}),
                false,
                false,
            ),
            (class("In", &["high"]), false, true),
            (class("NotIn", &["high"]), true, false),
            (class("Exists", &[]), false, true),
            (class("DoesNotExist", &[]), true, false),
        ];
        for (spec, of_plain, of_urgent) in table {
            let parsed: ResourceQuotaSpec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(covers(&parsed, &plain), of_plain, "{spec}");
            assert_eq!(covers(&parsed, &urgent), of_urgent, "{spec}");
        }
    }

    #[test]
    fn a_claim_has_only_the_scope_of_its_attributes() {
        let claim = |spec| serde_json::from_value(json!({"spec": spec})).unwrap();
        let plain = claim(json!({}));
        let gold = claim(json!({"volumeAttributesClassName": "gold"}));
        let table = [
            (json!({}), true, true),
            (json!({"scopes": ["Terminating"]}), false, false),
            (json!({"scopes": ["VolumeAttributesClass"]}), false, true),
        ];
        for (spec, of_plain, of_gold) in table {
            let parsed: ResourceQuotaSpec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(covers_claim(&parsed, &plain), of_plain, "{spec}");
            assert_eq!(covers_claim(&parsed, &gold), of_gold, "{spec}");
            assert_eq!(is_scoped(&parsed), spec != json!({}));
        }
    }
}
