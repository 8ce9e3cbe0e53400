//! The arithmetic of LimitRanges, with upstream's sentences.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use windlass_machinery::quantity::Quantity;

type Amounts = BTreeMap<String, Quantity>;

fn amounts(value: &Value) -> Amounts {
    let map = value.as_object().into_iter().flatten();
    map.filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(amount.as_str()?).ok()?)))
        .collect()
}

fn items<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn limits_of<'r>(range: &'r Value, kind: &'static str) -> impl Iterator<Item = &'r Value> {
    items(&range["spec"], "limits")
        .iter()
        .filter(move |limit| limit["type"] == kind)
}

/// Fills in requests and limits that containers lack; answers what was set, in words.
pub(super) fn apply_defaults(range: &Value, pod_spec: &mut Value) -> Vec<String> {
    let mut requests = Map::new();
    let mut limits = Map::new();
    for limit in limits_of(range, "Container") {
        let take = |from: &str, into: &mut Map<String, Value>| {
            into.extend(limit[from].as_object().cloned().unwrap_or_default());
        };
        take("defaultRequest", &mut requests);
        take("default", &mut limits);
    }
    let mut notes = Vec::new();
    for (list, word) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        let containers = pod_spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (kind, noun, defaults) in [
                ("requests", "request", &requests),
                ("limits", "limit", &limits),
            ] {
                let set = fill(container, kind, defaults);
                if !set.is_empty() {
                    notes.push(format!("{} {noun} for {word} {name}", set.join(", ")));
                }
            }
        }
    }
    notes
}

fn fill(container: &mut Value, kind: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let mut set = Vec::new();
    for (resource, amount) in defaults {
        if !container["resources"].is_object() {
            container["resources"] = json!({});
        }
        let present = &mut container["resources"][kind];
        if present.is_null() {
            *present = json!({});
        }
        if present.get(resource).is_none() {
            present[resource] = amount.clone();
            set.push(resource.clone());
        }
    }
    set
}

/// What of a pod is outside the range's bounds.
pub(super) fn pod_faults(range: &Value, spec: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let all = items(spec, "containers")
        .iter()
        .chain(items(spec, "initContainers"));
    for container in all {
        let (requests, limits) = container_amounts(container);
        for limit in limits_of(range, "Container") {
            faults.extend(outside(limit, "Container", &requests, &limits));
        }
    }
    for limit in limits_of(range, "Pod") {
        let (requests, limits) = pod_amounts(spec);
        faults.extend(outside(limit, "Pod", &requests, &limits));
    }
    faults
}

/// What of a PersistentVolumeClaim is outside the range's bounds.
pub(super) fn claim_faults(range: &Value, spec: &Value) -> Vec<String> {
    let requests = amounts(&spec["resources"]["requests"]);
    let mut faults = Vec::new();
    for limit in limits_of(range, "PersistentVolumeClaim") {
        const KIND: &str = "PersistentVolumeClaim";
        for (resource, bound) in amounts(&limit["min"]) {
            faults.extend(below(
                KIND,
                &resource,
                &bound,
                requests.get(&resource),
                None,
            ));
        }
        for (resource, bound) in amounts(&limit["max"]) {
            let request = requests.get(&resource);
            faults.extend(above(KIND, &resource, &bound, "request", request, None));
        }
    }
    faults
}

fn container_amounts(container: &Value) -> (Amounts, Amounts) {
    let resources = &container["resources"];
    (
        amounts(&resources["requests"]),
        amounts(&resources["limits"]),
    )
}

/// Containers run together, init containers one after the other: the pod needs the larger of both. A sidecar
/// (init container with restartPolicy Always) runs together with all that follows it.
fn pod_amounts(spec: &Value) -> (Amounts, Amounts) {
    let mut total = (Amounts::new(), Amounts::new());
    let add = |to: &mut (Amounts, Amounts), container: &Value| {
        let (requests, limits) = container_amounts(container);
        sum(&mut to.0, &requests);
        sum(&mut to.1, &limits);
    };
    for container in items(spec, "containers") {
        add(&mut total, container);
    }
    let mut sidecars = (Amounts::new(), Amounts::new());
    let mut peak = (Amounts::new(), Amounts::new());
    for container in items(spec, "initContainers") {
        if container["restartPolicy"] == "Always" {
            add(&mut sidecars, container);
            continue;
        }
        let mut moment = sidecars.clone();
        add(&mut moment, container);
        largest(&mut peak.0, &moment.0);
        largest(&mut peak.1, &moment.1);
    }
    sum(&mut total.0, &sidecars.0);
    sum(&mut total.1, &sidecars.1);
    largest(&mut total.0, &peak.0);
    largest(&mut total.1, &peak.1);
    total
}

fn sum(into: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let total = into
            .get(name)
            .map_or_else(|| *amount, |present| present.add(amount));
        into.insert(name.clone(), total);
    }
}

fn largest(into: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if into.get(name).is_none_or(|present| present < amount) {
            into.insert(name.clone(), *amount);
        }
    }
}

fn outside(limit: &Value, kind: &str, requests: &Amounts, limits: &Amounts) -> Vec<String> {
    let mut faults = Vec::new();
    for (resource, bound) in amounts(&limit["min"]) {
        faults.extend(below(
            kind,
            &resource,
            &bound,
            requests.get(&resource),
            limits.get(&resource),
        ));
    }
    for (resource, bound) in amounts(&limit["max"]) {
        let request = requests.get(&resource);
        faults.extend(above(
            kind,
            &resource,
            &bound,
            "limit",
            limits.get(&resource),
            request,
        ));
    }
    for (resource, ratio) in amounts(&limit["maxLimitRequestRatio"]) {
        let pair = (requests.get(&resource), limits.get(&resource));
        faults.extend(ratio_fault(kind, &resource, &ratio, pair));
    }
    faults
}

fn below(
    kind: &str,
    resource: &str,
    bound: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let text = format!("minimum {resource} usage per {kind} is {bound}");
    match (request, limit) {
        (None, _) => Some(format!("{text}.  No request is specified")),
        (Some(request), _) if request < bound => Some(format!("{text}, but request is {request}")),
        (_, Some(limit)) if limit < bound => Some(format!("{text}, but limit is {limit}")),
        _ => None,
    }
}

/// `first` is what must be there (named by `noun`), `request` is checked as well where it is.
fn above(
    kind: &str,
    resource: &str,
    bound: &Quantity,
    noun: &str,
    first: Option<&Quantity>,
    request: Option<&Quantity>,
) -> Option<String> {
    let text = format!("maximum {resource} usage per {kind} is {bound}");
    match (first, request) {
        (None, _) => Some(format!("{text}.  No {noun} is specified")),
        (Some(first), _) if first > bound => Some(format!("{text}, but {noun} is {first}")),
        (_, Some(request)) if request > bound => Some(format!("{text}, but request is {request}")),
        _ => None,
    }
}

fn ratio_fault(
    kind: &str,
    resource: &str,
    allowed: &Quantity,
    (request, limit): (Option<&Quantity>, Option<&Quantity>),
) -> Option<String> {
    let text = format!("{resource} max limit to request ratio per {kind} is {allowed}");
    let Some(request) = request.filter(|r| !r.is_zero()) else {
        return Some(format!(
            "{text}, but no request is specified or request is 0"
        ));
    };
    let Some(limit) = limit.filter(|l| !l.is_zero()) else {
        return Some(format!("{text}, but no limit is specified or limit is 0"));
    };
    let ratio = limit.as_f64() / request.as_f64();
    (ratio > allowed.as_f64()).then(|| format!("{text}, but provided ratio is {ratio:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> Value {
        json!({"spec": {"limits": [
            {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"},
             "min": {"cpu": "50m"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "5"}},
            {"type": "Pod", "max": {"memory": "1Gi"}},
            {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}]}})
    }

    #[test]
    fn containers_get_what_they_lack_and_keep_what_they_have() {
        let mut spec = json!({"containers": [
            {"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "200m"}}}]});
        let notes = apply_defaults(&range(), &mut spec);
        assert_eq!(
            spec["containers"][0]["resources"],
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m"}})
        );
        assert_eq!(
            spec["containers"][1]["resources"],
            json!({"requests": {"cpu": "200m"}, "limits": {"cpu": "500m"}})
        );
        assert_eq!(
            notes,
            [
                "cpu request for container a",
                "cpu limit for container a",
                "cpu limit for container b"
            ]
        );
    }

    #[test]
    fn every_bound_has_its_sentence() {
        let container = |requests: Value, limits: Value| {
            json!({"containers": [{"name": "a",
            "resources": {"requests": requests, "limits": limits}}]})
        };
        let memory = json!({"cpu": "500m", "memory": "1Mi"});
        let table = [
            (
                container(
                    json!({"cpu": "10m"}),
                    json!({"cpu": "20m", "memory": "1Mi"}),
                ),
                "minimum cpu usage per Container is 50m, but request is 10m",
            ),
            (
                container(json!({"cpu": "100m"}), json!({"memory": "1Mi"})),
                "maximum cpu usage per Container is 1.  No limit is specified",
            ),
            (
                container(json!({"cpu": "2"}), json!({"cpu": "2", "memory": "1Mi"})),
                "maximum cpu usage per Container is 1, but limit is 2",
            ),
            (
                container(json!({"cpu": "50m"}), memory),
                "cpu max limit to request ratio per Container is 5, but provided ratio is 10.000000",
            ),
            (
                container(
                    json!({"cpu": "500m"}),
                    json!({"cpu": "500m", "memory": "2Gi"}),
                ),
                "maximum memory usage per Pod is 1Gi, but limit is 2Gi",
            ),
        ];
        for (spec, expected) in table {
            let faults = pod_faults(&range(), &spec);
            assert!(
                faults.contains(&expected.to_owned()),
                "{faults:?} lacks {expected}"
            );
        }
        let claim = json!({"resources": {"requests": {"storage": "3Gi"}}});
        assert_eq!(
            claim_faults(&range(), &claim),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
    }

    #[test]
    fn a_pod_within_its_bounds_passes() {
        let spec = json!({"containers": [{"name": "a", "resources": {
            "requests": {"cpu": "100m"}, "limits": {"cpu": "400m", "memory": "1Mi"}}}]});
        assert!(pod_faults(&range(), &spec).is_empty());
    }
}
