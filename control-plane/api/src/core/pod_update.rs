//! What may change about a Pod after its creation, on each of its write paths.

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::pod_spec::affinity::REQUIRED;
use super::pod_spec::{annotations, qos_class};
use crate::tree::{self, Tree, each};
use crate::validate::same;

const ONLY: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub fn validate(new: &Value, old: &Value, errors: &mut Errors) {
    let metadata = Path::new("metadata");
    annotations::validate_update(new, old, &metadata.child("annotations"), errors);
    let path = Path::new("spec");
    let (new_spec, old_spec) = (new.at("spec"), old.at("spec"));
    for field in ["containers", "initContainers"] {
        if new_spec.list(field).len() != old_spec.list(field).len() {
            // Upstream's words are the same for both lists.
            let detail = "pod updates may not add or remove containers";
            return errors.forbidden(&path.child(field), detail);
        }
    }
    if !deadline(new_spec, old_spec, &path, errors) {
        return;
    }
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
    // A pod that is still gated may be moved: which nodes it may run on may become fewer.
    if !old_spec.list("schedulingGates").is_empty() {
        narrower_selector(new_spec, old_spec, &path, errors);
        narrower_affinity(new_spec, old_spec, &path, errors);
        tree::keep(&mut rest, old_spec, "nodeSelector");
        tree::keep(&mut rest, old_spec, "affinity.nodeAffinity");
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

/// Whether the rest of the update is worth a look.
fn deadline(new: &Value, old: &Value, path: &Path, errors: &mut Errors) -> bool {
    let path = path.child("activeDeadlineSeconds");
    let max = i64::from(i32::MAX);
    match (
        new.int("activeDeadlineSeconds"),
        old.int("activeDeadlineSeconds"),
    ) {
        (Some(new), _) if !(0..=max).contains(&new) => {
            errors.invalid(&path, new, names::inclusive_range(0, max));
            return false;
        }
        (Some(new), Some(old)) if new > old => {
            errors.invalid(&path, new, "must be less than or equal to previous value");
            return false;
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.invalid(&path, Value::Null, detail);
        }
        _ => {}
    }
    true
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
    for (i, gate) in new.list("schedulingGates").iter().enumerate() {
        if !olds.iter().any(|old| same(old, gate)) {
            let detail = format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                gate.text("name")
            );
            let path = path.child("schedulingGates").index(i).child("name");
            errors.forbidden(&path, detail);
        }
    }
}

fn narrower_selector(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let now = new.at("nodeSelector");
    if old
        .entries("nodeSelector")
        .any(|(key, value)| now.get(key) != Some(value))
    {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.invalid(&path.child("nodeSelector"), now.clone(), detail);
    }
}

/// Terms are alternatives: each may only get more requirements, and none may come or go.
fn narrower_affinity(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let terms = |spec: &Value| {
        let required = spec.at("affinity.nodeAffinity").at(REQUIRED);
        required.at("nodeSelectorTerms").clone()
    };
    let (news, olds) = (terms(new), terms(old));
    let olds = olds.as_array().map_or(&[][..], Vec::as_slice);
    let path = path
        .child("affinity")
        .child("nodeAffinity")
        .child(REQUIRED)
        .child("nodeSelectorTerms");
    let new_terms = news.as_array().map_or(&[][..], Vec::as_slice);
    if !olds.is_empty() && olds.len() != new_terms.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return errors.invalid(&path, news, detail);
    }
    for (i, (old, new)) in olds.iter().zip(new_terms).enumerate() {
        let lists = ["matchExpressions", "matchFields"];
        let was_empty = lists.iter().all(|list| old.list(list).is_empty());
        let only_added = lists.iter().all(|list| {
            let (old, new) = (old.list(list), new.list(list));
            new.len() >= old.len() && new.iter().zip(old).all(|(new, old)| same(new, old))
        });
        // A term without requirements selects nothing, and one with some selects more.
        let still_empty = lists.iter().all(|list| new.list(list).is_empty());
        if !only_added || (was_empty && !still_empty) {
            let detail = "only additions are allowed (no mutations or deletions)";
            errors.invalid(&path.index(i), new.clone(), detail);
        }
    }
}

/// Ephemeral containers are only ever added.
pub fn validate_ephemeral(new: &Value, old: &Value, errors: &mut Errors) {
    if annotations::get(old, annotations::MIRROR).is_some() {
        let detail = "static pods do not support ephemeral containers";
        return errors.forbidden(&Path::root(), detail);
    }
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

/// Only cpu and memory of what runs for good may be resized, and never so that the pod's quality of service changes.
pub fn validate_resize(new: &Value, old: &Value, errors: &mut Errors) {
    let refused = if has_own_resources(old) || has_own_resources(new) {
        "pods with pod-level resources cannot be resized"
    } else if annotations::get(old, annotations::MIRROR).is_some() {
        "static pods cannot be resized"
    } else if old.text("spec.os.name") == "windows" {
        "windows pods cannot be resized"
    } else {
        ""
    };
    if !refused.is_empty() {
        return errors.forbidden(&Path::root(), refused);
    }
    let path = Path::new("spec");
    let class = qos_class(new.at("spec"));
    if class != qos_class(old.at("spec")) {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.invalid(&path, class, detail);
    }
    if !node_can_resize(old) {
        errors.forbidden(&path, "Pod running on node without support for resize");
    }
    let pairs = |list: &str| {
        let (news, olds) = (new.at("spec").list(list), old.at("spec").list(list));
        news.iter().zip(olds).enumerate()
    };
    let is_sidecar = |container: &Value| container.text("restartPolicy") == "Always";
    for (i, (new, old)) in pairs("initContainers").filter(|(_, (_, old))| is_sidecar(old)) {
        resized(new, old, &path.child("initContainers").index(i), errors);
    }
    for (i, (new, old)) in pairs("containers") {
        resized(new, old, &path.child("containers").index(i), errors);
    }
    for (_, (new, old)) in pairs("containers") {
        if !same(&without_compute(new, old), old) {
            errors.forbidden(&path, "only cpu and memory resources are mutable");
        }
    }
    for (_, (new, old)) in pairs("initContainers") {
        if !is_sidecar(new) && !same(new, old) {
            let detail = "resources for non-sidecar init containers are immutable";
            errors.forbidden(&path, detail);
        } else if is_sidecar(new) && !same(&without_compute(new, old), old) {
            let detail = "only cpu and memory resources for sidecar containers are mutable";
            errors.forbidden(&path, detail);
        }
    }
}

fn has_own_resources(pod: &Value) -> bool {
    ["requests", "limits"]
        .iter()
        .any(|list| pod.at("spec.resources").entries(list).next().is_some())
}

/// A node that tells what its running containers have been given can give them something else.
fn node_can_resize(pod: &Value) -> bool {
    let statuses = pod.list("status.containerStatuses");
    let running = statuses.iter().find(|status| status.has("state.running"));
    running.is_none_or(|status| status.has("resources"))
}

/// The container with what a resize may change as it was before.
fn without_compute(new: &Value, old: &Value) -> Value {
    let mut kept = new.clone();
    tree::keep(&mut kept, old, "resizePolicy");
    for list in ["resources.limits", "resources.requests"] {
        for name in ["cpu", "memory"] {
            match old.at(list).get(name) {
                Some(amount) => {
                    tree::object_at(&mut kept, list).insert(name.to_owned(), amount.clone());
                }
                None => {
                    tree::remove(&mut kept, &format!("{list}.{name}"));
                }
            }
        }
    }
    kept
}

/// What was asked for may become another amount, and never nothing; `path` is the container's.
fn resized(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("resources");
    for list in ["requests", "limits"] {
        let (news, olds) = (new.at("resources").at(list), old.at("resources").at(list));
        let mut names = olds.as_object().into_iter().flatten();
        if names.any(|(name, _)| news.get(name).is_none()) {
            let detail = format!("resource {list} cannot be removed");
            errors.forbidden(&path.child(list), detail);
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
