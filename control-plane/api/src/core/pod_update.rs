//! What may change about a Pod after its creation, on each of its write paths.

use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::validation::{Errors, Path};

use crate::tree::{self, Tree, each};
use crate::validate::quantities::compare;
use crate::validate::{immutable, same};

const ONLY: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub fn validate(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let (new_spec, old_spec) = (new.at("spec"), old.at("spec"));
    for field in ["containers", "initContainers"] {
        if new_spec.list(field).len() != old_spec.list(field).len() {
            errors.forbidden(
                &path.child(field),
                format!("pod updates may not add or remove {field}"),
            );
            return;
        }
    }
    deadline(new_spec, old_spec, &path, errors);
    existing_tolerations(new_spec, old_spec, &path, errors);
    gates(new_spec, old_spec, &path, errors);

    // With what may change set back, nothing may differ.
    let mut rest = new_spec.clone();
    for field in ["containers", "initContainers"] {
        let olds = old_spec.list(field);
        for (container, old) in each(&mut rest, field).zip(olds) {
            tree::keep(container, old, "image");
        }
    }
    tree::keep(&mut rest, old_spec, "activeDeadlineSeconds");
    tree::keep(&mut rest, old_spec, "tolerations");
    tree::keep(&mut rest, old_spec, "schedulingGates");
    if old_spec
        .int("terminationGracePeriodSeconds")
        .is_some_and(|s| s < 0)
        && rest.int("terminationGracePeriodSeconds") == Some(1)
    {
        tree::keep(&mut rest, old_spec, "terminationGracePeriodSeconds");
    }
    // A pod that is still gated may be moved: its node selector and affinity may become narrower.
    if !old_spec.list("schedulingGates").is_empty() {
        tree::keep(&mut rest, old_spec, "nodeSelector");
        tree::keep(&mut rest, old_spec, "affinity");
        narrower(new_spec, old_spec, &path, errors);
    }
    if !same(&rest, old_spec) {
        errors.forbidden(&path, format!("{ONLY}\n{}", difference(&rest, old_spec)));
    }
}

/// The fields that differ, one a line, removed values before added ones.
fn difference(new: &Value, old: &Value) -> String {
    let mut names: Vec<_> = [new, old]
        .into_iter()
        .filter_map(Value::as_object)
        .flatten()
        .map(|(k, _)| k)
        .collect();
    names.sort();
    names.dedup();
    let mut text = String::new();
    for name in names {
        let (new, old) = (new.at(name), old.at(name));
        if !same(new, old) {
            for (sign, value) in [('-', old), ('+', new)] {
                if !value.is_null() {
                    text.push_str(&format!("{sign} {name}: {value}\n"));
                }
            }
        }
    }
    text
}

fn deadline(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("activeDeadlineSeconds");
    match (
        new.int("activeDeadlineSeconds"),
        old.int("activeDeadlineSeconds"),
    ) {
        (Some(new), Some(old)) if new > old => {
            errors.invalid(&path, new, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            errors.invalid(
                &path,
                Value::Null,
                "must not update from a positive integer to nil value",
            );
        }
        _ => {}
    }
}

/// Tolerations are only added; of those there are only the seconds may change.
fn existing_tolerations(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        tree::remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let news: Vec<_> = new
        .list("tolerations")
        .iter()
        .map(without_seconds)
        .collect();
    let all_kept = old
        .list("tolerations")
        .iter()
        .map(without_seconds)
        .all(|old| news.iter().any(|new| same(new, &old)));
    if !all_kept {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.forbidden(&path.child("tolerations"), detail);
    }
}

fn gates(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let olds = old.list("schedulingGates");
    for gate in new.list("schedulingGates") {
        if !olds.iter().any(|old| same(old, gate)) {
            errors.forbidden(
                &path.child("schedulingGates").index(0),
                format!(
                    "only deletion is allowed, but found new scheduling gate '{}'",
                    gate.text("name")
                ),
            );
        }
    }
}

fn narrower(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    for (key, value) in old.entries("nodeSelector") {
        if new.at("nodeSelector").get(key) != Some(value) {
            errors.invalid(
                &path.child("nodeSelector"),
                new.at("nodeSelector").clone(),
                "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
            );
            return;
        }
    }
}

pub fn validate_status(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let node = new.text("status.nominatedNodeName");
    if !node.is_empty() {
        for problem in windlass_machinery::names::is_dns1123_subdomain(node) {
            errors.invalid(&path.child("nominatedNodeName"), node, problem);
        }
    }
    let ips = new.list("status.podIPs");
    for (i, ip) in ips.iter().enumerate() {
        let text = ip.text("ip");
        super::pod_spec::network::ip(text, &path.child("podIPs").index(i), errors);
        if ips[..i].contains(ip) {
            errors.duplicate(&path.child("podIPs").index(i), ip.clone());
        }
    }
    // A container that has ended for good in a pod that never restarts it stays ended.
    let policy = new.text("spec.restartPolicy");
    for (statuses, containers) in [
        ("containerStatuses", "containers"),
        ("initContainerStatuses", "initContainers"),
    ] {
        for (i, old_status) in old.at("status").list(statuses).iter().enumerate() {
            let name = old_status.text("name");
            let Some(exit) = old_status.int("state.terminated.exitCode") else {
                continue;
            };
            let may_restart = old
                .at("spec")
                .list(containers)
                .iter()
                .any(|c| c.text("name") == name && c.has("restartPolicy"));
            let is_final = match policy {
                "Never" => true,
                "OnFailure" => exit == 0,
                _ => false,
            };
            let goes_on = new
                .at("status")
                .list(statuses)
                .iter()
                .any(|status| status.text("name") == name && !status.has("state.terminated"));
            if is_final && !may_restart && goes_on {
                let path = path.child(statuses).index(i).child("state");
                errors.forbidden(&path, "may not be transitioned to non-terminated state");
            }
        }
    }
    let qos = "status.qosClass";
    if !old.text(qos).is_empty() && !meta::uid(old).is_empty() {
        immutable(new, old, qos, errors);
    }
}

/// Ephemeral containers are only ever added.
pub fn validate_ephemeral(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec").child("ephemeralContainers");
    for existing in old.list("spec.ephemeralContainers") {
        let name = existing.text("name");
        let now = new
            .list("spec.ephemeralContainers")
            .iter()
            .find(|c| c.text("name") == name);
        match now {
            None => errors.forbidden(
                &path,
                format!("existing ephemeral containers {name:?} may not be removed\n"),
            ),
            Some(now) if !same(now, existing) => errors.forbidden(
                &path,
                format!(
                    "existing ephemeral containers {name:?} may not be changed\n{}",
                    difference(now, existing)
                ),
            ),
            Some(_) => {}
        }
    }
}

/// Only cpu and memory may be resized, and never so that the pod's quality of service changes.
pub fn validate_resize(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    if super::pod_spec::qos_class(new.at("spec")) != super::pod_spec::qos_class(old.at("spec")) {
        let class = super::pod_spec::qos_class(new.at("spec"));
        errors.invalid(
            &path,
            class,
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    for field in ["containers", "initContainers"] {
        let olds = old.at("spec").list(field);
        for (i, (container, old)) in new.at("spec").list(field).iter().zip(olds).enumerate() {
            for list in ["limits", "requests"] {
                let (news, olds) = (
                    container.at("resources").at(list),
                    old.at("resources").at(list),
                );
                let names = [news, olds]
                    .into_iter()
                    .filter_map(Value::as_object)
                    .flatten();
                let changed_other = names
                    .map(|(name, _)| name.as_str())
                    .filter(|name| !matches!(*name, "cpu" | "memory"))
                    .any(|name| match (news.get(name), olds.get(name)) {
                        (Some(new), Some(old)) => {
                            compare(new, old).is_none_or(|order| order.is_ne())
                        }
                        (new, old) => new.is_some() != old.is_some(),
                    });
                if changed_other {
                    errors.forbidden(&path, "only cpu and memory resources are mutable");
                }
                let removed = olds
                    .as_object()
                    .is_some_and(|olds| olds.keys().any(|name| news.get(name).is_none()));
                if removed {
                    let path = path.child(field).index(i).child("resources").child(list);
                    let what = format!("resource {list} cannot be removed");
                    errors.forbidden(&path, what);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

    fn pod(image: &str, extra: Value) -> Value {
        let mut spec = json!({"containers": [{"name": "c", "image": image}]});
        for (key, value) in extra.as_object().expect("an object") {
            spec[key] = value.clone();
        }
        json!({"spec": spec})
    }

    #[test]
    fn only_a_few_fields_of_a_pod_may_change() {
        let old = pod(
            "a",
            json!({"tolerations": [{"key": "x", "operator": "Exists"}], "nodeName": "n"}),
        );
        let check = |new: &Value| lines(|e| validate(new, &old, e));

        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "b".into();
        new["spec"]["tolerations"][0]["tolerationSeconds"] = 5.into();
        new["spec"]["activeDeadlineSeconds"] = 5.into();
        assert!(check(&new).is_empty(), "{:?}", check(&new));

        let mut new = old.clone();
        new["spec"]["nodeName"] = "m".into();
        let found = check(&new);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("spec: Forbidden: pod updates may not change fields other than ")
        );
        assert!(
            found[0].ends_with("\n- nodeName: \"n\"\n+ nodeName: \"m\"\n"),
            "{}",
            found[0]
        );

        let mut new = old.clone();
        new["spec"]["tolerations"] = json!([]);
        assert_eq!(
            check(&new),
            [
                "spec.tolerations: Forbidden: existing toleration can not be modified except its \
                 tolerationSeconds"
            ]
        );

        let mut new = old.clone();
        new["spec"]["containers"] = json!([]);
        assert_eq!(
            check(&new),
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
    }

    #[test]
    fn an_ended_container_does_not_come_back() {
        let with = |state: Value| {
            json!({
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]},
                "status": {"containerStatuses": [{"name": "c", "state": state}]},
            })
        };
        let old = with(json!({"terminated": {"exitCode": 1}}));
        let new = with(json!({"running": {}}));
        assert_eq!(
            lines(|e| validate_status(&new, &old, e)),
            [
                "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated \
                 state"
            ]
        );
        assert!(lines(|e| validate_status(&old, &new, e)).is_empty());
    }

    #[test]
    fn resizing_keeps_the_quality_of_service() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
        let old = pod(json!({"requests": {"cpu": "1"}}));
        let check = |resources: Value| lines(|e| validate_resize(&pod(resources), &old, e));
        assert!(check(json!({"requests": {"cpu": "2"}})).is_empty());
        assert_eq!(
            check(json!({})),
            [
                "spec: Invalid value: \"BestEffort\": Pod QOS Class may not change as a result of resizing",
                "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
            ]
        );
    }
}
