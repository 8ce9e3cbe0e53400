//! What agents may write about a Pod's state, and what stays as the server made it.

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

use super::pod_spec::annotations;
use super::pod_spec::network::ip;
use crate::tree::{self, Tree, each};
use crate::validate::numbers::user_id;
use crate::validate::{immutable, one_of_each_family, sentences};

const STATUSES: [&str; 3] = [
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
];

/// What was computed at creation or observed before stays, whatever an agent leaves out. Fields whose gates are off
/// in v1.35 are not stored.
pub fn prepare(new: &mut Value, old: &Value) {
    if new.text("status.qosClass").is_empty() {
        tree::keep(new, old, "status.qosClass");
    }
    if new.int("status.observedGeneration").unwrap_or_default() == 0 {
        tree::keep(new, old, "status.observedGeneration");
    }
    let mut olds = old.list("status.conditions").to_vec();
    for condition in each(new, "status.conditions") {
        let before = olds
            .iter()
            .position(|old| old.text("type") == condition.text("type"));
        let Some(before) = before.map(|at| olds.remove(at)) else {
            continue;
        };
        if condition.int("observedGeneration").unwrap_or_default() == 0 {
            tree::keep(condition, &before, "observedGeneration");
        }
    }
    for field in [
        "resources",
        "allocatedResources",
        "extendedResourceClaimStatus",
    ] {
        tree::remove(new, &format!("status.{field}"));
    }
    for list in STATUSES {
        for status in each(new, &format!("status.{list}")) {
            tree::remove(status, "allocatedResourcesStatus");
        }
    }
}

pub fn validate(new: &Value, old: &Value, errors: &mut Errors) {
    let metadata = Path::new("metadata");
    let annotations_path = metadata.child("annotations");
    annotations::validate_update(new, old, &annotations_path, errors);
    annotations::validate(new, Some(old), &annotations_path, errors);
    conditions(new, &metadata.child("conditions"), errors);
    let path = Path::new("status");
    let node = new.text("status.nominatedNodeName");
    if !node.is_empty() && node != old.text("status.nominatedNodeName") {
        let problems = names::is_dns1123_subdomain(node);
        sentences(problems, &path.child("nominatedNodeName"), node, errors);
    }
    immutable(new, old, "status.qosClass", errors);
    for list in STATUSES {
        ended_containers(new, old, list, &path.child(list), errors);
    }
    claims(new, &path.child("resourceClaimStatuses"), errors);
    addresses(new.list("status.podIPs"), &path.child("podIPs"), errors);
    host_addresses(new, &path.child("hostIPs"), errors);
    for list in STATUSES {
        users(new, list, &path.child(list), errors);
    }
}

/// Upstream's path of these begins with `metadata`.
fn conditions(new: &Value, path: &Path, errors: &mut Errors) {
    for (i, condition) in new.list("status.conditions").iter().enumerate() {
        let kind = condition.text("type");
        if !["PodScheduled", "Ready", "Initialized"].contains(&kind) {
            let path = path.index(i).child("Type");
            sentences(names::is_qualified_name(kind), &path, kind, errors);
        }
    }
}

/// A container that has ended for good stays ended.
fn ended_containers(new: &Value, old: &Value, list: &str, path: &Path, errors: &mut Errors) {
    let policy = match list {
        "ephemeralContainerStatuses" => "Never",
        _ => old.text("spec.restartPolicy"),
    };
    let containers = match list {
        "initContainerStatuses" => old.list("spec.initContainers"),
        _ => old.list("spec.containers"),
    };
    for (i, status) in old.at("status").list(list).iter().enumerate() {
        let name = status.text("name");
        let Some(exit) = status.int("state.terminated.exitCode") else {
            continue;
        };
        let is_final = match policy {
            "Never" => true,
            "OnFailure" => exit == 0,
            _ => false,
        };
        let may_restart = containers
            .iter()
            .any(|container| container.text("name") == name && container.has("restartPolicy"));
        let news = new.at("status").list(list);
        let goes_on = news
            .iter()
            .any(|status| status.text("name") == name && !status.has("state.terminated"));
        if is_final && !may_restart && goes_on {
            let path = path.index(i).child("state");
            errors.forbidden(&path, "may not be transitioned to non-terminated state");
        }
    }
}

fn claims(new: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, status) in new.list("status.resourceClaimStatuses").iter().enumerate() {
        let (name, path) = (status.text("name"), path.index(i).child("name"));
        let known = new
            .list("spec.resourceClaims")
            .iter()
            .any(|claim| claim.text("name") == name);
        if !known {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            errors.invalid(&path, name, detail);
        }
        if !seen.insert(name) {
            errors.duplicate(&path, name);
        }
        if let Some(claim) = status.at("resourceClaimName").as_str() {
            sentences(names::is_dns1123_subdomain(claim), &path, claim, errors);
        }
    }
}

/// Valid ones, no more than one of each family.
fn addresses(list: &[Value], path: &Path, errors: &mut Errors) {
    for (i, entry) in list.iter().enumerate() {
        ip(entry.text("ip"), &path.index(i), errors);
    }
    one_of_each_family(list, |entry| entry.text("ip"), "IP", path, errors);
}

fn host_addresses(new: &Value, path: &Path, errors: &mut Errors) {
    let list = new.list("status.hostIPs");
    let Some(first) = list.first().map(|entry| entry.text("ip")) else {
        return;
    };
    if first != new.text("status.hostIP") {
        errors.invalid(
            &path.index(0).child("ip"),
            first,
            "must be equal to `hostIP`",
        );
    }
    addresses(list, path, errors);
}

/// As whom a container's first process runs.
fn users(new: &Value, list: &str, path: &Path, errors: &mut Errors) {
    let is_windows = new.text("spec.os.name") == "windows";
    for (i, status) in new.at("status").list(list).iter().enumerate() {
        let user = status.at("user.linux");
        if user.is_null() {
            continue;
        }
        let path = path.index(i).child("linux");
        if is_windows {
            errors.forbidden(&path, "cannot be set for a windows pod");
            continue;
        }
        user_id(user, "uid", &path, errors);
        user_id(user, "gid", &path, errors);
        for (j, group) in user.list("supplementalGroups").iter().enumerate() {
            if !(0..=i64::from(i32::MAX)).contains(&group.as_i64().unwrap_or_default()) {
                let detail = names::inclusive_range(0, i32::MAX.into());
                let path = path.child("supplementalGroups").index(j);
                errors.invalid(&path, group.clone(), detail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::lines;

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
            lines(|e| validate(&new, &old, e)),
            [
                "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated \
                 state"
            ]
        );
        assert!(lines(|e| validate(&old, &new, e)).is_empty());
    }

    #[test]
    fn what_was_observed_is_not_forgotten() {
        let old = json!({"status": {"observedGeneration": 3, "qosClass": "Burstable", "conditions": [
            {"type": "Ready", "observedGeneration": 2},
        ]}});
        let mut new = json!({"status": {"resources": {}, "conditions": [{"type": "Ready"}]}});
        prepare(&mut new, &old);
        assert_eq!(new, old);
    }

    #[test]
    fn addresses_are_one_of_each_family() {
        let pod = json!({"status": {
            "hostIP": "10.0.0.1",
            "hostIPs": [{"ip": "10.0.0.2"}],
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}],
        }});
        assert_eq!(
            lines(|e| validate(&pod, &pod, e)),
            [
                "status.podIPs: Invalid value: [{\"ip\":\"10.0.0.1\"},{\"ip\":\"10.0.0.1\"}]: may specify no \
                 more than one IP for each IP family",
                "status.podIPs[1]: Duplicate value: {\"ip\":\"10.0.0.1\"}",
                "status.hostIPs[0].ip: Invalid value: \"10.0.0.2\": must be equal to `hostIP`",
            ]
        );
    }
}
