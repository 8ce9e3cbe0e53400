//! Requests and limits of containers and pods.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::quantity::Quantity;
use windlass_machinery::validation::{ErrorKind, Errors, Path};

use super::kept::Kept;
use crate::tree::Tree;
use crate::validate::quantities::{
    amount, compare, container_resource_name, is_hugepages, is_overcommittable, parse,
    resource_name, show,
};
use crate::validate::sentences;

/// A container's `resources`; `path` is theirs. `claims` are the names of the pod's resource claims.
pub fn requirements(
    resources: &Value,
    claims: &[&str],
    kept: &Kept,
    path: &Path,
    errors: &mut Errors,
) {
    amounts(resources, container_resource_name, kept, path, errors);
    claim_names(resources, claims, &path.child("claims"), errors);
}

/// Limits and requests, whose names `check` holds to where they stand.
fn amounts(
    resources: &Value,
    check: fn(&str, &Path, &mut Errors),
    kept: &Kept,
    path: &Path,
    errors: &mut Errors,
) {
    for list in ["limits", "requests"] {
        for (name, value) in resources.entries(list) {
            let path_of_name = path.child(list).key(name);
            check(name, &path_of_name, errors);
            amount(name, value, &path_of_name, errors);
            if list == "requests" {
                let limit = resources.at("limits").get(name);
                request_within_limit(name, value, limit, path, errors);
            }
            if !kept.huge_page_multiples {
                whole_pages(name, value, &path_of_name, errors);
            }
        }
    }
    huge_pages_alone(resources, path, errors);
}

/// Huge pages are never all that is asked for.
pub fn huge_pages_alone(resources: &Value, path: &Path, errors: &mut Errors) {
    let named = |test: fn(&str) -> bool| {
        let names = ["limits", "requests"];
        names
            .iter()
            .any(|list| resources.entries(list).any(|(name, _)| test(name)))
    };
    if named(is_hugepages) && !named(|name| matches!(name, "cpu" | "memory")) {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
}

/// What [`requirements`] says about huge pages alone.
pub fn huge_page_multiples(resources: &Value, path: &Path, errors: &mut Errors) {
    for list in ["limits", "requests"] {
        for (name, value) in resources.entries(list) {
            whole_pages(name, value, path, errors);
        }
    }
}

fn whole_pages(name: &str, value: &Value, path: &Path, errors: &mut Errors) {
    let Some(size) = name.strip_prefix("hugepages-") else {
        return;
    };
    let bytes = |value: &Value| parse(value).map(|quantity| quantity.value());
    let divides = match (bytes(&size.into()), bytes(value)) {
        (Some(page), Some(wanted)) => page > 0 && wanted % page == 0,
        _ => false,
    };
    if !divides {
        let shown = show(value);
        let detail = format!("{shown} is not positive integer multiple of {name}");
        errors.invalid(path, shown, detail);
    }
}

/// Each of the pod's claims, or one of its requests, is referred to once.
fn claim_names(resources: &Value, claims: &[&str], path: &Path, errors: &mut Errors) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, claim) in resources.list("claims").iter().enumerate() {
        let path = path.index(i);
        let (name, request) = (claim.text("name"), claim.text("request"));
        if name.is_empty() {
            errors.required(&path, "");
            continue;
        }
        if !request.is_empty() && !seen.contains(&(name, "")) {
            let problems = names::is_dns1123_label(request);
            sentences(problems, &path.child("request"), request, errors);
        }
        if seen.contains(&(name, "")) {
            errors.duplicate(&path, name);
        } else if seen.contains(&(name, request)) {
            errors.duplicate(&path, format!("{name}/{request}"));
        } else if request.is_empty() {
            for _ in seen.iter().filter(|(other, _)| *other == name) {
                errors.duplicate(&path, name);
            }
        }
        seen.push((name, request));
        if !claims.contains(&name) {
            let mut known = claims.to_vec();
            known.sort_unstable();
            let detail = match known.as_slice() {
                [] => " which is empty".to_owned(),
                known => format!(": {}", known.join(", ")),
            };
            let detail = format!("must be one of the names in pod.spec.resourceClaims{detail}");
            errors.push(ErrorKind::NotFound, &path, name.into(), detail);
        }
    }
}

fn request_within_limit(
    name: &str,
    request: &Value,
    limit: Option<&Value>,
    path: &Path,
    errors: &mut Errors,
) {
    let requests_path = path.child("requests");
    match limit {
        Some(limit) => {
            let order = compare(request, limit);
            if !is_overcommittable(name) {
                if order.is_some_and(|o| o != Ordering::Equal) {
                    let detail = format!("must be equal to {name} limit of {}", show(limit));
                    errors.invalid(&requests_path, show(request), detail);
                }
            } else if order == Some(Ordering::Greater) {
                let detail = format!(
                    "must be less than or equal to {name} limit of {}",
                    show(limit)
                );
                errors.invalid(&requests_path, show(request), detail);
            }
        }
        None if !is_overcommittable(name) => errors.required(
            &path.child("limits"),
            "Limit must be set for non overcommitable resources",
        ),
        None => {}
    }
}

/// Pod-level `resources` (KEP-2837): cpu, memory and hugepages only.
pub fn pod_level(spec: &Value, kept: &Kept, path: &Path, errors: &mut Errors) {
    let resources = spec.at("resources");
    if resources.is_null() {
        return;
    }
    let path = path.child("resources");
    if resources.has("claims") {
        errors.forbidden(
            &path.child("claims"),
            "claims cannot be set for Resources at pod-level",
        );
    }
    amounts(resources, pod_resource_name, kept, &path, errors);
    room_for_containers(spec, &path, errors);
}

pub fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_hugepages(name)
}

fn pod_resource_name(name: &str, path: &Path, errors: &mut Errors) {
    let before = errors.len();
    resource_name(name, path, errors);
    if errors.len() == before && !is_pod_level(name) {
        errors.not_supported(path, name, &["cpu", "hugepages-", "memory"]);
    }
}

/// A pod asks for at least what its containers do together, and none of them may use more than the pod.
fn room_for_containers(spec: &Value, path: &Path, errors: &mut Errors) {
    let own = |list: &str, name: &str| spec.at("resources").at(list).get(name).and_then(parse);
    for (name, sum) in together(spec, "requests") {
        let path = path.child("requests").key(name);
        let has = own("requests", name).unwrap_or(Quantity::ZERO);
        if is_pod_level(name) && sum > has {
            let detail =
                format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(&path, has.to_string(), detail);
        }
    }
    for (name, sum) in together(spec, "limits") {
        let path = path.child("limits").key(name);
        if let Some(has) = own("limits", name).filter(|has| is_hugepages(name) && sum > *has) {
            let detail =
                format!("must be greater than or equal to aggregate container limits of {sum}");
            errors.invalid(&path, has.to_string(), detail);
        }
    }
    for (i, container) in spec.list("containers").iter().enumerate() {
        for (name, value) in container.entries("resources.limits") {
            let (Some(limit), Some(pods)) = (parse(value), own("limits", name)) else {
                continue;
            };
            if limit > pods {
                let path = path.child("containers").index(i).key(name).child("limits");
                let detail = format!("must be less than or equal to pod limits of {pods}");
                errors.invalid(&path, limit.to_string(), detail);
            }
        }
    }
}

/// What the containers of a pod ask for at most at one time: all that run for good, or one that initialises beside the
/// sidecars that were started before it.
pub fn together<'a>(spec: &'a Value, list: &str) -> BTreeMap<&'a str, Quantity> {
    fn add<'a>(sum: &mut BTreeMap<&'a str, Quantity>, container: &'a Value, list: &str) {
        for (name, value) in container.at("resources").entries(list) {
            let Some(value) = parse(value) else { continue };
            let sum = sum.entry(name).or_insert(Quantity::ZERO);
            *sum = sum.add(&value);
        }
    }
    let (mut running, mut sidecars) = (BTreeMap::new(), BTreeMap::new());
    let mut most: BTreeMap<&str, Quantity> = BTreeMap::new();
    spec.list("containers")
        .iter()
        .for_each(|container| add(&mut running, container, list));
    for container in spec.list("initContainers") {
        let mut moment = sidecars.clone();
        add(&mut moment, container, list);
        if container.text("restartPolicy") == "Always" {
            add(&mut running, container, list);
            sidecars = moment.clone();
        }
        for (name, value) in moment {
            let most = most.entry(name).or_insert(Quantity::ZERO);
            *most = value.max(*most);
        }
    }
    for (name, value) in running {
        let most = most.entry(name).or_insert(Quantity::ZERO);
        *most = value.max(*most);
    }
    most
}

/// Sets of resources that decide a pod's quality of service.
const QOS_RESOURCES: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed`, `Burstable` or `BestEffort`: status.qosClass.
pub fn qos_class(spec: &Value) -> &'static str {
    let set = |resources: &Value, list: &str, name: &str| {
        resources
            .at(list)
            .get(name)
            .is_some_and(crate::validate::quantities::is_positive)
    };
    let guaranteed = |resources: &Value| {
        QOS_RESOURCES.iter().all(|name| {
            set(resources, "limits", name)
                && resources.at("requests").get(name).is_none_or(|request| {
                    compare(request, &resources.at("limits")[*name]) == Some(Ordering::Equal)
                })
        })
    };
    let asks = |resources: &Value| {
        QOS_RESOURCES
            .iter()
            .any(|name| set(resources, "limits", name) || set(resources, "requests", name))
    };
    let pod = spec.at("resources");
    if asks(pod) {
        return if guaranteed(pod) {
            "Guaranteed"
        } else {
            "Burstable"
        };
    }
    let mut all_guaranteed = true;
    let mut any_asks = false;
    for container in spec
        .list("initContainers")
        .iter()
        .chain(spec.list("containers"))
    {
        let resources = container.at("resources");
        all_guaranteed &= guaranteed(resources);
        any_asks |= asks(resources);
    }
    match (any_asks, all_guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    #[test]
    fn requests_stay_within_limits() {
        let resources = json!({
            "limits": {"cpu": "1", "x": "1", "memory": "-1"},
            "requests": {"cpu": "2", "vendor.example/gpu": "1"},
        });
        let path = Path::new("spec")
            .child("containers")
            .index(0)
            .child("resources");
        assert_eq!(
            lines(|e| requirements(&resources, &[], &Kept::default(), &path, e)),
            [
                "spec.containers[0].resources.limits[memory]: Invalid value: \"-1\": must be greater \
                 than or equal to 0",
                "spec.containers[0].resources.limits[x]: Invalid value: \"x\": must be a standard \
                 resource type or fully qualified",
                "spec.containers[0].resources.limits[x]: Invalid value: \"x\": must be a standard \
                 resource for containers",
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or \
                 equal to cpu limit of 1",
                "spec.containers[0].resources.limits: Required value: Limit must be set for non \
                 overcommitable resources",
            ]
        );
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let spec = |resources: Value| json!({"containers": [{"resources": resources}]});
        for (resources, class) in [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1"}}), "Burstable"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}}),
                "Guaranteed",
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1m"}}),
                "Burstable",
            ),
        ] {
            assert_eq!(qos_class(&spec(resources.clone())), class, "{resources}");
        }
    }
}
